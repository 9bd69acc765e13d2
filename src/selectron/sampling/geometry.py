"""Signs that a trajectory has left what a potential can describe."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

REASONS = (
    "energy or forces are not finite",
    "two atoms came too close",
    "a force became too large",
    "the energy rose too far above the start",
    "an atom moved too far in one step",
)


class Geometry(NamedTuple):
    """Limits beyond which a trajectory ends: distances in Å, forces in eV/Å, energy above the start in eV an atom.

    A model without neighbours inside its cutoff gives finite energies and no forces, so atoms that flew apart in one step
    look calm: what an atom may move in a step is limited too.
    """

    min_distance_A: float = 0.5
    max_force_eV_A: float = 200.0
    max_energy_rise_eV: float = 5.0
    max_step_A: float = 2.0


def broken(
    limits: Geometry,
    *,
    energies: Tensor,
    first_energies: Tensor,
    counts: Tensor,
    largest: Tensor,
    shortest: Tensor,
    moved: Tensor,
) -> Tensor:
    """(P,) int64: index into :data:`REASONS` of the first limit that is crossed, −1 where none is.

    All arguments are (P,): ``largest`` the largest force component in eV/Å, ``shortest`` the smallest distance in Å,
    ``moved`` how far the atom that moved most came in the last step, in Å.
    """
    finite = torch.isfinite(energies) & torch.isfinite(largest) & torch.isfinite(moved)
    tests = (
        ~finite,
        shortest < limits.min_distance_A,
        largest > limits.max_force_eV_A,
        energies - first_energies > limits.max_energy_rise_eV * counts,
        moved > limits.max_step_A,
    )
    found = torch.full(energies.shape, -1, dtype=torch.int64, device=energies.device)
    for index in range(len(tests) - 1, -1, -1):
        found = torch.where(tests[index], torch.full_like(found, index), found)
    return found
