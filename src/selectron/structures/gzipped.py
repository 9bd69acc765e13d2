"""Gzip streams that may end too early."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path


class GzipStream(io.RawIOBase):
    """The decompressed bytes of a gzip file up to its end or, in a damaged file, up to the damage.

    :attr:`broken` turns true at the damage, where the stream ends as if the file did.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = gzip.GzipFile(path, "rb")
        self.broken = False

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill ``buffer`` as far as one read goes; 0 at the end."""
        if self.broken:
            return 0
        try:
            piece = self._file.read1(len(buffer))
        except (EOFError, zlib.error, gzip.BadGzipFile):
            self.broken = True
            return 0
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        """Close the file underneath too."""
        self._file.close()
        super().close()
