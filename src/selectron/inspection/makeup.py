"""What structures are made of: elements, sizes, and the directions in which they go on without end."""

from __future__ import annotations

from array import array
from collections import Counter

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from selectron.inspection.result import Makeup, Range

VACUUM_A = 8.0
"""A layer without atoms wider than this, within a cell that is periodic across it, is taken for vacuum."""

_KINDS = {0: "molecule", 1: "chain", 2: "slab", 3: "crystal"}


class MakeupCensus:
    """Counts elements, sizes and periodicity of structures that it is shown one by one."""

    def __init__(self) -> None:
        self._structures = np.zeros(len(chemical_symbols), dtype=np.int64)
        self._atoms = np.zeros(len(chemical_symbols), dtype=np.int64)
        self._sizes = array("i")
        self._kinds: Counter[str] = Counter()
        self._boxed: Counter[str] = Counter()

    def add(self, atoms: Atoms, counts: np.ndarray) -> None:
        """Takes one structure that passed the checks, and how many atoms of each atomic number it has (:func:`counts_of`)."""
        self._atoms += counts
        self._structures += counts > 0
        self._sizes.append(len(atoms))
        self._kinds[periodicity(atoms.pbc)] += 1
        if atoms.pbc.any() and len(atoms) > 1:
            empty = vacuum(atoms)
            if empty:
                self._boxed[empty] += 1

    def result(self) -> Makeup:
        """What was seen so far."""
        present = np.flatnonzero(self._structures).tolist()
        return Makeup(
            structures={chemical_symbols[z]: int(self._structures[z]) for z in present},
            atoms={chemical_symbols[z]: int(self._atoms[z]) for z in present},
            sizes=Range.of(np.frombuffer(self._sizes, dtype=np.int32)),
            kinds=dict(self._kinds.most_common()),
            with_vacuum=dict(self._boxed.most_common()),
        )


def counts_of(atoms: Atoms) -> np.ndarray:
    """(119,) how many atoms of each atomic number, from 0 on."""
    return np.bincount(atoms.numbers, minlength=len(chemical_symbols))


def periodicity(pbc: np.ndarray) -> str:
    """The kind by its periodic directions: molecule, crystal, "slab (open along c)" or "chain (open along b, c)"."""
    kind = _KINDS[int(pbc.sum())]
    if kind in ("molecule", "crystal"):
        return kind
    return f"{kind} (open along {', '.join(name for name, closed in zip('abc', pbc, strict=True) if not closed)})"


def vacuum(atoms: Atoms) -> str:
    """The periodic directions ("c", "a, b") with an empty layer of more than 8 Å between an atom and the next; "" for none.

    Measured at right angles to the two other cell vectors. Such cells are slabs, chains and molecules in a box.
    """
    cell = atoms.cell.complete().array
    inverse = np.linalg.inv(cell)
    heights = 1.0 / np.sqrt(np.einsum("ij,ij->j", inverse, inverse))
    within = np.sort((atoms.arrays["positions"] @ inverse) % 1.0, axis=0)
    gaps = np.maximum(np.diff(within, axis=0).max(axis=0), 1.0 + within[0] - within[-1]) * heights
    return ", ".join(
        name for name, gap, closed in zip("abc", gaps, atoms.pbc, strict=True) if closed and gap > VACUUM_A
    )
