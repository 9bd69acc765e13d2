"""Errors of a model on held-out structures, and its predictions for the parity plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from selectron.potentials.base import Potential
from selectron.training.evaluate import Errors, batches, summarise, told
from selectron.training.labels import Labelled

QUANTITIES = ("force_rmse_eV_A", "force_mae_eV_A", "energy_rmse_meV_atom", "energy_mae_meV_atom")


class Predictions(NamedTuple):
    """A model's predictions and the references of n structures with N atoms in all.

    | field            | shape  | unit |
    |------------------|--------|------|
    | atoms            | (n,)   |      |
    | energy_eV        | (n,)   | eV   |
    | energy_label_eV  | (n,)   | eV   |
    | forces           | (N, 3) | eV/Å |
    | force_labels     | (N, 3) | eV/Å |
    """

    atoms: np.ndarray
    energy_eV: np.ndarray
    energy_label_eV: np.ndarray
    forces: np.ndarray
    force_labels: np.ndarray

    def errors(self) -> Errors:
        """Errors in total and by structure, as :func:`selectron.training.evaluate.errors` gives them."""
        differences = told(self.forces) - self.force_labels
        squares, moduli = (differences**2).sum(axis=1), np.abs(differences).sum(axis=1)
        starts = np.cumsum(self.atoms) - self.atoms
        components = 3 * self.atoms
        return summarise(
            told(self.energy_eV) - self.energy_label_eV,
            np.sqrt(np.add.reduceat(squares, starts) / components),
            np.add.reduceat(moduli, starts) / components,
            self.atoms,
        )

    def write(self, path: Path) -> None:
        """To a NumPy archive."""
        with open(path, "wb") as stream:
            np.savez(stream, **self._asdict())

    @classmethod
    def read(cls, path: Path) -> Predictions:
        """From :meth:`write`."""
        with np.load(path) as data:
            return cls(**{name: data[name] for name in cls._fields})


def predict(potential: Potential, structures: Sequence[Labelled]) -> Predictions:
    """Predictions of ``potential`` for labelled ``structures``, in float64."""
    counts = np.array([len(one.atoms) for one in structures])
    energies = np.empty(len(structures))
    forces: list[np.ndarray] = [np.zeros((0, 3))] * len(structures)
    for batch in batches(counts):
        graph = potential.batch([structures[i].atoms for i in batch])
        said = potential.evaluate(graph, forces=True)
        assert said.forces is not None
        energies[batch] = said.energies.double().cpu().numpy()
        parts = np.split(said.forces.double().cpu().numpy(), np.cumsum(counts[batch])[:-1])
        for i, part in zip(batch, parts, strict=True):
            forces[i] = part
    return Predictions(
        atoms=counts,
        energy_eV=energies,
        energy_label_eV=np.array([one.energy_eV for one in structures]),
        forces=np.concatenate(forces),
        force_labels=np.concatenate([one.forces for one in structures]),
    )


def summary(errors: Errors) -> dict[str, float | int]:
    """The totals of ``errors`` under the names of :data:`QUANTITIES`, and the number of structures."""
    return {
        "force_rmse_eV_A": errors.force_rmse,
        "force_mae_eV_A": errors.force_mae,
        "energy_rmse_meV_atom": errors.energy_rmse_meV_atom,
        "energy_mae_meV_atom": errors.energy_mae_meV_atom,
        "structures": len(errors.atoms),
    }


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with None for numbers that are not finite: JSON has no others."""
    return {
        name: None if isinstance(value, float) and not np.isfinite(value) else value for name, value in values.items()
    }
