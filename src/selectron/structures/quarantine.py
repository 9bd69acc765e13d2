"""The list of structures that could not be used, and why."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from selectron.structures.atomic import atomic_output, cannot_write
from selectron.structures.reader import Source


class Quarantine:
    """Collects the structures that failed into a CSV file with the columns file, index and reason.

    A context manager. Rows go to a hidden file as they come, so that millions of them need no memory, and the file
    gets its name at the end of the block, also when the block ends with an error: every row in it is whole. When
    nothing was added there is no file, and one left at ``path`` by an earlier run is removed.

    Args:
        path: where the list goes, usually ``quarantine.csv`` in the folder of the results.
    """

    def __init__(self, path: str | Path = "quarantine.csv") -> None:
        self.path = Path(path)
        self._count = 0
        self._output: AbstractContextManager[IO[Any]] | None = None
        self._stream: IO[Any] | None = None

    def __len__(self) -> int:
        return self._count

    def __bool__(self) -> bool:
        return True

    def add(self, source: Source, reason: str) -> None:
        """Note that the structure at ``source`` is left out because of ``reason``.

        Raises:
            SelectronError: the list cannot be written.
        """
        if self._stream is None:
            self._output = atomic_output(self.path)
            self._stream = self._output.__enter__()
            self._write_row(("file", "index", "reason"))
        self._write_row((source.path, str(source.index), reason))
        self._count += 1

    def close(self) -> None:
        """Give the list its name; adding again starts a new one."""
        output, self._output, self._stream = self._output, None, None
        if output is not None:
            output.__exit__(None, None, None)
        elif self._count == 0:
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> Quarantine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _write_row(self, row: tuple[str, ...]) -> None:
        assert self._stream is not None
        try:
            csv.writer(self._stream, lineterminator="\n").writerow(row)
        except OSError as error:
            raise cannot_write(self.path, error) from error


def read_quarantine(path: str | Path) -> Iterator[tuple[Source, str]]:
    """The entries of a ``quarantine.csv``, one at a time."""
    with open(path, encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            yield Source(row["file"], int(row["index"])), row["reason"]
