"""A committee: several potentials asked the same question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from ase import Atoms
from torch import Tensor

from selectron.errors import SelectronError
from selectron.potentials.base import Potential


class CommitteeEvaluation(NamedTuple):
    """What K members say of B structures with N atoms: energies (K, B) in eV, forces (K, N, 3) in eV/Å, counts (B,)."""

    energies: Tensor
    forces: Tensor
    counts: Tensor


class Committee:
    """At least two potentials; ``elements`` are those that every member knows."""

    def __init__(self, members: Sequence[Potential]) -> None:
        if len(members) < 2:
            raise SelectronError("A committee needs at least two models: give --model more than once.")
        if len({member.fingerprint for member in members}) < len(members):
            raise SelectronError("Two members of the committee are the same model, so they cannot disagree.")
        self.members = list(members)
        known = [member.elements for member in members if member.elements is not None]
        self.elements: frozenset[int] | None = frozenset.intersection(*known) if known else None

    def evaluate(self, structures: Sequence[Atoms]) -> CommitteeEvaluation:
        """float64 on the CPU."""
        results = [member.evaluate(member.batch(structures)) for member in self.members]
        forces = [result.forces for result in results if result.forces is not None]
        return CommitteeEvaluation(
            torch.stack([result.energies.to("cpu", torch.float64) for result in results]),
            torch.stack([force.to("cpu", torch.float64) for force in forces]),
            torch.tensor([len(atoms) for atoms in structures]),
        )
