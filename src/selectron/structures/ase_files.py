"""Files that ASE reads: SQLite databases, trajectories, and every other format that it knows."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import ase.db
import ase.io
import numpy as np
from ase import Atoms
from ase.db.row import AtomsRow
from ase.io.formats import UnknownFileTypeError
from ase.io.trajectory import Trajectory

from selectron.errors import SelectronError
from selectron.structures.reader import UnreadableFrame

_LEAST_BYTES = 8  # a frame of a trajectory has at least its place in the table of frames


def atoms_of_row(row: AtomsRow) -> Atoms:
    """The structure of a database row; its key-value pairs, and its data when that is a dictionary, go to ``info``.

    ASE 3.29 answers for a pair named ``charge`` with the sum of the initial charges of atoms, 0 where there are none
    (``row.charge`` hides it); here it is the number that was written.
    """
    atoms: Atoms = row.toatoms()
    written = vars(row)
    atoms.info.update({key: written.get(key, value) for key, value in row.key_value_pairs.items()})
    data = row.data
    if isinstance(data, dict):
        atoms.info.update(data)
    return atoms


class AseDatabaseReader:
    """Rows of an ASE database in a SQLite file, in the order of their ids, which may have gaps."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.warnings: list[str] = []
        self._database: Any = None  # an ase.db.sqlite.SQLite3Database, which is not annotated
        try:
            with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
                ids = connection.execute("SELECT id FROM systems ORDER BY id")
                self._ids = np.fromiter((row[0] for row in ids), dtype=np.int64)
        except Exception as error:  # a damaged file fails wherever its bytes happen to be decoded
            raise SelectronError(f"{path} cannot be read as an ASE database (SQLite): {error}.") from error
        if not len(self._ids):
            raise SelectronError(f"{path} is empty: the database holds no structure.")

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> Atoms:
        number = int(self._ids[index])
        try:
            if self._database is None:
                database = ase.db.connect(self.path, type="db", use_lock_file=False)
                database.__enter__()  # one connection for all rows, not one a row
                self._database = database
            return atoms_of_row(self._database.get(id=number))
        except Exception as error:  # a damaged row fails wherever its bytes happen to be decoded
            raise UnreadableFrame(f"database row {number} cannot be read: {error}") from error

    def close(self) -> None:
        """Close the connection."""
        database, self._database = self._database, None
        if database is not None:
            database.__exit__(None, None, None)


class TrajectoryReader:
    """Frames of an ASE ``.traj`` file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.warnings: list[str] = []
        self._trajectory: Any = None
        try:
            promised = len(self._open())
            if promised * _LEAST_BYTES > path.stat().st_size:
                raise ValueError(f"it promises {promised} frames, more than its {path.stat().st_size} bytes can hold")
        except Exception as error:  # a damaged header fails in ways of its own
            raise SelectronError(f"{path} cannot be read as an ASE trajectory: {error}.") from error
        self._length = promised
        while self._length and not self._readable(self._length - 1):
            self._length -= 1
        if self._length == promised == 0:
            raise SelectronError(f"{path} is empty: the trajectory holds no structure.")
        if self._length < promised:
            self.warnings.append(
                f"{path} is truncated: it promises {promised} frames; the {self._length} whole frames at its beginning"
                " are used."
            )
        self.close()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Atoms:
        try:
            return self._open()[index]
        except Exception as error:  # as above
            raise UnreadableFrame(f"cannot be read: {error}") from error

    def close(self) -> None:
        """Close the file."""
        trajectory, self._trajectory = self._trajectory, None
        if trajectory is not None:
            trajectory.close()

    def _open(self) -> Any:
        if self._trajectory is None:
            self._trajectory = Trajectory(self.path)
        return self._trajectory

    def _readable(self, index: int) -> bool:
        try:
            self[index]
        except UnreadableFrame:
            return False
        return True


class AnyAseReader:
    """Every other format that ASE reads (CIF, VASP, JSON and many more); the structures are held while it is open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.warnings: list[str] = []
        self._frames: list[Atoms] | None = None
        self._length = len(self._load())
        if not self._length:
            raise SelectronError(f"{path} is empty: it holds no structure.")

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Atoms:
        try:
            return self._load()[index]
        except IndexError:
            raise UnreadableFrame("the file has become shorter since it was opened") from None

    def close(self) -> None:
        """Let go of the structures."""
        self._frames = None

    def _load(self) -> list[Atoms]:
        if self._frames is None:
            try:
                if self.path.suffix.lower() == ".json":  # ase.io leaves key-value pairs and data out
                    frames = [atoms_of_row(row) for row in ase.db.connect(self.path, type="json").select()]
                else:
                    frames = list(ase.io.iread(self.path, index=":"))
            except UnknownFileTypeError as error:
                raise SelectronError(
                    f"the format of {self.path} is not known; use extended XYZ, an ASE database, LMDB, HDF5 or another"
                    " format that ASE reads."
                ) from error
            except Exception as error:  # ASE's readers raise whatever their conversions raise
                raise SelectronError(f"{self.path} cannot be read: {error or type(error).__name__}.") from error
            self._frames = frames
        return self._frames
