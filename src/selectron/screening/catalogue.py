"""First pass over a pool: check every structure, and see that its feature rows are in the store."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from ase import Atoms

from selectron.acquisition import SecondMoment
from selectron.features import FeatureMap, FeatureStore, extract
from selectron.rows import Rows
from selectron.screening.progress import Progress
from selectron.structures import Checks, Pool, Quarantine, UnreadableFrame, structure_hash

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
    | moment  | (D, D)   | Σ ΦᵀΦ over the n structures                                                 |
    | mean    | (D,)     | mean over structures of the sum of their rows, float64                      |
    """

    pool: Pool
    store: FeatureStore
    indices: np.ndarray
    hashes: np.ndarray
    atoms: np.ndarray
    formula: list[str]
    first: np.ndarray
    moment: SecondMoment
    mean: torch.Tensor
    quarantined: int = 0

    def __len__(self) -> int:
        return len(self.indices)

    def keys(self, places: np.ndarray | slice) -> list[str]:
        """Hashes in hexadecimal of the catalogue's entries ``places``."""
        return [bytes(key).hex() for key in self.hashes[places]]

    def rows(self, places: np.ndarray | slice) -> Rows:
        """Feature rows of the catalogue's entries ``places``."""
        return self.store.get(self.keys(places))

    def chunks(self, size: int = 8192) -> Iterator[tuple[np.ndarray, Rows]]:
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
    watch: Callable[[np.ndarray, list[Atoms]], None] | None = None,
) -> Catalogue:
    """Reads ``pool`` once, in order; what cannot be used goes to ``quarantine`` with its reason.

    ``watch``, where given, is called with the catalogue's places and structures of each chunk while they are in memory.
    """
    entries, seen = _Entries(), set[bytes]()
    moment, total = SecondMoment(features.dim), torch.zeros(features.dim, dtype=torch.float64)
    before = len(quarantine)
    progress.start(label, len(pool))
    for chunk in pool.chunks(CHUNK):
        usable: list[tuple[int, Atoms]] = []
        for index, atoms in chunk:
            reason = atoms.reason if isinstance(atoms, UnreadableFrame) else checks.check(atoms)
            if reason is not None:
                quarantine.add(pool.source(index), reason)
            elif not isinstance(atoms, UnreadableFrame):
                usable.append((index, atoms))
        keys = [structure_hash(atoms) for _, atoms in usable]
        rows, failed = extract(features, [atoms for _, atoms in usable], keys, store, batch_size)
        for (index, _), key in zip(usable, keys, strict=True):
            if key in failed:
                quarantine.add(pool.source(index), failed[key])
        kept = [(index, atoms, key) for (index, atoms), key in zip(usable, keys, strict=True) if key not in failed]
        place = len(entries.indices)
        for index, atoms, key in kept:
            digest = bytes.fromhex(key)
            entries.indices.append(index)
            entries.hashes.append(digest)
            entries.atoms.append(len(atoms))
            entries.formula.append(sys.intern(atoms.get_chemical_formula()))
            entries.first.append(digest not in seen)
            seen.add(digest)
        if kept:
            moment.update(rows)
            total += rows.values.to(torch.float64).sum(dim=0)
            if watch is not None:
                watch(np.arange(place, place + len(kept)), [atoms for _, atoms, _ in kept])
        progress.advance(len(chunk))
    progress.finish()
    count = len(entries.indices)
    return Catalogue(
        pool=pool,
        store=store,
        indices=np.array(entries.indices, dtype=np.int64),
        hashes=np.frombuffer(b"".join(entries.hashes), dtype=np.uint8).reshape(count, 16),
        atoms=np.array(entries.atoms, dtype=np.int64),
        formula=entries.formula,
        first=np.array(entries.first, dtype=bool),
        moment=moment,
        mean=total / max(count, 1),
        quarantined=len(quarantine) - before,
    )
