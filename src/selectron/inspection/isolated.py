"""Isolated atoms: which elements, and what energies they have under each key."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import suppress

from ase import Atoms

from selectron.errors import SelectronError
from selectron.inspection.columns import role_of
from selectron.structures.label_values import LabelSource, read_labels


class IsolatedCensus:
    """Counts isolated atoms that it is shown one by one."""

    def __init__(self) -> None:
        self.elements: Counter[str] = Counter()
        self._energies: dict[str, dict[str, set[float]]] = defaultdict(lambda: defaultdict(set))

    def add(self, atoms: Atoms, keys: Iterable[str]) -> None:
        """Takes one isolated atom with the keys that may be its labels."""
        symbol = atoms.symbols[0]
        self.elements[symbol] += 1
        for key in keys:
            if role_of(key) == "energy":
                with suppress(SelectronError):  # an energy that is no number is told where it is needed
                    energy = read_labels(atoms, LabelSource(key, None), index=0).energy_eV
                    if energy is not None:
                        self._energies[key][symbol].add(round(energy, 9))

    def energies_eV(self, key: str | None) -> dict[str, list[float]]:
        """The different energies of each element under ``key``."""
        return {symbol: sorted(found) for symbol, found in self._energies.get(key or "", {}).items()}
