"""LMDB files of ASE rows, as fairchem's ``.aselmdb`` and ase-db-backends write them.

Each row is a dictionary (what ``ase.db`` calls a row) as zlib-compressed JSON under its id in ASCII digits; the keys
``nextid``, ``deleted_ids`` and ``metadata`` are kept apart. The older fairchem files hold pickled objects, which can
run code when they are loaded, and are refused.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.db.row import AtomsRow
from ase.io.jsonio import decode

from selectron.errors import SelectronError
from selectron.structures.ase_files import atoms_of_row
from selectron.structures.reader import UnreadableFrame

# One process may open an LMDB file only once, but two pools may well name the same file: path → [environment, users].
_open_environments: dict[str, list[Any]] = {}


class LmdbReader:
    """Structures of an LMDB of ASE rows, in the order of their ids; ``path`` is the file or its folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.warnings: list[str] = []
        self._transaction: Any = None
        self._ids = self._list_ids()
        if not len(self._ids):
            raise SelectronError(f"{path} is empty: the LMDB holds no structure.")
        first = self._row(int(self._ids[0]))
        if first is not None and first.startswith(b"\x80"):
            self.close()
            raise SelectronError(
                f"{path} holds pickled objects (the older fairchem layout), which can run code when loaded and are not"
                " read; convert it to ASE rows (.aselmdb) or extended XYZ."
            )
        self.close()

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
        """Close the file, unless another reader of this process has it open."""
        transaction, self._transaction = self._transaction, None
        if transaction is not None:
            transaction.abort()
            _close_environment(self.path)

    def _row(self, number: int) -> bytes | None:
        if self._transaction is None:
            self._transaction = _environment(self.path).begin()
        value = self._transaction.get(str(number).encode("ascii"))
        return None if value is None else bytes(value)

    def _list_ids(self) -> np.ndarray:
        with _environment(self.path).begin() as transaction:
            try:
                after_last = transaction.get(b"nextid")
                deleted = transaction.get(b"deleted_ids")
                if after_last is not None:
                    ids = np.arange(1, int(_unpack(after_last)), dtype=np.int64)
                    if deleted is not None:
                        ids = np.setdiff1d(ids, np.asarray(_unpack(deleted), dtype=np.int64))
                else:
                    keys = transaction.cursor().iternext(keys=True, values=False)
                    ids = np.sort(np.fromiter((int(key) for key in keys if key.isdigit()), dtype=np.int64))
            except Exception as error:  # as above
                raise SelectronError(f"{self.path} cannot be read as an LMDB of ASE rows: {error}.") from error
        _close_environment(self.path)
        return ids


def _unpack(packed: bytes) -> Any:
    return decode(zlib.decompress(packed).decode("utf-8"))


def _environment(path: Path) -> Any:
    try:
        import lmdb
    except ImportError:
        raise SelectronError(f"reading {path} needs the package lmdb: run `pip install selectron[lmdb]`.") from None
    name = os.path.realpath(path)
    if name not in _open_environments:
        file = path / "data.mdb" if path.is_dir() else path
        try:
            environment = lmdb.open(name, subdir=path.is_dir(), readonly=True, lock=False, readahead=False)
        except lmdb.Error as error:
            raise SelectronError(f"{path} cannot be read as an LMDB: {error}.") from error
        needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
        if (
            file.stat().st_size < needed
        ):  # LMDB maps the file into memory, and touching what is missing kills the process
            environment.close()
            raise SelectronError(f"{path} is truncated: {file.stat().st_size} of {needed} bytes are there.")
        _open_environments[name] = [environment, 0]
    entry = _open_environments[name]
    entry[1] += 1
    return entry[0]


def _close_environment(path: Path) -> None:
    name = os.path.realpath(path)
    entry = _open_environments[name]
    entry[1] -= 1
    if entry[1] == 0:
        del _open_environments[name]
        entry[0].close()
