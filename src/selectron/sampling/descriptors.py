"""Global descriptors d of whole configurations, and their Jacobians: what the kernels of SKMD and metadynamics compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from selectron.errors import SelectronError
from selectron.potentials.base import Potential
from selectron.structures.graphs import GraphBatch


class GlobalDescriptor(Protocol):
    """A map from a configuration to D numbers.

    ``values`` takes positions (N, 3) in Å, node features (N, C) where ``needs_node_features``, and the batch without its
    positions; it returns (P, D) and can be differentiated. ``identity`` says that d is the flat vector of coordinates.
    """

    name: str
    needs_node_features: bool
    identity: bool

    def values(self, positions: Tensor, node_features: Tensor | None, template: GraphBatch) -> Tensor:
        """(P, D)."""
        ...


class NodeFeatures:
    """Sum or mean over atoms of the model's invariant node features, of all layers (SKMD, section 5.2: the sum).

    ``atoms`` restricts it to some atoms of each structure, for example those of an interface (SKMD, section 2.1).
    """

    name = "node-features"
    needs_node_features = True
    identity = False

    def __init__(self, *, mean: bool = False, atoms: Sequence[int] | None = None) -> None:
        self.mean = mean
        self.atoms = None if atoms is None else tuple(atoms)

    def values(self, positions: Tensor, node_features: Tensor | None, template: GraphBatch) -> Tensor:
        """(P, C)."""
        del positions
        assert node_features is not None
        owner, features = template.system_idx, node_features
        if self.atoms is not None:
            if max(self.atoms) >= int(template.counts.min()) or min(self.atoms) < 0:
                raise SelectronError(f"The descriptor names atom {max(self.atoms)}, which a structure does not have.")
            starts = torch.cumsum(template.counts, 0) - template.counts
            chosen = (starts[:, None] + torch.tensor(self.atoms, device=starts.device)).flatten()
            owner, features = owner[chosen], features[chosen]
        out = features.new_zeros(template.n_structures, features.shape[1]).index_add(0, owner, features)
        if not self.mean:
            return out
        count = template.counts if self.atoms is None else torch.full_like(template.counts, len(self.atoms))
        return out / count[:, None].to(out.dtype)


class Coordinates:
    """The coordinates themselves: for points on a surface, and for the Cartesian kernels that alignment is made for."""

    name = "coordinates"
    needs_node_features = False
    identity = True

    def values(self, positions: Tensor, node_features: Tensor | None, template: GraphBatch) -> Tensor:
        """(P, 3n); all structures have n atoms."""
        del node_features
        return positions.reshape(template.n_structures, -1)


class InverseDistances:
    """1/r of every pair of atoms (Å⁻¹): invariant to rotation and translation, and free of any model.

    Atoms keep their labels, so exchanging two hydrogens changes d; for molecules, not for periodic cells.
    """

    name = "inverse-distances"
    needs_node_features = False
    identity = False

    def values(self, positions: Tensor, node_features: Tensor | None, template: GraphBatch) -> Tensor:
        """(P, n(n − 1)/2); all structures have n atoms."""
        del node_features
        if bool(template.pbc.any()):
            raise SelectronError(
                "The descriptor inverse-distances is for molecules; periodic cells want node-features."
            )
        n = positions.shape[0] // template.n_structures
        apart = positions.reshape(template.n_structures, n, 3)
        first, second = torch.triu_indices(n, n, 1, device=positions.device)
        return 1.0 / (apart[:, first] - apart[:, second]).norm(dim=-1)


class Projected:
    """``count`` random orthonormal directions of another descriptor, times √(D/count): distances are kept on average.

    A Jacobian costs one backward pass a component. Models with hundreds of node features make that dear for crystals, and
    in a random subspace of q dimensions distances scatter by about √(2/q) only (Johnson & Lindenstrauss 1984). The
    kernel on the projection is a kernel on configurations like any other, so all that SKMD promises stays true.
    """

    identity = False

    def __init__(self, descriptor: GlobalDescriptor, count: int, *, seed: int = 0) -> None:
        if count < 1:
            raise SelectronError(f"A projection has at least one direction, not {count}.")
        self.descriptor, self.count, self.seed = descriptor, count, seed
        self.name = f"{descriptor.name}, {count} random directions"
        self.needs_node_features = descriptor.needs_node_features
        self._directions: Tensor | None = None

    def values(self, positions: Tensor, node_features: Tensor | None, template: GraphBatch) -> Tensor:
        """(P, count); the descriptor itself where it has no more components than that."""
        whole = self.descriptor.values(positions, node_features, template)
        if whole.shape[1] <= self.count:
            return whole
        return whole @ self._projection(whole)

    def _projection(self, like: Tensor) -> Tensor:
        known = self._directions
        if known is None or known.shape[0] != like.shape[1] or known.dtype != like.dtype or known.device != like.device:
            generator = torch.Generator().manual_seed(self.seed)
            drawn = torch.randn(like.shape[1], self.count, generator=generator, dtype=torch.float64)
            orthonormal = torch.linalg.qr(drawn).Q * (like.shape[1] / self.count) ** 0.5
            known = self._directions = orthonormal.to(like.device, like.dtype)
        return known


DESCRIPTORS: dict[str, Callable[[], GlobalDescriptor]] = {
    NodeFeatures.name: NodeFeatures,
    "mean-node-features": lambda: NodeFeatures(mean=True),
    Coordinates.name: Coordinates,
    InverseDistances.name: InverseDistances,
}


def traced(
    potential: Potential, descriptor: GlobalDescriptor, batch: GraphBatch
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Positions (a leaf), energies (P,) or None where they are not computed on the way, and descriptors (P, D), with graph."""
    if descriptor.needs_node_features:
        if not hasattr(potential, "differentiable"):
            raise SelectronError(
                f"{potential.name} gives no node features that can be differentiated: choose the descriptor "
                "inverse-distances or coordinates, or a MACE model."
            )
        found = potential.differentiable(batch, node_features=True)
        return found.positions, found.energies, descriptor.values(found.positions, found.node_features, batch)
    with torch.enable_grad():
        leaf = batch.positions.detach().clone().requires_grad_(True)
        return leaf, None, descriptor.values(leaf, None, batch)


def jacobians(potential: Potential, descriptor: GlobalDescriptor, batch: GraphBatch) -> Tensor:
    """J = ∂d/∂r of each structure, (P, D, 3n), for structures of one size n.

    One backward pass a component of d, all structures of the batch at once.
    """
    leaf, _, values = traced(potential, descriptor, batch)
    rows: list[Any] = []
    for component in range(values.shape[1]):
        (gradient,) = torch.autograd.grad(values[:, component].sum(), leaf, retain_graph=True)
        rows.append(gradient.reshape(batch.n_structures, -1))
    return torch.stack(rows, dim=1)
