"""Extended XYZ files, plain and gzipped, by frame."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path
from typing import IO

import numpy as np
from ase import Atoms
from ase.io.extxyz import read_xyz

from selectron.errors import SelectronError
from selectron.structures.electronic_state import comment_pair
from selectron.structures.gzipped import GzipStream
from selectron.structures.reader import UnreadableFrame
from selectron.structures.xyz_index import Ending, cache_folder, frame_index

_IN_MEMORY_BYTES = 32 << 20
_COPY_BYTES = 1 << 20

_Plain = bytes | IO[bytes] | tempfile.SpooledTemporaryFile[bytes]


class XyzReader:
    """Frames of an extended XYZ file (or plain XYZ), parsed by ASE one at a time.

    A gzipped file is decompressed once, at the first access: into memory up to 32 MiB, beyond that into a nameless
    temporary file in ``$SELECTRON_CACHE`` (where that is set) or the system's temporary folder, which needs as much
    room as the decompressed text and is gone when the reader is closed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.warnings: list[str] = []
        self._plain: _Plain | None = None
        if path.suffix == ".gz":
            with open(path, "rb") as stream:
                if stream.read(2) != b"\x1f\x8b":
                    raise SelectronError(f"{path} is not a gzip file, whatever its name says.")
        self._offsets, ending = frame_index(path)
        if ending is Ending.TRUNCATED:
            self.warnings.append(
                f"{path} is truncated: it ends in the middle of frame {len(self)}; the {len(self)} whole frames before"
                " it are used."
            )
        elif ending is Ending.DOUBTFUL:
            self.warnings.append(
                f"{path} has no line end after its last frame, number {len(self) - 1}: the frame is used, but its last"
                " number may be cut short."
            )

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> Atoms:
        start, stop = self._offsets[index : index + 2].tolist()
        text = self._read(start, stop)
        if len(text) < stop - start:
            raise UnreadableFrame("the file has become shorter since it was opened")
        return parse_frame(text)

    def close(self) -> None:
        """Let go of the file, and of its decompressed copy."""
        plain, self._plain = self._plain, None
        if plain is not None and not isinstance(plain, bytes):
            plain.close()

    def _read(self, start: int, stop: int) -> bytes:
        if self._plain is None:
            packed = self.path.suffix == ".gz"
            self._plain = _decompressed(self.path) if packed else open(self.path, "rb", buffering=0)  # noqa: SIM115
        if isinstance(self._plain, bytes):
            return self._plain[start:stop]
        return os.pread(self._plain.fileno(), stop - start, start)  # no position that threads or forks could share


def _decompressed(path: Path) -> _Plain:
    """All bytes when they are few, else an open temporary file with them."""
    folder = os.fspath(cache_folder()) if "SELECTRON_CACHE" in os.environ else None
    if folder is not None:
        os.makedirs(folder, exist_ok=True)
    plain: tempfile.SpooledTemporaryFile[bytes] = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES, dir=folder)  # noqa: SIM115
    try:
        with GzipStream(path) as packed:
            while piece := packed.read(_COPY_BYTES):
                plain.write(piece)
        if plain.tell() <= _IN_MEMORY_BYTES:
            plain.seek(0)
            return plain.read()
        plain.flush()
    except OSError as error:
        plain.close()
        raise SelectronError(
            f"cannot decompress {path} into {folder or tempfile.gettempdir()}: {error.strerror or error}; set"
            " SELECTRON_CACHE to a folder with more room."
        ) from error
    return plain


def parse_frame(text: bytes) -> Atoms:
    """The structure in the bytes of one frame.

    Raises:
        UnreadableFrame: with what is wrong in one sentence.
    """
    content = text.decode("utf-8", "replace").replace("\r\n", "\n")
    lines = content.rstrip().split("\n")
    header = lines[0].strip()
    if not header.isdigit():
        raise UnreadableFrame(f"its first line is no number of atoms but {header[:40]!r}")
    count = int(header)
    extra = [line for line in lines[count + 2 :] if line.strip() and not line.startswith("VEC")]
    if extra or (len(lines) < count + 2 and count > 0):
        found = len(lines) - 2
        raise UnreadableFrame(f"its first line promises {count} atoms, but {found} lines of atoms follow")
    try:
        atoms: Atoms = next(read_xyz(io.StringIO(content), 0))
    except KeyError as error:
        raise UnreadableFrame(f"unknown name {error}") from error
    except Exception as error:  # ASE raises whatever its conversions raise, and any of them is this frame's fault only
        raise UnreadableFrame(f"cannot be parsed: {error}") from error
    if atoms.positions.shape != (count, 3) or not np.issubdtype(atoms.positions.dtype, np.floating):
        raise UnreadableFrame("its columns hold no positions")
    pair = comment_pair(lines[1]) if len(lines) > 1 else None
    if pair is not None:  # ASE makes keys of the numbers, a single one of "1 1"
        atoms.info = {"comment": pair}
    return atoms
