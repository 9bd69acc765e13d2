"""Errors of a potential on labelled structures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
from ase import Atoms

from selectron.errors import SelectronError
from selectron.potentials.base import Potential
from selectron.potentials.load import load_potential
from selectron.training.labels import Labelled, labelled_set, without_isolated_atoms

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

    A label that is not to be used (:class:`~selectron.training.labels.Labelled`) has the error NaN by structure, and enters no
    total; a total of nothing is NaN.
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
        """Whether every prediction that has a label was a number."""
        return not (np.isinf(self.energy_errors_eV).any() or np.isinf(self.force_rmse_by_structure).any())

    def loss(self, energy_weight: float, forces_weight: float, *, squares: bool = True) -> float:
        """Weighted mean square as mace-torch's ``WeightedEnergyForcesLoss`` counts it: (eV/atom)² and (eV/Å)².

        Without ``squares`` weighted mean absolute errors of energies per atom (eV) and force components (eV/Å). A term without
        labels is 0.
        """
        if squares:
            terms = [(1e-3 * self.energy_rmse_meV_atom) ** 2, self.force_rmse**2]
        else:
            terms = [1e-3 * self.energy_mae_meV_atom, self.force_mae]
        return float(np.nansum(np.array(terms) * [energy_weight, forces_weight]))

    def shifted(self, energy_eV: np.ndarray) -> Errors:
        """The same after ``energy_eV`` (n,) is added to the predicted energies."""
        return summarise(
            self.energy_errors_eV + energy_eV, self.force_rmse_by_structure, self.force_mae_by_structure, self.atoms
        )


def summarise(energy_errors_eV: np.ndarray, force_rmse: np.ndarray, force_mae: np.ndarray, atoms: np.ndarray) -> Errors:
    """Totals from the errors of each structure; NaN there: no label, infinite: a prediction that is no number."""
    per_atom = 1e3 * energy_errors_eV / atoms
    forces = np.where(np.isnan(force_rmse), 0, atoms)
    return Errors(
        energy_mae_meV_atom=_mean(np.abs(per_atom)),
        energy_rmse_meV_atom=_mean(per_atom**2) ** 0.5,
        energy_rmse_eV=_mean(energy_errors_eV**2) ** 0.5,
        force_mae=_mean(force_mae, forces),
        force_rmse=_mean(force_rmse**2, forces) ** 0.5,
        energy_errors_eV=energy_errors_eV,
        force_rmse_by_structure=force_rmse,
        force_mae_by_structure=force_mae,
        atoms=atoms,
    )


def _mean(values: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Of those that are not NaN; NaN where there are none."""
    known = ~np.isnan(values)
    if not known.any():
        return float("nan")
    weights = np.ones(len(values)) if weights is None else weights
    return float((values[known] * weights[known]).sum() / weights[known].sum())


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

    Isolated atoms are left out, and so are labels whose weight is 0. Of a planar potential only the forces in its plane count.

    Raises:
        SelectronError: no structures, a missing label, an element that the model does not know.
    """
    potential = (
        model if not isinstance(model, str | Path) else load_potential(model, device=device, dtype=dtype, head=head)
    )
    dimensions = getattr(potential, "dimensions", 3)
    labels = [one for one in structures if isinstance(one, Labelled)]
    if not labels:
        found = labelled_set(
            cast("Sequence[Atoms]", structures), what="evaluation", head=head, planar=dimensions == 2
        ).structures
        labels = found if dimensions == 2 else without_isolated_atoms(found, what="evaluation")[0]
    if not labels:
        raise SelectronError("There are no structures to evaluate the model on.")
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
            difference = (told(rows) - labels[i].forces)[:, :dimensions]
            rmse[i], mae[i] = np.sqrt((difference**2).mean()), np.abs(difference).mean()
    return summarise(told(energy) - np.array([one.energy_eV for one in labels]), rmse, mae, counts)


def told(predicted: np.ndarray) -> np.ndarray:
    """Predictions that are no numbers as infinite: NaN stands for a label that is not to be used."""
    return np.where(np.isnan(predicted), np.inf, predicted)


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
