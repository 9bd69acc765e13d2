"""Whether a structure can be used at all, and if not, why not."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from ase.geometry import complete_cell
from ase.neighborlist import primitive_neighbor_list
from scipy.spatial import cKDTree
from scipy.spatial.distance import pdist

from selectron.structures.isolated import is_isolated_atom

_FLAT_A = 0.1  # a periodic cell thinner than this holds no crystal
_FLAT_SINE = 1e-3  # volume of the unit vectors along the periodic directions; below this they do not span a cell
_ALL_PAIRS_UP_TO = 200  # atoms; below this all distances of a molecule are quicker than a tree


@dataclass(frozen=True)
class Checks:
    """What every structure of a pool has to satisfy.

    Args:
        elements: atomic numbers that the model knows; None for all elements.
        min_distance_A: atoms closer than this, periodic images included, overlap. The default lies below every pair
            of atoms in 50,000 published minima, transition states, molecular-dynamics frames and surfaces (the
            tightest: 0.50 Å; the next: 0.70 Å). 0 turns the check off.
        max_atoms: largest number of atoms; None for no limit.
        isolated_atoms: whether an atom alone in vacuum can be used; it can where references are wanted, not where
            structures are picked or errors measured.
    """

    elements: frozenset[int] | None = None
    min_distance_A: float = 0.4
    max_atoms: int | None = None
    isolated_atoms: bool = True

    def __post_init__(self) -> None:
        if not (np.isfinite(self.min_distance_A) and self.min_distance_A >= 0):
            raise ValueError(f"min_distance_A is a length of at least 0, not {self.min_distance_A}")

    def check(self, atoms: Atoms) -> str | None:
        """None for a structure that can be used, else one short sentence that says what is wrong with it."""
        return (
            self._count(atoms)
            or self._elements(atoms)
            or _positions(atoms)
            or _cell(atoms)
            or (None if self.isolated_atoms else _isolated(atoms))
            or (self._overlaps(atoms) if self.min_distance_A > 0 else None)
        )

    @cached_property
    def _known(self) -> np.ndarray:
        """Bool by atomic number."""
        known = np.zeros(len(chemical_symbols), dtype=bool)
        known[list(self.elements) if self.elements is not None else slice(None)] = True
        known[0] = False
        return known

    def _count(self, atoms: Atoms) -> str | None:
        if len(atoms) == 0:
            return "it has no atoms"
        if self.max_atoms is not None and len(atoms) > self.max_atoms:
            return f"it has {len(atoms)} atoms, more than the limit of {self.max_atoms}"
        return None

    def _elements(self, atoms: Atoms) -> str | None:
        numbers = atoms.numbers
        if numbers.min() >= 0 and numbers.max() < len(self._known) and self._known[numbers].all():
            return None
        valid = (numbers >= 0) & (numbers < len(self._known))
        unknown = np.unique(numbers[~valid | ~self._known[np.where(valid, numbers, 0)]]).tolist()
        names = ", ".join(chemical_symbols[z] if 0 < z < len(chemical_symbols) else f"number {z}" for z in unknown)
        return f"the model does not know {names}" if self.elements is not None else f"{names} is no element"

    def _overlaps(self, atoms: Atoms) -> str | None:
        closest = closest_pair(atoms, self.min_distance_A)
        if closest is None:
            return None
        i, j, distance = closest
        first, second = (f"{chemical_symbols[atoms.numbers[k]]}{k}" for k in (i, j))
        pair = f"{first} and its own periodic image" if i == j else f"{first} and {second}"
        return f"{pair} are {distance:.3f} Å apart, closer than {self.min_distance_A:g} Å"


def _isolated(atoms: Atoms) -> str | None:
    if not is_isolated_atom(atoms):
        return None
    return "it is an isolated atom, which gives a reference energy and is neither picked nor counted"


def _positions(atoms: Atoms) -> str | None:
    finite = np.isfinite(atoms.arrays["positions"])
    if finite.all():
        return None
    return f"the position of atom {int(np.argmin(finite.all(axis=1)))} is not finite"


def _cell(atoms: Atoms) -> str | None:
    pbc = atoms.pbc
    if not pbc.any():
        return None
    cell = atoms.cell.array
    if not np.isfinite(cell).all():
        return "its cell is not finite"
    lengths = np.sqrt(np.einsum("ij,ij->i", cell, cell))
    for axis, name in enumerate("abc"):
        if pbc[axis] and lengths[axis] < _FLAT_A:
            return f"it is periodic along {name}, where its cell vector is {lengths[axis]:.3g} Å long"
    unit = cell[pbc] / lengths[pbc, None]
    if len(unit) > 1 and np.linalg.det(unit @ unit.T) < _FLAT_SINE**2:
        return "its cell is flat: the periodic cell vectors do not span " + (
            "a volume" if len(unit) == 3 else "an area"
        )
    return None


def closest_pair(atoms: Atoms, cutoff_A: float) -> tuple[int, int, float] | None:
    """The two atoms (i ≤ j) nearest to each other, and their distance in Å, if it is below ``cutoff_A``.

    Periodic images count, an atom's own too (i = j). The cell must be usable.
    """
    positions, pbc = atoms.arrays["positions"], atoms.pbc
    if not pbc.any():
        return _closest_in_molecule(positions, cutoff_A)
    cell = atoms.cell.array if pbc.all() else complete_cell(np.where(pbc[:, None], atoms.cell.array, 0.0))
    inverse = np.linalg.inv(cell)
    heights = 1.0 / np.sqrt(np.einsum("ij,ij->j", inverse, inverse))
    if heights[pbc].min() <= 2 * cutoff_A:
        i, j, distance = primitive_neighbor_list("ijd", pbc, cell, positions, cutoff_A)
        return _shortest(i, j, distance, cutoff_A)
    # For a vector s shorter than half of every height h_k its fractional components obey |s_k| ≤ |s| / h_k < 1/2:
    # rounding finds the nearest image exactly, and a box in the coordinates s_k h_k holds every candidate.
    fractional = positions @ inverse
    boxed = np.where(pbc, fractional - np.floor(fractional), fractional) * heights
    size = np.where(pbc, heights, 0.0)
    boxed = np.where(pbc & (boxed >= size), 0.0, boxed)
    pairs = cKDTree(boxed, boxsize=size).query_pairs(cutoff_A, p=np.inf, output_type="ndarray")
    if not len(pairs):
        return None
    difference = fractional[pairs[:, 1]] - fractional[pairs[:, 0]]
    difference -= np.where(pbc, np.rint(difference), 0.0)
    return _shortest(pairs[:, 0], pairs[:, 1], np.linalg.norm(difference @ cell, axis=1), cutoff_A)


def _closest_in_molecule(positions: np.ndarray, cutoff_A: float) -> tuple[int, int, float] | None:
    count = len(positions)
    if count < 2:
        return None
    if count <= _ALL_PAIRS_UP_TO:
        distances = pdist(positions)
        best = int(distances.argmin())
        if distances[best] >= cutoff_A:
            return None
        i, j = (int(index[best]) for index in np.triu_indices(count, 1))
        return i, j, float(distances[best])
    pairs = cKDTree(positions).query_pairs(cutoff_A, output_type="ndarray")
    distances = np.linalg.norm(positions[pairs[:, 1]] - positions[pairs[:, 0]], axis=1)
    return _shortest(pairs[:, 0], pairs[:, 1], distances, cutoff_A)


def _shortest(i: np.ndarray, j: np.ndarray, distance: np.ndarray, cutoff_A: float) -> tuple[int, int, float] | None:
    if not len(distance):
        return None
    best = int(distance.argmin())
    if distance[best] >= cutoff_A:
        return None
    first, second = sorted((int(i[best]), int(j[best])))
    return first, second, float(distance[best])
