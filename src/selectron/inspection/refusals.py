"""Structures that cannot be used, each with its reason, and the kinds of reasons."""

from __future__ import annotations

import re

from selectron.inspection.result import Refusal, RefusalKind
from selectron.structures.reader import Source

LISTED = 100_000
"""So many are kept one by one; beyond that they are only counted, so that memory stays bounded."""

_ATOM = re.compile(r"\b[A-Z][a-z]?\d+\b")
_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?(e[-+]?\d+)?")
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
_ELEMENTS = re.compile(r"(?<=does not know ).*")


class RefusalCensus:
    """Collects refusals; :attr:`count` is how many there were."""

    def __init__(self) -> None:
        self.count = 0
        self._listed: list[tuple[int, Refusal]] = []
        self._kinds: dict[str, RefusalKind] = {}

    def add(self, place: int, source: Source, reason: str) -> None:
        """Notes that structure ``place`` of the pool, which is that at ``source``, cannot be used."""
        self.count += 1
        refusal = Refusal(source.path, source.index, reason)
        if len(self._listed) < LISTED:
            self._listed.append((place, refusal))
        kind = kind_of(reason)
        if kind in self._kinds:
            self._kinds[kind].count += 1
        else:
            self._kinds[kind] = RefusalKind(1, refusal)

    def listed(self) -> list[Refusal]:
        """The refusals in the order of the pool, 100,000 at most."""
        return [refusal for _, refusal in sorted(self._listed, key=lambda entry: entry[0])]

    def kinds(self) -> list[RefusalKind]:
        """The kinds of reasons, the most frequent first."""
        return sorted(self._kinds.values(), key=lambda kind: -kind.count)


def kind_of(reason: str) -> str:
    """``reason`` without the atoms, elements, numbers and quoted texts of one structure."""
    return _NUMBER.sub("#", _ATOM.sub("atom", _QUOTED.sub("…", _ELEMENTS.sub("elements", reason))))
