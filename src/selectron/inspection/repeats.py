"""Structures that occur more than once, and whether their labels agree."""

from __future__ import annotations

from array import array

import numpy as np
from ase import Atoms

from selectron.inspection.result import Repeats
from selectron.structures.hashing import structure_hash

DIFFERENT_eV, DIFFERENT_RELATIVE = 1e-3, 1e-6
"""Energies of one geometry that are further apart than the sum of these (the second: of the energy) are two labels, not one
that was rounded."""
NAMED = 5


class RepeatsCensus:
    """Remembers the hash of every structure that it is shown, and its charge and multiplicity: 24 bytes each."""

    def __init__(self) -> None:
        self._hashes = bytearray()
        self._states = array("q")

    def add(self, atoms: Atoms, state: tuple[int, int] = (0, 1)) -> None:
        """Takes the next structure, of this charge and multiplicity."""
        self._hashes += bytes.fromhex(structure_hash(atoms))
        self._states.append(1000 * state[0] + state[1])

    def result(self, energies_eV: np.ndarray) -> Repeats:
        """What was seen so far. ``energies_eV`` (n,), NaN for none; a structure that occurs three times has two repeats."""
        if not len(self._states):
            return Repeats()
        _, group = np.unique(np.frombuffer(bytes(self._hashes), dtype="V16"), return_inverse=True)
        order = np.argsort(group, kind="stable")
        again = np.flatnonzero(np.diff(group[order]) == 0) + 1
        later, earlier = order[again], order[again - 1]
        states = np.array(self._states)
        same_state = states[later] == states[earlier]
        apart = np.abs(energies_eV[later] - energies_eV[earlier])
        near = DIFFERENT_eV + DIFFERENT_RELATIVE * np.abs(energies_eV[earlier])
        differ = np.flatnonzero(same_state & (apart > near))
        worst = differ[np.argsort(-apart[differ], kind="stable")][:NAMED]
        return Repeats(
            duplicates=len(again),
            other_state=int((~same_state).sum()),
            other_label=len(differ),
            examples=[(int(earlier[k]), int(later[k]), float(apart[k])) for k in worst],
        )
