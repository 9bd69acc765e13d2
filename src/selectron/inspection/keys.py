"""Which keys the structures of files carry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from ase import Atoms

from selectron.structures.label_values import results_of

KEYS_AT_MOST = 1000
"""Different keys that are counted; comment lines that are free text can give as many as there are words."""

_EVERYBODYS = {"numbers", "positions"}


class KeysCensus:
    """Counts the keys of ``info``, of per-atom arrays, and of what calculators left."""

    def __init__(self) -> None:
        self.info: Counter[str] = Counter()
        self.arrays: Counter[str] = Counter()
        self.results: Counter[str] = Counter()

    def add(self, atoms: Atoms) -> None:
        """Takes one structure."""
        self._count(self.info, atoms.info)
        self._count(self.arrays, atoms.arrays.keys() - _EVERYBODYS)
        self._count(self.results, results_of(atoms))

    @staticmethod
    def _count(counter: Counter[str], keys: Iterable[object]) -> None:
        for key in map(str, keys):
            if key in counter or len(counter) < KEYS_AT_MOST:
                counter[key] += 1
