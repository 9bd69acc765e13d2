"""What every reader of a structure file offers, and what flows out of it."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from ase import Atoms

from selectron.errors import SelectronError


class Source(NamedTuple):
    """Where a structure comes from: a file, and the structure's place in that file, counted from 0."""

    path: str
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody asks of a place


class UnreadableFrame(SelectronError):
    """One structure of an otherwise readable file cannot be parsed; :attr:`reason` says why, without the place."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Reader(Protocol):
    """The structures of one file, by index.

    The constructor takes the path, learns the number of structures and raises ``SelectronError`` for a file that is
    not what it should be. It holds no structure in memory. :attr:`warnings` are sentences about the file as a whole,
    such as a truncation.
    """

    warnings: list[str]

    def __len__(self) -> int:
        """Number of structures."""
        ...

    def __getitem__(self, index: int) -> Atoms:
        """Structure ``index``, 0 ≤ index < len; raises :class:`UnreadableFrame` when it cannot be parsed."""
        ...

    def close(self) -> None:
        """Let go of file handles and memory; the next access opens the file again."""
        ...
