"""Errors of a potential on labelled structures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase import Atoms

from selectron.errors import SelectronError
from selectron.potentials.base import Potential
from selectron.potentials.load import load_potential
from selectron.training.labels import Labelled, labelled

ATOMS_IN_A_BATCH = 1500


class Errors(NamedTuple):
    """Predicted minus label, over n structures.

    | field                     | shape | unit      | meaning                                          |
    |---------------------------|-------|-----------|--------------------------------------------------|
    | energy_mae_meV_atom       |       | meV/atom  | mean of |ΔE|/N                                   |
    | energy_rmse_meV_atom      |       | meV/atom  | root mean square of ΔE/N                         |
    | energy_rmse_eV            |       | eV        | root mean square of ΔE, the SKMD paper's measure |
    | force_mae                 |       | eV/Å      | over all force components                        |
    | force_rmse                |       | eV/Å      | over all force components                        |
    | energy_errors_eV          | (n,)  | eV        | ΔE of each structure                             |
    | force_rmse_by_structure   | (n,)  | eV/Å      | over the components of each structure            |
    | force_mae_by_structure    | (n,)  | eV/Å      | the same, mean of absolute values                |
    | atoms                     | (n,)  |           | number of atoms                                  |
    """

    energy_mae_meV_atom: float
    energy_rmse_meV_atom: float
    energy_rmse_eV: float
    force_mae: float
    force_rmse: float
    energy_errors_eV: np.ndarray
    force_rmse_by_structure: np.ndarray
    force_mae_by_structure: np.ndarray
    atoms: np.ndarray

    @property
    def finite(self) -> bool:
        """Whether every prediction was a number."""
        return bool(np.isfinite(self.energy_rmse_eV) and np.isfinite(self.force_rmse))

    def loss(self, energy_weight: float, forces_weight: float, *, squares: bool = True) -> float:
        """Weighted mean square as mace-torch's ``WeightedEnergyForcesLoss`` counts it: (eV/atom)² and (eV/Å)².

        Without ``squares`` weighted mean absolute errors of energies per atom (eV) and force components (eV/Å).
        """
        if not squares:
            return 1e-3 * energy_weight * self.energy_mae_meV_atom + forces_weight * self.force_mae
        return energy_weight * (1e-3 * self.energy_rmse_meV_atom) ** 2 + forces_weight * self.force_rmse**2

    def shifted(self, energy_eV: np.ndarray) -> Errors:
        """The same after ``energy_eV`` (n,) is added to the predicted energies."""
        return summarise(
            self.energy_errors_eV + energy_eV, self.force_rmse_by_structure, self.force_mae_by_structure, self.atoms
        )


def summarise(energy_errors_eV: np.ndarray, force_rmse: np.ndarray, force_mae: np.ndarray, atoms: np.ndarray) -> Errors:
    """Totals from the errors of each structure."""
    per_atom = 1e3 * energy_errors_eV / atoms
    return Errors(
        energy_mae_meV_atom=float(np.abs(per_atom).mean()),
        energy_rmse_meV_atom=float(np.sqrt((per_atom**2).mean())),
        energy_rmse_eV=float(np.sqrt((energy_errors_eV**2).mean())),
        force_mae=float((force_mae * atoms).sum() / atoms.sum()),
        force_rmse=float(np.sqrt((force_rmse**2 * atoms).sum() / atoms.sum())),
        energy_errors_eV=energy_errors_eV,
        force_rmse_by_structure=force_rmse,
        force_mae_by_structure=force_mae,
        atoms=atoms,
    )


def errors(
    model: Potential | str | Path,
    structures: Sequence[Atoms] | Sequence[Labelled],
    *,
    device: str = "cpu",
    dtype: str = "float64",
    head: str | None = None,
) -> Errors:
    """Errors of ``model`` on ``structures``, which carry labels.

    Args:
        model: a potential, or what :func:`selectron.load_potential` takes.
        structures: with energies (eV) and forces (eV/Å).
        device, dtype, head: for a model that is loaded here.

    Of a planar potential only the forces in its plane count.

    Raises:
        SelectronError: no structures, a missing label, an element that the model does not know.
    """
    labels = [one if isinstance(one, Labelled) else labelled([one], what="evaluation")[0] for one in structures]
    if not labels:
        raise SelectronError("There are no structures to evaluate the model on.")
    potential = (
        model if not isinstance(model, str | Path) else load_potential(model, device=device, dtype=dtype, head=head)
    )
    dimensions = getattr(potential, "dimensions", 3)
    energy = np.empty(len(labels))
    rmse, mae = np.empty(len(labels)), np.empty(len(labels))
    counts = np.array([len(one.atoms) for one in labels])
    for batch in batches(counts):
        graph = potential.batch([labels[i].atoms for i in batch])
        evaluation = potential.evaluate(graph, forces=True)
        assert evaluation.forces is not None
        predicted = evaluation.forces.double().cpu().numpy()
        energy[batch] = evaluation.energies.double().cpu().numpy()
        stops = np.cumsum(counts[batch])
        for i, rows in zip(batch, np.split(predicted, stops[:-1]), strict=True):
            difference = (rows - labels[i].forces)[:, :dimensions]
            rmse[i], mae[i] = np.sqrt((difference**2).mean()), np.abs(difference).mean()
    energy -= np.array([one.energy_eV for one in labels])
    return summarise(energy, rmse, mae, counts)


def batches(counts: np.ndarray, atoms: int = ATOMS_IN_A_BATCH) -> list[list[int]]:
    """Indices of structures in groups of like size with about ``atoms`` atoms together."""
    groups: list[list[int]] = []
    filled = 0
    for index in np.argsort(counts, kind="stable").tolist():
        if not groups or filled + counts[index] > atoms:
            groups.append([])
            filled = 0
        groups[-1].append(index)
        filled += int(counts[index])
    return groups
