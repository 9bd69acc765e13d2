"""Feature rows on disk, found by what they are of: a structure's hash under a feature map's fingerprint."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from selectron.errors import SelectronError
from selectron.rows import Rows

_VARIABLES = 500  # keys in one query


class FeatureStore:
    """One SQLite file (write-ahead log) a feature map; whatever was put in survives a kill at any moment.

    Rows are kept as little-endian float32. Structures are known by the hash of :func:`selectron.structures.structure_hash`.
    Several processes may use one store.

    Args:
        folder: where the file goes, made if missing; None: a temporary folder that goes with the store.
        fingerprint: of the feature map.
        dim: D.
    """

    def __init__(self, folder: str | Path | None, fingerprint: str, dim: int) -> None:
        self._temporary = TemporaryDirectory(prefix="selectron-") if folder is None else None
        self.path = Path(folder or self._temporary.name) / f"{fingerprint}.sqlite"  # type: ignore[union-attr]
        self.dim = dim
        with self._explained():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self.path, timeout=60.0)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=NORMAL")
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS rows (id INTEGER PRIMARY KEY, key BLOB UNIQUE NOT NULL, m INTEGER, data BLOB)"
            )

    def put(self, hashes: Sequence[str], rows: Rows) -> None:
        """Keeps the rows of the structures ``hashes``, in that order, in one transaction."""
        values = rows.values.detach().to("cpu", torch.float32).numpy().astype("<f4", copy=False)
        offsets = rows.offsets.tolist()
        entries = [
            (bytes.fromhex(key), stop - start, values[start:stop].tobytes())
            for key, start, stop in zip(hashes, offsets[:-1], offsets[1:], strict=True)
        ]
        with self._explained(), self._connection:
            self._connection.executemany("INSERT OR IGNORE INTO rows (key, m, data) VALUES (?, ?, ?)", entries)

    def known(self, hashes: Sequence[str]) -> set[str]:
        """Those of ``hashes`` that have rows here."""
        found: set[str] = set()
        with self._explained():
            for query, keys in self._queries("key", hashes):
                found.update(row[0].hex() for row in self._connection.execute(query, keys))
        return found

    def get(self, hashes: Sequence[str]) -> Rows:
        """Rows of the structures ``hashes`` (all must be known), float32 on the CPU."""
        found: dict[bytes, np.ndarray] = {}
        with self._explained():
            for query, keys in self._queries("key, m, data", hashes):
                for key, m, data in self._connection.execute(query, keys):
                    found[key] = np.frombuffer(data, dtype="<f4").reshape(m, self.dim)
            blocks = [found[bytes.fromhex(key)] for key in hashes]
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

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
                raise self._damaged() from error
            full = "full" in str(error) or "disk I/O" in str(error)
            reason = "the disk is full" if full else getattr(error, "strerror", None) or str(error)
            raise SelectronError(
                f"Cannot keep feature rows in {self.path.parent}: {reason}; choose another folder with --cache."
            ) from error
        except (KeyError, ValueError, TypeError) as error:  # rows that were put are gone, or not what was put
            raise self._damaged() from error

    def _damaged(self) -> SelectronError:
        return SelectronError(f"The cache of feature rows {self.path} is damaged: delete it, and they are made again.")


def default_cache() -> Path:
    """``$SELECTRON_CACHE``, or ``selectron`` in the user's cache folder."""
    named = os.environ.get("SELECTRON_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "selectron"
