"""Many structures in many files, as one sequence that is never all in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import overload

import numpy as np
from ase import Atoms

from selectron.errors import SelectronError
from selectron.structures.constraints import gathered
from selectron.structures.formats import find_files, reader_of
from selectron.structures.reader import Reader, Source, UnreadableFrame

_OPEN_AT_ONCE = 16  # readers with an open file; the one used longest ago is closed for the next


class Pool(Sequence[Atoms]):
    """The structures of one or many files, in the order of the files, with random access by index.

    Only offsets and row numbers are held (8 bytes a structure); each access parses one structure. Molecules, surfaces
    and crystals may be mixed. Labels that a file holds come along as a ``SinglePointCalculator``, and so do constraints.

    Use :meth:`open`; a pool is a context manager and can be pickled for worker processes.

    Attributes:
        warnings: sentences about whole files, such as a truncation, for the user to read.
    """

    def __init__(self, readers: Sequence[tuple[str, Reader]], warnings: Sequence[str] = ()) -> None:
        self._paths = [path for path, _ in readers]
        self._readers = [reader for _, reader in readers]
        self._starts = np.cumsum([0, *(len(reader) for reader in self._readers)])
        self._used: OrderedDict[int, None] = OrderedDict()
        self.warnings: list[str] = [*warnings, *(line for reader in self._readers for line in reader.warnings)]

    @classmethod
    def open(cls, patterns: Sequence[str | Path]) -> Pool:
        """The pool of all files that ``patterns`` name.

        Args:
            patterns: files, globs, folders, or the words ``embedded`` and ``embedded-train``. Known formats: extended
                XYZ (plain, gzipped), ASE databases (SQLite), LMDB of ASE rows, ASE trajectories, HDF5 as published with
                Transition1x and ANI-1x, and whatever else ASE reads.

        Raises:
            SelectronError: a file is missing, unreadable, empty or in no known format, or nothing matches.
        """
        files, warnings = find_files(patterns)
        readers = []
        for path in files:
            reader = reader_of(path)
            reader.close()
            readers.append((str(path), reader))
        pool = cls(readers, warnings)
        if not len(pool):
            raise SelectronError("no whole structure was found: " + " ".join(pool.warnings))
        return pool

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, index: int) -> Atoms: ...
    @overload
    def __getitem__(self, index: slice) -> list[Atoms]: ...
    def __getitem__(self, index: int | slice) -> Atoms | list[Atoms]:
        """Structure ``index``, or a list for a slice; raises :class:`UnreadableFrame` when one cannot be parsed."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        file, place = self._locate(index)
        return self._read(file, place)

    @property
    def files(self) -> list[str]:
        """The files, in order."""
        return list(self._paths)

    def source(self, index: int) -> Source:
        """The file of structure ``index``, and its place there."""
        file, place = self._locate(index)
        return Source(self._paths[file], place)

    def chunks(self, size: int) -> Iterator[list[tuple[int, Atoms | UnreadableFrame]]]:
        """All structures in order, in lists of ``size`` (the last may be shorter) of pairs (index, structure).

        A structure that cannot be parsed appears as the :class:`UnreadableFrame` that says why.
        """
        if size < 1:
            raise ValueError(f"a chunk holds at least one structure, not {size}")
        chunk: list[tuple[int, Atoms | UnreadableFrame]] = []
        for file in range(len(self._readers)):
            start, stop = int(self._starts[file]), int(self._starts[file + 1])
            for index in range(start, stop):
                entry: Atoms | UnreadableFrame
                try:
                    entry = self._read(file, index - start)
                except UnreadableFrame as error:
                    entry = error
                chunk.append((index, entry))
                if len(chunk) == size:
                    yield chunk
                    chunk = []
        if chunk:
            yield chunk

    def close(self) -> None:
        """Close all files; the next access opens what it needs again."""
        for file in self._used:
            self._readers[file].close()
        self._used.clear()

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, object]:
        self.close()
        return self.__dict__.copy()

    def _locate(self, index: int) -> tuple[int, int]:
        """File number and place in that file."""
        whole = index + len(self) if index < 0 else index
        if not 0 <= whole < len(self):
            raise IndexError(f"structure {index} of a pool of {len(self)}")
        file = int(np.searchsorted(self._starts, whole, side="right")) - 1
        return file, whole - int(self._starts[file])

    def _read(self, file: int, place: int) -> Atoms:
        if file not in self._used:
            while len(self._used) >= _OPEN_AT_ONCE:
                self._readers[self._used.popitem(last=False)[0]].close()
            self._used[file] = None
        elif len(self._readers) > _OPEN_AT_ONCE:
            self._used.move_to_end(file)
        try:
            atoms = self._readers[file][place]
        except OSError as error:
            raise UnreadableFrame(f"the file cannot be read any more: {error.strerror or error}") from error
        gathered(atoms)
        return atoms
