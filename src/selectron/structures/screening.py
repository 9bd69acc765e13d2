"""The structures of a pool that can be used, with the others on record."""

from __future__ import annotations

from collections.abc import Iterator

from ase import Atoms

from selectron.structures.checks import Checks
from selectron.structures.pool import Pool
from selectron.structures.quarantine import Quarantine
from selectron.structures.reader import UnreadableFrame


def usable_chunks(pool: Pool, checks: Checks, quarantine: Quarantine, size: int) -> Iterator[list[tuple[int, Atoms]]]:
    """Pairs (index in the pool, structure) in order, in lists of ``size`` (the last may be shorter).

    What cannot be parsed or does not pass ``checks`` goes to ``quarantine`` with its file, index and reason.
    """
    usable: list[tuple[int, Atoms]] = []
    for chunk in pool.chunks(size):
        for index, entry in chunk:
            if isinstance(entry, UnreadableFrame):
                quarantine.add(pool.source(index), entry.reason)
            elif reason := checks.check(entry):
                quarantine.add(pool.source(index), reason)
            else:
                usable.append((index, entry))
        while len(usable) >= size:
            yield usable[:size]
            usable = usable[size:]
    if usable:
        yield usable
