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

WEIGHT_KEY = "config_weight"
"""What a structure's label counts for in training, in ``info``; mace-torch's name."""


def write_extxyz(path: str | Path, structures: Iterable[Atoms]) -> int:
    """Write ``structures`` one after the other to ``path`` and say how many there were.

    Results of a calculator are kept when they belong to the structure as it is (and win over ``info`` of the same
    name), and so are ``info``, per-atom arrays and the constraints that extended XYZ knows (fixed atoms, fixed
    Cartesian components); positions have eight decimals. A name that ends in ``.gz`` is compressed, with the same
    bytes for the same structures. The file appears when the last structure is written
    (:func:`~selectron.structures.atomic_output`), and only one structure is held at a time.

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
        calc = atoms.calc
        current = calc is not None and not calc.check_state(atoms)
        write_xyz(stream, [_without_twins(atoms) if current else atoms], write_results=current)
        count += 1
    return count


def _without_twins(atoms: Atoms) -> Atoms:
    """``atoms`` without the ``info`` and arrays that the calculator holds too, which would be written twice."""
    twins = atoms.calc.results.keys() & (atoms.info.keys() | atoms.arrays.keys())
    if not twins:
        return atoms
    other = atoms.copy()
    other.info = {key: value for key, value in atoms.info.items() if key not in twins}
    for key in twins & atoms.arrays.keys():
        del other.arrays[key]
    other.calc = atoms.calc
    return other
