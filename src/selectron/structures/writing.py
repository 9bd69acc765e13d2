"""Structures to extended XYZ, plain or gzipped."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from ase import Atoms
from ase.io.extxyz import write_xyz

from selectron.structures.atomic import atomic_output


def write_extxyz(path: str | Path, structures: Iterable[Atoms]) -> int:
    """Write ``structures`` one after the other to ``path`` and say how many there were.

    Energies and forces of a calculator that is up to date, ``info``, per-atom arrays and the constraints that extended
    XYZ knows (fixed atoms, fixed Cartesian components) are kept; positions have eight decimals. A name that ends in
    ``.gz`` is compressed, with the same bytes for the same structures. The file appears when the last structure is
    written (:func:`~selectron.structures.atomic_output`), and only one structure is held at a time.

    Raises:
        SelectronError: the folder is missing or not writable, or the disk is full.
    """
    if not str(path).endswith(".gz"):
        with atomic_output(path) as stream:
            return _write(stream, structures)
    with (
        atomic_output(path, "wb") as raw,
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=6, mtime=0) as packed,
        io.TextIOWrapper(packed, encoding="utf-8", newline="\n") as stream,
    ):
        return _write(stream, structures)


def _write(stream: IO[Any], structures: Iterable[Atoms]) -> int:
    count = 0
    for atoms in structures:
        columns = None
        if atoms.constraints:
            own = [name for name in atoms.arrays if name not in ("numbers", "positions", "species", "pos")]
            columns = ["symbols", "positions", *own, "move_mask"]
        write_xyz(stream, [atoms], columns=columns)
        count += 1
    return count
