"""MACE's parameter-free edge operations in plain PyTorch: spherical harmonics and the convolution over neighbours.

e3nn compiles both with TorchScript, whose optimiser drops forward-mode derivatives (and needs a warm-up); and the convolution
of mace-torch writes one message an edge, (edges × channels × Σ(2l + 1)) numbers, before it sums them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from selectron.potentials.mace_modules import CompositionHolder
from selectron.potentials.mace_torch import o3
from selectron.potentials.outer import sum_of_outer_products


class SphericalHarmonics(torch.nn.Module):
    """Real spherical harmonics Y_0 … Y_lmax of directions, e3nn's order and signs, ‖Y_l‖² = 2l + 1.

    Y_l ∝ C · (Y_{l−1} ⊗ Y_1) with C the Wigner 3j symbols: the coupling of l − 1 and 1 to l of one direction with itself.
    """

    def __init__(self, lmax: int) -> None:
        super().__init__()
        self.lmax = lmax
        direction = torch.nn.functional.normalize(torch.tensor([0.3, -0.5, 0.8], dtype=torch.float64), dim=0)
        previous = o3.spherical_harmonics(1, direction, normalize=True, normalization="component")
        one = previous
        for degree in range(2, lmax + 1):
            coupling = o3.wigner_3j(degree - 1, 1, degree, dtype=torch.float64)
            raw = torch.einsum("i,j,ijk->k", previous, one, coupling)
            target = o3.spherical_harmonics(degree, direction, normalize=True, normalization="component")
            coupling = coupling * (target @ raw) / (raw @ raw)
            self.register_buffer(f"coupling_{degree}", coupling.flatten(0, 1), persistent=False)
            previous = target

    def forward(self, vectors: Tensor) -> Tensor:
        """(E, 3) to (E, (lmax + 1)²)."""
        unit = torch.nn.functional.normalize(vectors, dim=-1)
        harmonics = [torch.ones_like(unit[:, :1])]
        if self.lmax > 0:
            harmonics.append(unit * 3**0.5)
        for degree in range(2, self.lmax + 1):
            pairs = (harmonics[-1].unsqueeze(2) * harmonics[1].unsqueeze(1)).flatten(1)
            harmonics.append(pairs @ getattr(self, f"coupling_{degree}").to(vectors.dtype))
        return torch.cat(harmonics, dim=1)


class NeighbourConvolution(torch.nn.Module):
    """m_nuk = Σ_{e → n} w_eu Σ_ij C_ijk x_{s(e)ui} Y_ej for each path (l1, l2, l3): e3nn's "uvu" product, summed.

    For every receiving atom this is a sum of outer products over its edges, (w x) ⊗ (C Y): one batched matrix product
    a path, and no message of an edge is ever written.
    """

    def __init__(self, layer: Any, holder: CompositionHolder) -> None:
        super().__init__()
        self.holder = holder
        self.weight_numel = layer.weight_numel
        starts1 = [s.start for s in layer.irreps_in1.slices()]
        starts2 = [s.start for s in layer.irreps_in2.slices()]
        self.sizes_out = [mul_ir.dim for mul_ir in layer.irreps_out]
        self.paths: list[tuple[int, int, int, int, int, int, int]] = []
        weight_at = 0
        for number, ins in enumerate(layer.instructions):
            first, second = layer.irreps_in1[ins.i_in1], layer.irreps_in2[ins.i_in2]
            third = layer.irreps_out[ins.i_out]
            coupling = o3.wigner_3j(first.ir.l, second.ir.l, third.ir.l, dtype=torch.float64) * ins.path_weight
            self.register_buffer(f"coupling_{number}", coupling.permute(1, 0, 2).flatten(1), persistent=False)
            self.paths.append(
                (starts1[ins.i_in1], first.mul, first.ir.dim, starts2[ins.i_in2], second.ir.dim, weight_at, ins.i_out)
            )
            weight_at += first.mul

    def forward(self, node_feats: Tensor, edge_attrs: Tensor, weights: Tensor, edge_index: Tensor) -> Tensor:
        """node_feats (N, irreps_in1.dim), edge_attrs (E, irreps_in2.dim), weights (E, paths · mul): (N, irreps_out.dim)."""
        counts = self.holder.current.receiver_counts
        sent = node_feats.index_select(0, edge_index[0])
        blocks: dict[int, Tensor] = {}
        for number, (start1, mul, dim1, start2, dim2, weight_at, out) in enumerate(self.paths):
            w = weights[:, weight_at : weight_at + mul]
            x = sent[:, start1 : start1 + mul * dim1]
            coupling = getattr(self, f"coupling_{number}").to(edge_attrs.dtype)
            right = edge_attrs[:, start2 : start2 + dim2] @ coupling  # (E, dim1 · dim3)
            if dim1 == 1:
                left = x * w
            else:
                left = (x.view(-1, mul, dim1) * w.unsqueeze(2)).transpose(1, 2).reshape(-1, mul)
                right = right.reshape(right.shape[0] * dim1, right.shape[1] // dim1)
            blocks[out] = sum_of_outer_products(left, right, counts * dim1).flatten(1)
        parts = [
            node_feats.new_zeros(node_feats.shape[0], size) if i not in blocks else blocks[i]
            for i, size in enumerate(self.sizes_out)
        ]
        return torch.cat(parts, dim=1)


def is_neighbour_product(layer: Any) -> bool:
    """Whether :class:`NeighbourConvolution` computes it: "uvu" paths, one harmonic of each degree, each path its own output."""
    paths = layer.instructions
    return (
        not layer.internal_weights
        and all(ins.connection_mode == "uvu" and ins.has_weight for ins in paths)
        and all(layer.irreps_in2[ins.i_in2].mul == 1 for ins in paths)
        and len({ins.i_out for ins in paths}) == len(paths)
    )
