"""LMDB files of ASE rows, as fairchem's ``.aselmdb`` and ase-db-backends write them.

Each row is a dictionary (what ``ase.db`` calls a row) as zlib-compressed JSON under its id in ASCII digits; the keys
``nextid``, ``deleted_ids`` and ``metadata`` are kept apart. The older fairchem files hold pickled objects, which can
run code when they are loaded, and are refused.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.db.row import AtomsRow
from ase.io.jsonio import decode

from selectron.errors import SelectronError
from selectron.structures.ase_files import atoms_of_row
from selectron.structures.lmdb_pages import LmdbDamaged, LmdbFile
from selectron.structures.reader import UnreadableFrame


class LmdbReader:
    """Structures of an LMDB of ASE rows, in the order of their ids; ``path`` is the file or its folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.warnings: list[str] = []
        self._file: LmdbFile | None = None
        try:
            self._ids = self._list_ids()
            first = self._row(int(self._ids[0])) if len(self._ids) else None
        except (UnreadableFrame, LmdbDamaged) as error:
            first = None
            if not hasattr(self, "_ids"):
                raise SelectronError(f"{path} cannot be read as an LMDB of ASE rows: {error}.") from error
        finally:
            self.close()
        if not len(self._ids):
            raise SelectronError(f"{path} is empty: the LMDB holds no structure.")
        if first is not None and first.startswith(b"\x80"):
            raise SelectronError(
                f"{path} holds pickled objects (the older fairchem layout), which can run code when loaded and are not"
                " read; convert it to ASE rows (.aselmdb) or extended XYZ."
            )

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> Atoms:
        number = int(self._ids[index])
        packed = self._row(number)
        if packed is None:
            raise UnreadableFrame(f"LMDB row {number} is missing")
        try:
            row = _unpack(packed)
            row["id"] = number
            return atoms_of_row(AtomsRow(row))
        except Exception as error:  # a damaged row fails wherever its bytes happen to be decoded
            raise UnreadableFrame(f"LMDB row {number} cannot be read: {error}") from error

    def close(self) -> None:
        """Close the file."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _open(self) -> LmdbFile:
        if self._file is None:
            self._file = LmdbFile(self.path / "data.mdb" if self.path.is_dir() else self.path)
        return self._file

    def _row(self, number: int) -> bytes | None:
        try:
            return self._open().get(str(number).encode("ascii"))
        except LmdbDamaged as error:
            raise UnreadableFrame(f"LMDB row {number} cannot be read: {error}") from error

    def _list_ids(self) -> np.ndarray:
        file = self._open()
        try:
            after_last = file.get(b"nextid")
            if after_last is None:
                return np.sort(np.fromiter((int(key) for key in file if key.isdigit()), dtype=np.int64))
            count, deleted = int(_unpack(after_last)), file.get(b"deleted_ids")
            gone = np.unique(np.asarray([] if deleted is None else _unpack(deleted), dtype=np.int64))
            if count - 1 - len(gone) > file.entries:
                raise LmdbDamaged(f"it promises {count - 1} rows and has {file.entries}")
            return np.setdiff1d(np.arange(1, count, dtype=np.int64), gone)
        except LmdbDamaged:
            raise
        except Exception as error:  # what is no row fails wherever its bytes happen to be decoded
            raise LmdbDamaged(str(error)) from error


def _unpack(packed: bytes) -> Any:
    return decode(zlib.decompress(packed).decode("utf-8"))
