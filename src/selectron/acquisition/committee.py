"""How much the members of a committee of models disagree about each structure."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import SelectronError


class CommitteeDisagreement(NamedTuple):
    """Standard deviations over the K members of a committee, float64.

    | field      | shape | unit    | meaning                                                          |
    |------------|-------|---------|------------------------------------------------------------------|
    | energy     | (n,)  | eV/atom | of the energy per atom                                           |
    | force_max  | (n,)  | eV/Å    | of the force vector, the largest over the atoms of the structure |
    | force_mean | (n,)  | eV/Å    | of the force vector, the mean over the atoms of the structure    |
    """

    energy: Tensor
    force_max: Tensor
    force_mean: Tensor


def committee_disagreement(energies: Tensor, forces: Tensor, counts: Tensor) -> CommitteeDisagreement:
    """Disagreement about n structures with N atoms in all.

    ``energies`` (K, n) in eV, ``forces`` (K, N, 3) in eV/Å with the atoms of one structure after those of another,
    ``counts`` (n,) atoms of each. For an atom: (⟨‖F − ⟨F⟩‖²⟩)^½ with ⟨·⟩ the mean over members, the model deviation
    of DP-GEN (Zhang et al., 2020); for the energy the standard deviation with the same 1/K. Raises
    `SelectronError` for fewer than two members and for shapes that do not fit together.
    """
    members, n = energies.shape
    if members < 2:
        raise SelectronError(f"Disagreement needs at least two committee members, but there is {members}.")
    if forces.shape != (members, int(counts.sum()), 3) or tuple(counts.shape) != (n,):
        raise SelectronError(
            f"Energies {tuple(energies.shape)}, forces {tuple(forces.shape)} and {int(counts.sum())} atoms in "
            f"{tuple(counts.shape)} structures do not fit together."
        )
    if bool((counts < 1).any()):
        raise SelectronError("Every structure of a committee's prediction has at least one atom.")
    atoms = counts.to(torch.float64)
    energy = (energies.to(torch.float64) / atoms).std(0, correction=0)
    centred = forces.to(torch.float64)
    centred = centred - centred.mean(0)
    per_atom = centred.square().sum(2).mean(0).sqrt()
    return CommitteeDisagreement(
        energy,
        torch.segment_reduce(per_atom, "max", lengths=counts),
        torch.segment_reduce(per_atom, "mean", lengths=counts),
    )
