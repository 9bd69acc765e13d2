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
