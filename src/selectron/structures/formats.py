"""From what the user names to files, and from a file to its reader."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from selectron.errors import SelectronError
from selectron.structures.ase_files import AnyAseReader, AseDatabaseReader, TrajectoryReader
from selectron.structures.hdf5 import Hdf5Reader
from selectron.structures.lmdb_rows import LmdbReader
from selectron.structures.reader import Reader
from selectron.structures.xyz import XyzReader

READERS: dict[str, Callable[[Path], Reader]] = {
    ".xyz": XyzReader,
    ".extxyz": XyzReader,
    ".xyz.gz": XyzReader,
    ".extxyz.gz": XyzReader,
    ".db": AseDatabaseReader,
    ".traj": TrajectoryReader,
    ".lmdb": LmdbReader,
    ".aselmdb": LmdbReader,
    ".h5": Hdf5Reader,
    ".hdf5": Hdf5Reader,
}
"""Readers by the end of the file's name."""

_LEFT_TO_ASE = (".cif", ".vasp", ".poscar", ".json", ".pdb", ".sdf", ".mol", ".xsf", ".cfg", ".gen", ".res")


def reader_of(path: Path) -> Reader:
    """The reader of ``path``, chosen by its name, by its first bytes where the name says nothing.

    Raises:
        SelectronError: the file is missing, unreadable, empty, or in no known format.
    """
    try:
        return _choose(path)(path)
    except FileNotFoundError as error:
        raise SelectronError(f"there is no file {path}.") from error
    except PermissionError as error:
        raise SelectronError(f"{path} cannot be read: permission denied.") from error
    except OSError as error:
        raise SelectronError(f"{path} cannot be read: {error.strerror or error}.") from error


def _choose(path: Path) -> Callable[[Path], Reader]:
    if path.is_dir():
        return LmdbReader
    if path.stat().st_size == 0:
        raise SelectronError(f"{path} is empty.")
    name = path.name.lower()
    for ending, reader in READERS.items():
        if name.endswith(ending):
            return reader
    with open(path, "rb") as stream:
        beginning = stream.read(16)
    if beginning.startswith(b"\x89HDF"):
        return Hdf5Reader
    if beginning.startswith(b"SQLite format 3"):
        return AseDatabaseReader
    return AnyAseReader


def find_files(patterns: Sequence[str | Path]) -> tuple[list[Path], list[str]]:
    """The files that ``patterns`` name, in order, and sentences about what was left out.

    A pattern is a file, a glob (``**`` for any depth), a folder, whose files in known formats are taken in the order
    of their names, or one of the words ``embedded`` and ``embedded-train`` for the pools that come with the package.
    A file that is named twice is taken once.

    Raises:
        SelectronError: a pattern names nothing.
    """
    if isinstance(patterns, str | Path):
        patterns = [patterns]
    files: dict[str, Path] = {}
    warnings: list[str] = []
    for pattern in patterns:
        for path in _expand(str(pattern)):
            name = os.path.realpath(path)
            if name in files:
                warnings.append(f"{path} is named more than once and is used once.")
            files.setdefault(name, path)
    if not files:
        raise SelectronError("no structures: name at least one file, glob or folder.")
    return list(files.values()), warnings


def _expand(pattern: str) -> list[Path]:
    if pattern in ("embedded", "embedded-train"):
        from selectron import embedded

        return [Path(embedded.pool_path() if pattern == "embedded" else embedded.train_path())]
    path = Path(pattern).expanduser()
    if path.is_dir():
        return _inside(path)
    if path.exists():
        return [path]
    if not glob.has_magic(pattern):
        raise SelectronError(f"there is no file {pattern}.")
    found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
    files = [one for one in found if _is_pool_file(one)]
    if not files:
        raise SelectronError(f"no file matches {pattern}.")
    return files


def _inside(folder: Path) -> list[Path]:
    if (folder / "data.mdb").exists():
        return [folder]
    files = [
        one
        for one in sorted(folder.iterdir())
        if _is_pool_file(one)
        and (one.name.lower().endswith((*READERS, *_LEFT_TO_ASE)) or one.name.startswith(("POSCAR", "CONTCAR")))
    ]
    if not files:
        raise SelectronError(f"the folder {folder} holds no file in a format that is known.")
    return files


def _is_pool_file(path: Path) -> bool:
    if path.is_dir():
        return (path / "data.mdb").exists()
    return not path.name.startswith(".") and not path.name.endswith((".selectron-index.npy", "-lock"))
