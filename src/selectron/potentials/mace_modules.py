"""MACE's parametrised layers, written so that they run fast and hand out per-structure parameter gradients.

Each class takes one layer of a mace-torch model, shares its parameters and computes the same function:

| here                    | replaces in mace-torch                       | what makes it quicker                              |
|-------------------------|----------------------------------------------|----------------------------------------------------|
| EquivariantLinear       | ``e3nn.o3.Linear``                           | –                                                  |
| ElementLinear           | ``e3nn.o3.FullyConnectedTensorProduct``      | one matrix product an element, no one-hot products |
| RadialLayer             | a layer of ``e3nn.nn.FullyConnectedNet``     | –                                                  |
| PolynomialContraction   | ``Contraction`` of the symmetric contraction | only the monomials with a coupling coefficient     |
| AffineLayer, NormLayer  | ``torch.nn.Linear``, ``torch.nn.LayerNorm``  | –                                                  |

The monomials: for L = 0, l ≤ 3 and correlation 3 only 77 of the 4096 products x_i x_j x_k have a non-zero
coupling coefficient U (MACE, Batatia et al. 2022, Eqs. 10 and 11), so that A = Σ_k W_k Σ_m U_mk (monomial m) is a small
matrix product.

While a :class:`Tape` is open, every layer writes down its input and its output. Given the gradient of the energy with
respect to that output, :meth:`gradients` returns the layer's part of ∂E_b/∂θ of each structure b of the batch as
:class:`Gradient`, without a loop over structures: structures do not interact, so the sum over the items (atoms or
edges) of one structure is that structure's gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Slot(NamedTuple):
    """A (rows × columns) matrix inside a parameter: entry (a, b) is at ``offset + a · row_stride + b`` when flattened."""

    parameter: str
    offset: int
    row_stride: int
    rows: int
    columns: int


class Gradient(NamedTuple):
    """∂E_b/∂(slot) for the structures ``structures`` (G,): Σ over the items of group g of left ⊗ right.

    ``left`` (n, rows) and ``right`` (n, columns) hold the items, sorted by group; ``counts`` (G,) how many each has.
    Groups of one item may come as they are: then ``left`` is None and ``right`` is (G, rows, columns).
    """

    slot: Slot
    left: Tensor | None
    right: Tensor
    counts: Tensor | None
    structures: Tensor


@dataclass
class Composition:
    """Which element each atom of the batch at hand is, and which structure it and its edges belong to."""

    species: Tensor
    system_idx: Tensor
    atom_counts: Tensor
    edge_counts: Tensor
    receiver_counts: Tensor
    by_element: list[tuple[int, Tensor]] = field(default_factory=list)
    """(element index, atoms of it in ascending order) for the elements that are there."""

    def __post_init__(self) -> None:
        order = torch.argsort(self.species, stable=True)
        present, sizes = torch.unique_consecutive(self.species[order], return_counts=True)
        self.by_element = list(zip(present.tolist(), torch.split(order, sizes.tolist()), strict=True))

    @property
    def n_structures(self) -> int:
        """B."""
        return int(self.atom_counts.shape[0])

    def groups(self, agnostic: bool) -> list[tuple[int, Tensor]]:
        """:attr:`by_element`, or all atoms under index 0 where weights do not depend on the element."""
        if not agnostic:
            return self.by_element
        return [(0, torch.arange(self.species.shape[0], device=self.species.device))]

    def counts_of(self, atoms: Tensor) -> tuple[Tensor, Tensor]:
        """How many of ``atoms`` each structure has: (counts of structures that have any, those structures)."""
        counts = torch.bincount(self.system_idx[atoms], minlength=self.n_structures)
        structures = torch.nonzero(counts).squeeze(1)
        return counts[structures], structures


class Record(NamedTuple):
    """One call of a layer: what went in, and the tensor whose gradient is wanted."""

    layer: RecordedLayer
    inputs: Any
    output: Tensor


class Tape:
    """While it is open (``with tape:``) the layers it was made for write their calls down."""

    def __init__(self, layers: list[RecordedLayer]) -> None:
        self.layers = layers
        self.records: list[Record] = []

    def __enter__(self) -> Tape:
        self.records = []
        for layer in self.layers:
            layer.tape = self
        return self

    def __exit__(self, *_: object) -> None:
        for layer in self.layers:
            layer.tape = None


class RecordedLayer(torch.nn.Module):
    """Base of the layers here. ``on_edges`` says whether items are edges or atoms; ``name`` is the layer's full name."""

    def __init__(self, name: str, composition: CompositionHolder, on_edges: bool = False) -> None:
        super().__init__()
        self.name = name
        self.holder = composition
        self.on_edges = on_edges
        self.tape: Tape | None = None

    def record(self, inputs: Any, output: Tensor) -> Tensor:
        """Notes the call if a tape is open; the output then takes part in the gradient."""
        if self.tape is not None:
            is_leaf = not output.requires_grad
            if is_leaf:
                output.requires_grad_(True)
            self.tape.records.append(Record(self, inputs, output))
            return output.clone() if is_leaf else output  # a leaf may not be changed in place further on
        return output

    def item_counts(self, factor: int = 1) -> Tensor:
        """(B,) items of each structure: its atoms or edges, times ``factor``."""
        composition = self.holder.current
        return (composition.edge_counts if self.on_edges else composition.atom_counts) * factor

    def all_structures(self) -> Tensor:
        """(B,) 0 … B − 1."""
        counts = self.holder.current.atom_counts
        return torch.arange(counts.shape[0], device=counts.device)

    def gradients(self, record: Record, grad_output: Tensor) -> Iterator[Gradient]:
        """Per-structure gradients of all parameters of the layer, from one recorded call."""
        raise AssertionError(f"{type(self).__name__} has no gradients")


class CompositionHolder:
    """Where the layers of one model find the composition of the batch at hand."""

    current: Composition


def _as_items(x: Tensor, start: int, mul: int, dim: int) -> Tensor:
    """(n · dim, mul): the irrep block of ``x`` (n, ·) that starts at ``start``, one item a component m."""
    block = x[:, start : start + mul * dim]
    return block if dim == 1 else block.reshape(-1, mul, dim).transpose(1, 2).reshape(-1, mul)


def _from_items(y: Tensor, mul: int, dim: int) -> Tensor:
    """Back from :func:`_as_items`: (n, mul · dim)."""
    return y if dim == 1 else y.reshape(-1, dim, mul).transpose(1, 2).reshape(-1, mul * dim)


class EquivariantLinear(RecordedLayer):
    """y_w = Σ_u c W_uw x_u for each irrep, c the path weight; biases on scalars."""

    def __init__(self, layer: Any, name: str, holder: CompositionHolder, on_edges: bool) -> None:
        super().__init__(name, holder, on_edges)
        self.weight, self.bias = layer.weight, layer.bias
        self.irreps_in, self.irreps_out = layer.irreps_in, layer.irreps_out
        starts_in = [s.start for s in layer.irreps_in.slices()]
        starts_out = [s.start for s in layer.irreps_out.slices()]
        self.paths: list[tuple[int, int, int, int, int, int, float]] = []
        self.biases: list[tuple[int, int, int]] = []  # (start in output, offset in the bias, length)
        offset = bias_offset = 0
        for ins in layer.instructions:
            if ins.i_in == -1:
                length = ins.path_shape[0]
                self.biases.append((starts_out[ins.i_out], bias_offset, length))
                bias_offset += length
                continue
            rows, columns = ins.path_shape
            dim = layer.irreps_in[ins.i_in].ir.dim
            if rows * columns:
                path = (starts_in[ins.i_in], starts_out[ins.i_out], rows, columns, dim, offset, float(ins.path_weight))
                self.paths.append(path)
            offset += rows * columns
        self.starts_out = starts_out

    def forward(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """(n, irreps_in.dim) to (n, irreps_out.dim), with ``weight`` in place of its own where that is given."""
        del bias  # internal only
        weight = self.weight if weight is None else weight
        blocks: dict[int, Tensor] = {}
        for start_in, start_out, rows, columns, dim, offset, scale in self.paths:
            w = weight[offset : offset + rows * columns].view(rows, columns) * scale
            y = _from_items(_as_items(x, start_in, rows, dim) @ w, columns, dim)
            blocks[start_out] = blocks[start_out] + y if start_out in blocks else y
        for start_out, offset, length in self.biases:
            b = self.bias[offset : offset + length].expand(x.shape[0], length)
            blocks[start_out] = blocks[start_out] + b if start_out in blocks else b
        parts = []
        for start, mul_ir in zip(self.starts_out, self.irreps_out, strict=True):
            if mul_ir.dim:
                parts.append(blocks[start] if start in blocks else x.new_zeros(x.shape[0], mul_ir.dim))
        return self.record(x, parts[0] if len(parts) == 1 else torch.cat(parts, dim=1))

    def gradients(self, record: Record, grad_output: Tensor) -> Iterator[Gradient]:
        """One slot a path; biases as their own."""
        structures = self.all_structures()
        for start_in, start_out, rows, columns, dim, offset, scale in self.paths:
            left = _as_items(record.inputs, start_in, rows, dim)
            right = _as_items(grad_output, start_out, columns, dim) * scale
            slot = Slot(f"{self.name}.weight", offset, columns, rows, columns)
            yield Gradient(slot, left, right, self.item_counts(dim), structures)
        for start_out, offset, length in self.biases:
            right = grad_output[:, start_out : start_out + length]
            slot = Slot(f"{self.name}.bias", offset, length, 1, length)
            yield Gradient(slot, right.new_ones(right.shape[0], 1), right, self.item_counts(), structures)


class ElementLinear(RecordedLayer):
    """y_w = Σ_u c W_u,z,w x_u with z the atom's element: a tensor product with a one-hot of elements."""

    def __init__(self, layer: Any, name: str, holder: CompositionHolder) -> None:
        super().__init__(name, holder)
        self.weight = layer.weight
        self.irreps_out = layer.irreps_out
        self.starts_out = [s.start for s in layer.irreps_out.slices()]
        starts_in = [s.start for s in layer.irreps_in1.slices()]
        self.paths: list[tuple[int, int, int, int, int, int, int, float]] = []
        offset = 0
        for ins in layer.instructions:
            rows, elements, columns = ins.path_shape
            dim = layer.irreps_in1[ins.i_in1].ir.dim
            # e3nn multiplies path_weight by the l ⊗ 0 → l coupling coefficient, 1/√(2l + 1)
            scale = float(ins.path_weight) / dim**0.5
            self.paths.append(
                (starts_in[ins.i_in1], self.starts_out[ins.i_out], rows, elements, columns, dim, offset, scale)
            )
            offset += rows * elements * columns

    def forward(self, x: Tensor, node_attrs: Tensor) -> Tensor:
        """(N, irreps_in.dim) to (N, irreps_out.dim); which element an atom is comes from the composition."""
        del node_attrs
        groups = self.holder.current.by_element
        order = torch.cat([atoms for _, atoms in groups])
        back = torch.empty_like(order)
        back[order] = torch.arange(order.shape[0], device=order.device)
        blocks: dict[int, Tensor] = {}
        for start_in, start_out, rows, elements, columns, dim, offset, scale in self.paths:
            w = self.weight[offset : offset + rows * elements * columns].view(rows, elements, columns)
            parts = [_as_items(x[atoms], start_in, rows, dim) @ (w[:, z] * scale) for z, atoms in groups]
            y = _from_items(torch.cat(parts), columns, dim)
            blocks[start_out] = blocks[start_out] + y if start_out in blocks else y
        out = [
            blocks[start] if start in blocks else x.new_zeros(x.shape[0], mul_ir.dim)
            for start, mul_ir in zip(self.starts_out, self.irreps_out, strict=True)
        ]
        return self.record(x, torch.cat(out, dim=1)[back])

    def gradients(self, record: Record, grad_output: Tensor) -> Iterator[Gradient]:
        """One slot a path and element."""
        composition = self.holder.current
        for z, atoms in composition.by_element:
            counts, structures = composition.counts_of(atoms)
            x, g = record.inputs[atoms], grad_output[atoms]
            for start_in, start_out, rows, elements, columns, dim, offset, scale in self.paths:
                slot = Slot(f"{self.name}.weight", offset + z * columns, elements * columns, rows, columns)
                left, right = _as_items(x, start_in, rows, dim), _as_items(g, start_out, columns, dim) * scale
                yield Gradient(slot, left, right, counts * dim, structures)


class RadialLayer(RecordedLayer):
    """A layer of e3nn's FullyConnectedNet: act(x W / √(h_in v_in)) √v_out, or x W √(v_out / (h_in v_in)) at the end."""

    def __init__(self, layer: Any, name: str, holder: CompositionHolder) -> None:
        super().__init__(name, holder, on_edges=True)
        self.weight, self.act = layer.weight, layer.act
        self.scale = float(layer.h_in * layer.var_in) ** -0.5
        self.after = float(layer.var_out) ** 0.5
        if self.act is None:
            self.scale, self.after = self.scale * self.after, 1.0

    def forward(self, x: Tensor) -> Tensor:
        """(E, h_in) to (E, h_out)."""
        y = self.record(x, x @ (self.weight * self.scale))
        return y if self.act is None else self.act(y) * self.after

    def gradients(self, record: Record, grad_output: Tensor) -> Iterator[Gradient]:
        """One slot; the recorded output is the one before the activation."""
        rows, columns = self.weight.shape
        slot = Slot(f"{self.name}.weight", 0, columns, rows, columns)
        yield Gradient(slot, record.inputs, grad_output * self.scale, self.item_counts(), self.all_structures())


class AffineLayer(RecordedLayer):
    """``torch.nn.Linear``."""

    def __init__(self, layer: torch.nn.Linear, name: str, holder: CompositionHolder, on_edges: bool) -> None:
        super().__init__(name, holder, on_edges)
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """(n, in) to (n, out)."""
        return self.record(x, torch.nn.functional.linear(x, self.weight, self.bias))

    def gradients(self, record: Record, grad_output: Tensor) -> Iterator[Gradient]:
        """Weight (out, in) and bias."""
        rows, columns = self.weight.shape
        counts, structures = self.item_counts(), self.all_structures()
        yield Gradient(
            Slot(f"{self.name}.weight", 0, columns, rows, columns), grad_output, record.inputs, counts, structures
        )
        if self.bias is not None:
            ones = grad_output.new_ones(grad_output.shape[0], 1)
            yield Gradient(Slot(f"{self.name}.bias", 0, rows, 1, rows), ones, grad_output, counts, structures)


class NormLayer(RecordedLayer):
    """``torch.nn.LayerNorm`` over the last dimension."""

    def __init__(self, layer: torch.nn.LayerNorm, name: str, holder: CompositionHolder, on_edges: bool) -> None:
        super().__init__(name, holder, on_edges)
        self.weight, self.bias = layer.weight, layer.bias
        self.shape, self.eps = layer.normalized_shape, layer.eps

    def forward(self, x: Tensor) -> Tensor:
        """(n, c) to (n, c)."""
        return self.record(x, torch.nn.functional.layer_norm(x, self.shape, self.weight, self.bias, self.eps))

    def gradients(self, record: Record, grad_output: Tensor) -> Iterator[Gradient]:
        """Weight and bias, both (c,)."""
        width = self.weight.shape[0]
        counts, structures = self.item_counts(), self.all_structures()
        ones = grad_output.new_ones(grad_output.shape[0], 1)
        normalised = torch.nn.functional.layer_norm(record.inputs, self.shape, None, None, self.eps)
        slot = Slot(f"{self.name}.weight", 0, width, 1, width)
        yield Gradient(slot, ones, grad_output * normalised, counts, structures)
        if self.bias is not None:
            slot = Slot(f"{self.name}.bias", 0, width, 1, width)
            yield Gradient(slot, ones, grad_output, counts, structures)


class PolynomialContraction(RecordedLayer):
    """Symmetric contraction to one irrep: y_cm = Σ_ν Σ_k W^ν_zkc Σ_{i1 ≤ … ≤ iν} Û^ν_{m,i1…iν,k} x_ci1 ⋯ x_ciν.

    Û sums MACE's coupling tensor over the orders of its indices, so that each monomial is computed once, and only where
    some coefficient is not zero (MACE, Batatia et al. 2022, Eqs. 10 and 11).
    """

    def __init__(self, layer: Any, name: str, holder: CompositionHolder) -> None:
        super().__init__(name, holder)
        self.correlation = int(layer.correlation)
        self.weights_max, self.weights = layer.weights_max, layer.weights
        self.channels = int(layer.weights_max.shape[2])
        self.agnostic = layer.weights_max.shape[0] == 1
        self.components = 1
        self.slot_names: list[str] = []
        self.n_paths: list[int] = []
        coefficients = []
        for degree in range(1, self.correlation + 1):
            monomials, u = _symmetric_monomials(layer.U_tensors(degree), degree)
            self.components = u.shape[0]
            self.register_buffer(f"monomials_{degree}", monomials, persistent=False)
            coefficients.append(u)
            self.n_paths.append(u.shape[2])
            position = self.correlation - 1 - degree  # weights[0] belongs to degree ν − 1, weights[1] to ν − 2, …
            self.slot_names.append("weights_max" if degree == self.correlation else f"weights.{position}")
        for degree, u in enumerate(coefficients, start=1):
            # rows (m, k), columns monomials
            flat = u.permute(0, 2, 1).reshape(-1, u.shape[1]).contiguous()
            self.register_buffer(f"coefficients_{degree}", flat, persistent=False)

    def weight_of(self, degree: int) -> Tensor:
        """(elements, paths, channels) of the terms of ``degree``."""
        return self.weights_max if degree == self.correlation else self.weights[self.correlation - 1 - degree]

    def basis(self, x: Tensor) -> list[Tensor]:
        """For each degree (components, paths, N, channels): what the weights multiply."""
        columns = x.permute(2, 0, 1).reshape(x.shape[2], -1)  # (i, N · channels): a gathered row is contiguous
        basis = []
        for degree in range(1, self.correlation + 1):
            monomials = getattr(self, f"monomials_{degree}")
            product = columns.index_select(0, monomials[:, 0])
            for axis in range(1, degree):
                product = product * columns.index_select(0, monomials[:, axis])
            terms = getattr(self, f"coefficients_{degree}") @ product
            basis.append(terms.view(self.components, self.n_paths[degree - 1], x.shape[0], self.channels))
        return basis

    def forward(self, x: Tensor, node_attrs: Tensor) -> Tensor:
        """x (N, channels, Σ(2l + 1)) to (N, channels · components)."""
        del node_attrs
        species = self.holder.current.species
        index = torch.zeros_like(species) if self.agnostic else species
        basis = self.basis(x)
        out = x.new_zeros(self.components, x.shape[0], self.channels)
        for degree, terms in enumerate(basis, start=1):
            weight = self.weight_of(degree).transpose(0, 1).index_select(1, index)  # (paths, N, channels)
            out = out + (terms * weight).sum(dim=1)
        return self.record(basis, out.permute(1, 2, 0).reshape(x.shape[0], -1))

    def gradients(self, record: Record, grad_output: Tensor) -> Iterator[Gradient]:
        """One slot a degree and element, (paths × channels), already summed over the atoms of a structure."""
        composition = self.holder.current
        g = grad_output.view(-1, self.channels, self.components).permute(2, 0, 1)
        for degree, terms in enumerate(record.inputs, start=1):
            per_atom = (terms * g.unsqueeze(1)).sum(dim=0).transpose(0, 1)  # (N, paths, channels)
            _, paths, channels = self.weight_of(degree).shape
            for z, atoms in composition.groups(self.agnostic):
                counts, structures = composition.counts_of(atoms)
                owner = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
                summed = per_atom.new_zeros(len(counts), paths, channels).index_add(0, owner, per_atom[atoms])
                name = f"{self.name}.{self.slot_names[degree - 1]}"
                yield Gradient(
                    Slot(name, z * paths * channels, channels, paths, channels), None, summed, None, structures
                )


def _symmetric_monomials(u: Tensor, degree: int) -> tuple[Tensor, Tensor]:
    """From U of shape ([m,] i1, …, iν, k): index tuples i1 ≤ … ≤ iν (M, ν), coefficients (m, M, k) summed over orders."""
    if u.dim() == degree + 1:
        u = u.unsqueeze(0)
    used = (u != 0).any(dim=-1).any(dim=0).nonzero()
    ordered, group = torch.unique(torch.sort(used, dim=1).values, dim=0, return_inverse=True)
    where: tuple[Any, ...] = (slice(None), *used.unbind(1))
    picked = u[where]  # (m, used, k)
    summed = u.new_zeros(u.shape[0], len(ordered), u.shape[-1]).index_add_(1, group, picked)
    return ordered, summed
