"""Charges and multiplicities that structures state, and what stands in the way of understanding them."""

from __future__ import annotations

from collections import Counter

from ase import Atoms

from selectron.inspection.result import Charges
from selectron.structures.electronic_state import Stated


class ElectronsCensus:
    """Counts what structures state about their electrons."""

    def __init__(self) -> None:
        self._charges: Counter[int] = Counter()
        self._multiplicities: Counter[int] = Counter()
        self._keys: Counter[str] = Counter()
        self._unread: dict[str, tuple[int, str]] = {}
        self._assumed = {"charge": 0, "multiplicity": 0}
        self._odd = {"stated": 0, "assumed": 0}

    def add(self, atoms: Atoms, found: Stated) -> tuple[int, int]:
        """Takes one structure and what it states; gives its charge and multiplicity, 0 and 1 where it states none."""
        for counter, value, what in (
            (self._charges, found.charge, "charge"),
            (self._multiplicities, found.multiplicity, "multiplicity"),
        ):
            if value is None:
                self._assumed[what] += 1
            else:
                counter[value] += 1
        self._keys.update({*found.charge_from, *found.multiplicity_from})
        for one in (*found.unread_charge, *found.unread_multiplicity):
            count, example = self._unread.get(one.key, (0, one.value))
            self._unread[one.key] = (count + 1, example)
        charge, multiplicity = found.charge or 0, found.multiplicity or 1
        if not atoms.pbc.any() and (int(atoms.numbers.sum()) - charge - (multiplicity - 1)) % 2:
            self._odd["assumed" if found.multiplicity is None else "stated"] += 1
        return charge, multiplicity

    def result(self) -> Charges:
        """What was seen so far."""
        return Charges(
            charges=dict(sorted(self._charges.items())),
            multiplicities=dict(sorted(self._multiplicities.items())),
            keys=dict(self._keys.most_common()),
            unread={key: count for key, (count, _) in self._unread.items()},
            unread_examples={key: value for key, (_, value) in self._unread.items()},
            assumed_charge=self._assumed["charge"],
            assumed_multiplicity=self._assumed["multiplicity"],
            odd_assumed=self._odd["assumed"],
            impossible=self._odd["stated"],
        )
