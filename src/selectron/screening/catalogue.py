"""First pass over a pool: check every structure, and see that its feature rows are in the store."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from ase import Atoms

from selectron.acquisition import SecondMoment
from selectron.errors import SelectronError
from selectron.features import FeatureMap, FeatureStore, extract
from selectron.rows import Rows
from selectron.screening.progress import Progress
from selectron.structures import Checks, Pool, Quarantine, UnreadableFrame, structure_hash
from selectron.structures.repeats import Repeats

CHUNK = 512
"""Structures read, mapped and stored at a time."""


@dataclass
class Catalogue:
    """The usable structures of a pool, in its order, and where their rows are.

    | field   | shape    | meaning                                                                     |
    |---------|----------|-----------------------------------------------------------------------------|
    | indices | (n,)     | int64, place in the pool                                                    |
    | hashes  | (n,)     | structure hashes, 16 bytes each                                             |
    | atoms   | (n,)     | int64, number of atoms                                                      |
    | formula | n strings| Hill formula                                                                |
    | first   | (n,)     | bool, False where the same structure stands earlier in the pool             |
    | moment  | (D, D)   | Σ ΦᵀΦ over the distinct structures                                          |
    | other_states | –   | how many of the repeats state another charge or multiplicity than the first |
    """

    pool: Pool
    store: FeatureStore
    indices: np.ndarray
    hashes: np.ndarray
    atoms: np.ndarray
    formula: list[str]
    first: np.ndarray
    moment: SecondMoment
    other_states: int = 0

    def __len__(self) -> int:
        return len(self.indices)

    def keys(self, places: np.ndarray | slice) -> list[str]:
        """Hashes in hexadecimal of the catalogue's entries ``places``."""
        return [bytes(key).hex() for key in self.hashes[places]]

    def rows(self, places: np.ndarray | slice) -> Rows:
        """Feature rows of the catalogue's entries ``places``."""
        return self.store.get(self.keys(places))

    def chunks(self, size: int = 2048) -> Iterator[tuple[np.ndarray, Rows]]:
        """All entries in order, ``size`` at a time: places and rows."""
        for start in range(0, len(self), size):
            places = np.arange(start, min(start + size, len(self)))
            yield places, self.rows(places)


@dataclass
class _Entries:
    indices: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    atoms: list[int] = field(default_factory=list)
    formula: list[str] = field(default_factory=list)
    first: list[bool] = field(default_factory=list)


def catalogue(
    pool: Pool,
    features: FeatureMap,
    store: FeatureStore,
    *,
    checks: Checks,
    quarantine: Quarantine,
    progress: Progress,
    label: str,
    batch_size: int | None = None,
    examine: Callable[[list[Atoms]], list[str | None]] | None = None,
) -> Catalogue:
    """Reads ``pool`` once, in order; what cannot be used goes to ``quarantine`` with its reason.

    ``examine``, where given, sees the structures of each chunk that have features while they are in memory, in order,
    and gives a reason for each that cannot be used after all.

    Raises SelectronError where nothing can be used.
    """
    entries, repeats = _Entries(), Repeats()
    moment = SecondMoment(features.dim)
    first_reason = ""
    progress.start(label, len(pool))

    def refuse(index: int, reason: str) -> None:
        nonlocal first_reason
        first_reason = first_reason or reason
        quarantine.add(pool.source(index), reason)

    for chunk in pool.chunks(CHUNK):
        usable: list[tuple[int, Atoms]] = []
        for index, atoms in chunk:
            if isinstance(atoms, UnreadableFrame):
                refuse(index, atoms.reason)
            elif reason := checks.check(atoms):
                refuse(index, reason)
            else:
                usable.append((index, atoms))
        progress.advance(len(chunk) - len(usable))
        keys = [structure_hash(atoms) for _, atoms in usable]
        structures = [atoms for _, atoms in usable]
        rows, failed = extract(features, structures, keys, store, batch_size, progress.advance)
        mapped = [(index, atoms, key) for (index, atoms), key in zip(usable, keys, strict=True) if key not in failed]
        reasons = examine([atoms for _, atoms, _ in mapped]) if examine and mapped else [None] * len(mapped)
        for (index, _), key in zip(usable, keys, strict=True):
            if key in failed:
                refuse(index, failed[key])
        fresh: list[int] = []
        for place, ((index, atoms, key), wrong) in enumerate(zip(mapped, reasons, strict=True)):
            if wrong:
                refuse(index, wrong)
                continue
            digest = bytes.fromhex(key)
            first = not repeats.seen(digest, atoms)
            if first:
                fresh.append(place)
            entries.indices.append(index)
            entries.hashes.append(digest)
            entries.atoms.append(len(atoms))
            entries.formula.append(sys.intern(atoms.get_chemical_formula()))
            entries.first.append(first)
        if fresh:
            moment.update(rows if len(fresh) == rows.n_structures else rows.take(fresh))
    progress.finish()
    count = len(entries.indices)
    if not count:
        raise SelectronError(
            f"None of the {len(pool)} structures of the {label} can be used (the first: {first_reason})."
            if len(pool) > 1
            else f"The only structure of the {label} cannot be used: {first_reason}."
        )
    return Catalogue(
        pool=pool,
        store=store,
        indices=np.array(entries.indices, dtype=np.int64),
        hashes=np.frombuffer(b"".join(entries.hashes), dtype=np.uint8).reshape(count, 16),
        atoms=np.array(entries.atoms, dtype=np.int64),
        formula=entries.formula,
        first=np.array(entries.first, dtype=bool),
        moment=moment,
        other_states=repeats.other_states,
    )
