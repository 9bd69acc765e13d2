"""Where each frame of an extended XYZ file begins.

One pass over the bytes, with no parsing but the first line of each frame. The index of a big file is saved beside it
and used again as long as the file keeps its size and its modification time.
"""

from __future__ import annotations

import hashlib
import io
import os
from array import array
from collections.abc import Iterator
from enum import IntEnum
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from selectron.errors import SelectronError
from selectron.structures.atomic import atomic_output
from selectron.structures.gzipped import GzipStream

SAVE_ABOVE_BYTES = 32 << 20
_MOST_ATOMS = 2_000_000  # a larger count is taken for a garbled line, so that it cannot swallow the file
_VERSION = 1
_READ_BYTES = 1 << 20


class Ending(IntEnum):
    """How the last frame of a file ends."""

    WHOLE = 0
    TRUNCATED = 1  # in the middle of a frame, which is left out
    DOUBTFUL = 2  # without a line end, so that nobody can tell whether the last number is whole; the frame is kept


class FrameIndex(NamedTuple):
    """``offsets``: int64, (frames + 1,), frame k is the bytes offsets[k] to offsets[k + 1] of the decompressed file."""

    offsets: np.ndarray
    ending: Ending


def frame_index(path: Path) -> FrameIndex:
    """The index of ``path``, saved or made now; saved for next time when the file is big.

    Raises:
        SelectronError: the file is empty, or does not begin with a number of atoms.
    """
    state = path.stat()
    stamp = (_VERSION, state.st_size, state.st_mtime_ns)
    big = state.st_size > SAVE_ABOVE_BYTES
    if big:
        for place in _saved_at(path):
            saved = _load(place, stamp)
            if saved is not None:
                return saved
    index = scan(path)
    if big:
        content = np.concatenate([np.array([*stamp, index.ending], dtype=np.int64), index.offsets])
        for place in _saved_at(path):
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                with atomic_output(place, "wb") as stream:
                    np.save(stream, content, allow_pickle=False)
                break
            except (OSError, SelectronError):
                continue  # an index is a convenience: without a place for it the next run scans again
    return index


def cache_folder() -> Path:
    """``$SELECTRON_CACHE``, or ``selectron`` in the user's cache folder."""
    named = os.environ.get("SELECTRON_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "selectron"


def _saved_at(path: Path) -> list[Path]:
    digest = hashlib.blake2b(os.fsencode(path.resolve()), digest_size=8).hexdigest()
    name = f"{path.name}.selectron-index.npy"
    return [path.with_name(name), cache_folder() / f"{digest}-{name}"]


def _load(place: Path, stamp: tuple[int, int, int]) -> FrameIndex | None:
    try:
        content = np.load(place, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if content.dtype != np.int64 or content.ndim != 1 or len(content) < 5 or tuple(content[:3].tolist()) != stamp:
        return None
    return FrameIndex(content[4:], Ending(int(content[3])))


def scan(path: Path) -> FrameIndex:
    """Read ``path`` once from end to end and note where its frames begin."""
    if path.suffix == ".gz":
        packed = GzipStream(path)
        with io.BufferedReader(packed, _READ_BYTES) as stream:
            index = _scan(stream, path)
            if packed.broken:
                return FrameIndex(index.offsets, Ending.TRUNCATED)
            return index
    with open(path, "rb", buffering=_READ_BYTES) as stream:
        return _scan(stream, path)


class _Lines:
    """Lines of a stream, some of which can be put back."""

    def __init__(self, stream: BinaryIO | io.BufferedReader) -> None:
        self._stream: Iterator[bytes] = iter(stream)
        self._again: list[bytes] = []

    def take(self, count: int) -> list[bytes]:
        if not self._again:
            return list(islice(self._stream, count))
        lines = self._again[:count]
        del self._again[:count]
        return lines + list(islice(self._stream, count - len(lines)))

    def put_back(self, lines: list[bytes]) -> None:
        self._again = lines + self._again


def _scan(stream: BinaryIO | io.BufferedReader, path: Path) -> FrameIndex:
    lines = _Lines(stream)
    starts = array("q")
    position = 0  # of the line that comes next
    body: list[bytes] = []  # of the last frame: comment line, atom lines
    ending = Ending.WHOLE
    while head := lines.take(1):
        line = head[0]
        if line.isspace() or (line.startswith(b"VEC") and starts):
            position += len(line)  # blank lines between frames; cell vectors as pseudo-atoms belong to the last frame
            continue
        count = _atom_count(line)
        if count is None:
            if not starts:
                raise SelectronError(
                    f"{path} is not an (extended) XYZ file: its first line is no number of atoms but {_shown(line)}."
                )
            cut = _header_inside(body)
            if cut is not None:  # the last frame had too few lines and took the next one's header
                lines.put_back([*body[cut:], line])
                position -= sum(map(len, body[cut:]))
            else:
                # Lines of four columns and more are atoms too many, and spoil the frame before; others were a header.
                if len(line.split()) < 4:
                    starts.append(position)
                position += len(line) + _skip_to_header(lines)
            body = []
            continue
        body = lines.take(count + 1)
        if len(body) == count + 1 and body[-1].endswith(b"\n"):
            starts.append(position)
            position += len(line) + sum(map(len, body))
            continue
        cut = _header_inside(body)
        if cut is not None:
            starts.append(position)
            position += len(line) + sum(map(len, body[:cut]))
            lines.put_back(body[cut:])
            body = []
            continue
        ending = _last_ending(count, body)
        if ending is not Ending.TRUNCATED:
            starts.append(position)
            position += len(line) + sum(map(len, body))
        break
    if not starts and ending is Ending.WHOLE:
        raise SelectronError(f"{path} is empty: it holds no structure.")
    starts.append(position)
    return FrameIndex(np.frombuffer(starts, dtype=np.int64), ending)


def _atom_count(line: bytes) -> int | None:
    """The number that stands alone on ``line``, or None."""
    word = line.strip()
    if not word.isdigit():
        return None
    count = int(word[:16])
    return count if count <= _MOST_ATOMS else None


def _header_inside(body: list[bytes]) -> int | None:
    """Place of a line among the atom lines that holds nothing but a number: the header of another frame."""
    for place in range(1, len(body)):
        if body[place].endswith(b"\n") and _atom_count(body[place]) is not None:
            return place
    return None


def _skip_to_header(lines: _Lines) -> int:
    """Skip to the next line that holds nothing but a number; the bytes skipped."""
    skipped = 0
    while head := lines.take(1):
        if _atom_count(head[0]) is not None:
            lines.put_back(head)
            break
        skipped += len(head[0])
    return skipped


def _last_ending(count: int, body: list[bytes]) -> Ending:
    """How a last frame ends whose last line has no line end, judged by its other atom lines."""
    if len(body) < count + 1:
        return Ending.TRUNCATED
    if count == 0:
        return Ending.WHOLE
    words = body[-1].split()
    others = [line.split() for line in body[1:-1]]
    if len(words) < 4 or any(len(other) != len(words) for other in others):
        return Ending.TRUNCATED
    widths = {_width(other[-1]) for other in others} or {_width(word) for word in words[1:-1]}
    width = _width(words[-1])
    if widths == {width}:
        return Ending.WHOLE
    return Ending.TRUNCATED if width < min(widths) else Ending.DOUBTFUL


def _width(word: bytes) -> int:
    """Digits after the decimal point, or all of them."""
    return len(word.rpartition(b".")[2])


def _shown(line: bytes) -> str:
    text = line[:40].decode("utf-8", "replace").strip()
    return repr(text + ("…" if len(line) > 40 else ""))
