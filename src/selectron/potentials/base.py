"""What a potential is: energies and forces of a batch, and what more it can give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from ase import Atoms
from torch import Tensor

from selectron.structures.graphs import GraphBatch


class Evaluation(NamedTuple):
    """What a potential says of a batch of B structures with N atoms.

    | field         | shape     | unit  | sign and meaning                                              |
    |---------------|-----------|-------|---------------------------------------------------------------|
    | energies      | (B,)      | eV    | total potential energy                                        |
    | forces        | (N, 3)    | eV/Å  | −∂E/∂r                                                        |
    | stress        | (B, 3, 3) | eV/Å³ | (1/V) ∂E/∂ε, positive under tension; None where not asked for |
    | node_features | (N, C)    | –     | invariant features of all layers; None where not asked for    |
    """

    energies: Tensor
    forces: Tensor | None = None
    stress: Tensor | None = None
    node_features: Tensor | None = None


class Differentiable(NamedTuple):
    """Energies of a batch as differentiable functions of its positions.

    | field         | shape  | unit | meaning                                                            |
    |---------------|--------|------|--------------------------------------------------------------------|
    | positions     | (N, 3) | Å    | a leaf that requires gradients                                     |
    | energies      | (B,)   | eV   | with graph                                                         |
    | node_features | (N, C) | –    | invariant features of all layers, with graph; None where not asked |
    """

    positions: Tensor
    energies: Tensor
    node_features: Tensor | None = None


class DifferentiablePotential(Protocol):
    """A potential whose energies and node features can be differentiated in the positions.

    MACE models and the analytic surfaces are; ASE calculators and TorchSim models are not.
    """

    def differentiable(self, batch: GraphBatch, *, node_features: bool = False) -> Differentiable:
        """Energies and, where asked for, node features of ``batch`` with their graph."""
        ...


class Potential(Protocol):
    """Energies and forces of batches of structures; :data:`capabilities` says what else.

    ``capabilities`` is a subset of {"energy", "forces", "stress", "node-features", "parameter-gradients"};
    ``elements`` the atomic numbers it knows (None: any); ``fingerprint`` a hash of all that its output depends on.
    """

    name: str
    capabilities: frozenset[str]
    elements: frozenset[int] | None
    fingerprint: str

    def batch(self, structures: Sequence[Atoms]) -> GraphBatch:
        """The graph batch that :meth:`evaluate` wants: right cutoff, device and dtype."""
        ...

    def evaluate(
        self, batch: GraphBatch, *, forces: bool = True, stress: bool = False, node_features: bool = False
    ) -> Evaluation:
        """Energies in eV and what else is asked for; raises SelectronError for what the potential cannot give."""
        ...
