"""Feature rows on disk, found by what they are of: a structure's hash under a feature map's fingerprint."""

from __future__ import annotations

import os
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
import torch

from selectron.errors import SelectronError
from selectron.rows import Rows
from selectron.wording import counted

_VARIABLES = 500  # keys in one query
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}  # the last: our columns are not there

T = TypeVar("T")


class DamagedRows(SelectronError):
    """Rows that were asked for are damaged; they are gone from the store now, and can be computed anew."""


def _checksum(key: bytes, m: int, data: bytes) -> int:
    """CRC-32 of a row of the table."""
    return zlib.crc32(data, zlib.crc32(b"%b%d" % (key, m)))


def _whole(key: Any, m: Any, data: Any, checksum: Any) -> bool:
    try:
        return bool(checksum == _checksum(key, m, data))
    except TypeError:  # columns of other types than were written
        return False


class FeatureStore:
    """One SQLite file (write-ahead log) a feature map; whatever was put in survives a kill at any moment.

    Rows are kept as little-endian float32. Structures are known by the hash of :func:`selectron.structures.structure_hash`.
    Several processes may use one store. Each structure's rows carry a checksum that is checked when they are read; what is
    damaged is removed. A file that is damaged as a whole is set aside under another name, and a new one begun.

    Args:
        folder: where the file goes, made if missing; None: a temporary folder that goes with the store.
        fingerprint: of the feature map.
        dim: D.
    """

    def __init__(self, folder: str | Path | None, fingerprint: str, dim: int) -> None:
        self._temporary = TemporaryDirectory(prefix="selectron-") if folder is None else None
        self.path = Path(folder or self._temporary.name) / f"{fingerprint}.sqlite"  # type: ignore[union-attr]
        self.dim = dim
        self._damaged, self._set_aside = 0, ""
        self._connection: sqlite3.Connection = sqlite3.connect(":memory:")
        with self._explained():
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self._do(self._open)

    @property
    def warnings(self) -> list[str]:
        """What was damaged, a sentence each."""
        lines = []
        if self._set_aside:
            lines.append(
                f"The cache of feature rows {self.path} was damaged: it is now {self._set_aside}, and begun anew."
            )
        if self._damaged:
            rows = counted(self._damaged, "structure")
            lines.append(
                f"The feature rows of {rows} in {self.path} were damaged: they are removed, and computed anew."
            )
        return lines

    def put(self, hashes: Sequence[str], rows: Rows) -> None:
        """Keeps the rows of the structures ``hashes``, in that order, in one transaction."""
        values = rows.values.detach().to("cpu", torch.float32).numpy().astype("<f4", copy=False)
        offsets = rows.offsets.tolist()
        entries = []
        for name, start, stop in zip(hashes, offsets[:-1], offsets[1:], strict=True):
            content = (bytes.fromhex(name), stop - start, values[start:stop].tobytes())
            entries.append((*content, _checksum(*content)))

        def work() -> None:
            with self._connection:
                query = "INSERT OR IGNORE INTO rows (key, m, data, checksum) VALUES (?, ?, ?, ?)"
                self._connection.executemany(query, entries)

        self._do(work)

    def known(self, hashes: Sequence[str]) -> set[str]:
        """Those of ``hashes`` that have rows here."""

        def work() -> set[str]:
            found: set[str] = set()
            for query, keys in self._queries("key", hashes):
                found.update(row[0].hex() for row in self._connection.execute(query, keys))
            return found

        return self._do(work)

    def get(self, hashes: Sequence[str]) -> Rows:
        """Rows of the structures ``hashes`` (all must be known), float32 on the CPU.

        Raises DamagedRows where some are damaged, or went with a file that was.
        """
        found: dict[bytes, np.ndarray] = {}
        damaged: list[int] = []

        def work() -> None:
            for query, keys in self._queries("id, key, m, data, checksum", hashes):
                for number, key, m, data, checksum in self._connection.execute(query, keys):
                    if _whole(key, m, data, checksum):
                        found[key] = np.frombuffer(data, dtype="<f4").reshape(m, self.dim)
                    else:
                        damaged.append(number)

        self._do(work)
        if damaged:
            self._do(lambda: self._remove(damaged))
        blocks = [found[key] for key in map(bytes.fromhex, hashes) if key in found]
        if len(blocks) < len(hashes):
            raise DamagedRows(
                f"Feature rows in {self.path.parent} are damaged: they are removed, and the same command computes them anew."
            )
        counts = torch.tensor([len(block) for block in blocks], dtype=torch.int64)
        values = np.concatenate(blocks) if blocks else np.zeros((0, self.dim), dtype=np.float32)
        return Rows(torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)), counts)

    def close(self) -> None:
        """Lets the file go."""
        self._connection.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    def _queries(self, columns: str, hashes: Sequence[str]) -> Iterator[tuple[str, list[bytes]]]:
        unique = list(dict.fromkeys(hashes))
        for start in range(0, len(unique), _VARIABLES):
            keys = [bytes.fromhex(key) for key in unique[start : start + _VARIABLES]]
            yield f"SELECT {columns} FROM rows WHERE key IN ({','.join('?' * len(keys))})", keys

    def _remove(self, numbers: list[int]) -> None:
        with self._connection:
            self._connection.executemany("DELETE FROM rows WHERE id = ?", [(number,) for number in numbers])
        self._damaged += len(numbers)

    def _do(self, work: Callable[[], T]) -> T:
        """What ``work`` gives; where the file turns out to be damaged, on a new one."""
        with self._explained():
            try:
                return work()
            except sqlite3.DatabaseError as error:
                if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _DAMAGED:
                    raise
            self._begin_anew()
            return work()

    def _open(self) -> None:
        self._connection.close()
        self._connection = sqlite3.connect(self.path, timeout=60.0)
        self._file = os.stat(self.path).st_ino
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=NORMAL")
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS rows"
            " (id INTEGER PRIMARY KEY, key BLOB UNIQUE NOT NULL, m INTEGER, data BLOB, checksum INTEGER)"
        )
        columns = {row[1] for row in self._connection.execute("PRAGMA table_info(rows)")}
        if columns == {"id", "key", "m", "data"}:
            self._add_checksums()
        else:
            self._connection.execute("SELECT id, key, m, data, checksum FROM rows LIMIT 0")
        self._connection.text_factory = bytes  # what is no text, where damage says it is, can be read and judged

    def _add_checksums(self) -> None:
        """To a file from before there were any; rows that cannot be right go."""

        def checksum_of(key: Any, m: Any, data: Any) -> int | None:
            try:
                right = np.isfinite(np.frombuffer(data, dtype="<f4").reshape(m, self.dim)).all()
                return _checksum(key, m, data) if right else None
            except (TypeError, ValueError):
                return None

        self._connection.create_function("checksum_of", 3, checksum_of)
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            if "checksum" not in {row[1] for row in self._connection.execute("PRAGMA table_info(rows)")}:
                self._connection.execute("ALTER TABLE rows ADD COLUMN checksum INTEGER")
                self._connection.execute("UPDATE rows SET checksum = checksum_of(key, m, data)")
                self._damaged += self._connection.execute("DELETE FROM rows WHERE checksum IS NULL").rowcount

    def _begin_anew(self) -> None:
        """Gives the damaged file another name, unless another process has done so, and opens a new one."""
        self._connection.close()
        if os.stat(self.path).st_ino == self._file:
            aside = self.path.with_suffix(".damaged")
            for ending in ("-wal", "-shm", ""):  # a log that stays would be applied to the new file
                with suppress(FileNotFoundError):
                    os.replace(f"{self.path}{ending}", f"{aside}{ending}")
            self._set_aside = aside.name
        self._open()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            full = "full" in str(error) or "disk I/O" in str(error)
            reason = "the disk is full" if full else getattr(error, "strerror", None) or str(error)
            raise SelectronError(
                f"Cannot keep feature rows in {self.path.parent}: {reason}; choose another folder with --cache."
            ) from error


def default_cache() -> Path:
    """``$SELECTRON_CACHE``, or ``selectron`` in the user's cache folder."""
    named = os.environ.get("SELECTRON_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "selectron"
