"""What a pool gives a campaign: candidates, and the structures that are held out of it."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
from ase import Atoms

from selectron.config.sections import HeldOut
from selectron.errors import SelectronError
from selectron.screening.progress import Progress
from selectron.structures import Checks, Pool, Source, UnreadableFrame, structure_hash
from selectron.structures.repeats import Repeats

CHUNK = 512


class PoolPart(Pool):
    """The structures ``indices`` of another pool, in that order; sources are those of the other pool."""

    def __init__(self, whole: Pool, indices: np.ndarray) -> None:
        self._whole, self._indices = whole, np.asarray(indices, dtype=np.int64)
        self.warnings = whole.warnings

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Atoms: ...
    @overload
    def __getitem__(self, index: slice) -> list[Atoms]: ...
    def __getitem__(self, index: int | slice) -> Atoms | list[Atoms]:
        """Structure ``index`` of the part, or a list for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._whole[int(self._indices[index])]

    def source(self, index: int) -> Source:
        """The file of structure ``index``, and its place there."""
        return self._whole.source(int(self._indices[index]))

    def chunks(self, size: int) -> Iterator[list[tuple[int, Atoms | UnreadableFrame]]]:
        """As :meth:`Pool.chunks`."""
        for start in range(0, len(self), size):
            chunk: list[tuple[int, Atoms | UnreadableFrame]] = []
            for index in range(start, min(start + size, len(self))):
                try:
                    chunk.append((index, self[index]))
                except UnreadableFrame as error:
                    chunk.append((index, error))
            yield chunk

    def close(self) -> None:
        """Close the files of the other pool."""
        self._whole.close()


class Index(NamedTuple):
    """The usable, distinct structures of a pool.

    | field   | shape | meaning                                        |
    |---------|-------|------------------------------------------------|
    | places  | (n,)  | int64, place in the pool                       |
    | keys    | (n,)  | structure hashes, 32 hexadecimal digits as bytes |
    | groups  | (n, k) | int64, structures of equal number stay together; one column a held-out part |
    """

    places: np.ndarray
    keys: np.ndarray
    groups: np.ndarray

    def take(self, chosen: np.ndarray) -> Index:
        """The entries ``chosen``."""
        return Index(self.places[chosen], self.keys[chosen], self.groups[chosen])

    def without(self, hashes: Collection[str]) -> Index:
        """The entries that are none of ``hashes``."""
        if not hashes:
            return self
        return self.take(np.flatnonzero(~np.isin(self.keys, np.array(sorted(hashes), dtype="S32"))))

    def hash(self, entry: int) -> str:
        """Structure hash of an entry."""
        return bytes(self.keys[entry]).decode()

    def hashes(self) -> set[str]:
        """Structure hashes of all entries."""
        return {key.decode() for key in self.keys.tolist()}

    def __len__(self) -> int:
        return len(self.places)

    def write(self, path: Path) -> None:
        """To a NumPy archive."""
        with open(path, "wb") as stream:
            np.savez(stream, places=self.places, keys=self.keys, groups=self.groups)

    @classmethod
    def read(cls, path: Path) -> Index:
        """From :meth:`write`."""
        with np.load(path) as data:
            return cls(data["places"], data["keys"], data["groups"])


class Candidates(NamedTuple):
    """What may be picked: files of structures, and the artifact of their :class:`Index` (None: nothing).

    ``named`` is what sampled structures are said to come from; "" for a pool, whose files say that. ``ensemble`` is the
    artifact of what a sampling run ended with, where the next one is to start from it.
    """

    files: tuple[str, ...]
    table: str | None
    named: str = ""
    ensemble: str | None = None


class Refused(NamedTuple):
    """What of a pool is left out."""

    repeated: int
    quarantine: list[tuple[Source, str]]
    other_states: int = 0  # of the repeated: those that state another charge or multiplicity

    def as_csv(self) -> bytes:
        """The quarantine with the columns file, index and reason."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("file", "index", "reason"))
        writer.writerows((source.path, source.index, reason) for source, reason in self.quarantine)
        return text.getvalue().encode()


def index_pool(pool: Pool, checks: Checks, group_by: Sequence[str | None], progress: Progress) -> tuple[Index, Refused]:
    """Reads ``pool`` once: what can be used, each distinct structure once, grouped by each key ``group_by`` of ``info``.

    Structures without that key, and all where it is None, are groups of their own. Raises SelectronError where nothing
    can be used.
    """
    places: list[int] = []
    hashes: list[str] = []
    groups: list[list[int]] = []
    names: list[dict[Any, int]] = [{} for _ in group_by]
    repeats = Repeats()
    refused: list[tuple[Source, str]] = []
    repeated = 0
    progress.start("reading the pool", len(pool))
    for chunk in pool.chunks(CHUNK):
        for index, atoms in chunk:
            reason = atoms.reason if isinstance(atoms, UnreadableFrame) else checks.check(atoms)
            if isinstance(atoms, UnreadableFrame) or reason:
                refused.append((pool.source(index), str(reason)))
                continue
            key = structure_hash(atoms)
            if repeats.seen(key, atoms):
                repeated += 1
                continue
            places.append(index)
            hashes.append(key)
            groups.append([_group(atoms, one, known) for one, known in zip(group_by, names, strict=True)])
        progress.advance(len(chunk))
    progress.finish()
    if not places:
        raise SelectronError(
            f"None of the {len(pool)} structures of the pool can be used (the first: {refused[0][1]})."
        )
    columns = np.array(groups, dtype=np.int64).reshape(len(places), len(names))
    found = Index(np.array(places, dtype=np.int64), np.array(hashes, dtype="S32"), columns)
    return found, Refused(repeated, refused, repeats.other_states)


def _group(atoms: Atoms, key: str | None, known: dict[Any, int]) -> int:
    value = None if key is None else atoms.info.get(key)
    return known.setdefault(("alone", len(known)) if value is None else ("of", str(value)), len(known))


def hold_out(index: Index, held: HeldOut, column: int, *, total: int, seed: int) -> tuple[Index, Index]:
    """A part of ``index`` of about ``held.fraction`` of ``total`` structures, groups of ``column`` whole, and the rest.

    Groups are taken in random order until there are enough. Raises SelectronError where nothing would be left.
    """
    assert held.fraction is not None
    wanted = max(1, round(held.fraction * total))
    groups, sizes = np.unique(index.groups[:, column], return_counts=True)
    order = np.random.default_rng([seed, held.seed, column]).permutation(len(groups))
    enough = int(np.searchsorted(np.cumsum(sizes[order]), wanted)) + 1
    aside = np.isin(index.groups[:, column], groups[order[:enough]])
    if aside.all():
        raise SelectronError(
            f"Holding {held.fraction:g} of the pool out would leave nothing to pick: there are only {len(groups)} groups"
            f" of equal '{held.group_by}'; choose another group_by."
        )
    return index.take(np.flatnonzero(aside)), index.take(np.flatnonzero(~aside))


def usable_structures(patterns: Sequence[str], checks: Checks, what: str) -> tuple[list[Atoms], Refused]:
    """The distinct usable structures of the files ``patterns``; raises SelectronError where there are none."""
    with Pool.open(list(patterns)) as pool:
        found: list[Atoms] = []
        repeats = Repeats()
        refused: list[tuple[Source, str]] = []
        repeated = 0
        for chunk in pool.chunks(CHUNK):
            for index, atoms in chunk:
                reason = atoms.reason if isinstance(atoms, UnreadableFrame) else checks.check(atoms)
                if isinstance(atoms, UnreadableFrame) or reason:
                    refused.append((pool.source(index), str(reason)))
                    continue
                if repeats.seen(structure_hash(atoms), atoms):
                    repeated += 1
                else:
                    atoms.info["source"], atoms.info["source_index"] = pool.source(index)
                    found.append(atoms)
        if not found:
            raise SelectronError(f"No structure of the {what} set can be used (the first: {refused[0][1]}).")
    return found, Refused(repeated, refused, repeats.other_states)
