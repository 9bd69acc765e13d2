"""The numbers under every key that may be a label: a column of energies, largest forces and stresses for each key.

Which key is the label's is known only when the last structure was seen, so each has its column, 8 bytes a structure.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable

import numpy as np
from ase import Atoms

from selectron.errors import SelectronError
from selectron.structures.label_source import LabelKeys
from selectron.structures.label_values import LabelSource, LabelValues, read_labels

COLUMNS_AT_MOST = 24
FAULTS_AT_MOST = 10_000


class LabelColumns:
    """Reads what stands under each key of structures that it is shown one by one; :attr:`faults` are what cannot be read.

    An energy is one number in eV; of forces the largest of an atom in eV/Å is kept, of a stress the largest component.
    """

    def __init__(self, keys: LabelKeys) -> None:
        self._roles = {keys.forces: "forces", keys.stress: "stress", keys.energy: "energy"}
        self._columns: dict[str, array[float]] = {}
        self.places = array("q")
        self.faults: dict[str, list[tuple[int, str]]] = defaultdict(list)
        """For each key (place in the pool, train's sentence)."""

    def add(self, place: int, index: int, atoms: Atoms, keys: Iterable[str]) -> None:
        """Takes structure ``place`` of the pool, which is number ``index`` of the training set, with its ``keys``."""
        self.places.append(place)
        for key in set(keys):
            column = self._columns.get(key)
            if column is None:
                if len(self._columns) >= COLUMNS_AT_MOST:
                    continue
                column = self._columns[key] = array("d")
            value = self._number(place, index, atoms, key)
            if value is not None:
                self._fill(column, len(self.places) - 1)
                column.append(value)

    def column(self, key: str | None) -> np.ndarray:
        """(n,) the numbers under ``key``; NaN where a structure has none that can be read."""
        column = self._columns.setdefault(key, array("d")) if key is not None else array("d")
        self._fill(column, len(self.places))
        return np.array(column)

    def role(self, key: str) -> str:
        """What ``key`` is read as: what the user named it for, else what :func:`role_of` says."""
        return self._roles.get(key) or role_of(key)

    def _number(self, place: int, index: int, atoms: Atoms, key: str) -> float | None:
        try:
            return self._read(atoms, key, index)
        except SelectronError as error:
            faults = self.faults[key]
            if len(faults) < FAULTS_AT_MOST:
                faults.append((place, str(error)))
            return None

    def _read(self, atoms: Atoms, key: str, index: int) -> float | None:
        role = self.role(key)
        if role == "energy":
            return read_labels(atoms, LabelSource(key, None), index=index).energy_eV
        found: LabelValues = (
            read_labels(atoms, LabelSource(_NOWHERE, key), index=index)
            if role == "forces"
            else read_labels(atoms, LabelSource(_NOWHERE, None, key), index=index)
        )
        if found.forces is not None:
            return float(np.sqrt(np.einsum("ij,ij->i", found.forces, found.forces).max()))
        return None if found.stress is None else float(np.abs(found.stress).max())

    @staticmethod
    def _fill(column: array[float], length: int) -> None:
        column.extend([np.nan] * (length - len(column)))


_NOWHERE = "\0"
"""A key that no structure has."""


def role_of(key: str) -> str:
    """ "energy", "forces" or "stress" (also a virial), by the name."""
    name = key.lower()
    if "force" in name:
        return "forces"
    return "stress" if "stress" in name or "virial" in name else "energy"
