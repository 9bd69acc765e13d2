"""HDF5 files of molecules in two published layouts, Transition1x and ANI-1x.

A block is a group with one list of atoms and many conformations of it:

| layout       | positions, Å | energies                  | forces                      |
|--------------|--------------|---------------------------|-----------------------------|
| Transition1x | positions    | wB97x_6-31G(d).energy, eV | wB97x_6-31G(d).forces, eV/Å |
| ANI-1x       | coordinates  | wb97x_dz.energy, Eh       | wb97x_dz.forces, Eh/Å       |

The blocks of Transition1x are ``data/<formula>/<reaction>``, the images along the path, and the groups ``reactant``,
``transition_state`` and ``product`` inside it; those of ANI-1x are ``<formula>``.

Transition1x: Schreiner et al., Sci. Data 9, 779 (2022). ANI-1x: Smith et al., Sci. Data 7, 134 (2020); a number that is
missing there is NaN, and no label comes of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.units import Hartree

from selectron.errors import SelectronError
from selectron.structures.reader import UnreadableFrame

_END_POINTS = ("product", "reactant", "transition_state")  # groups of Transition1x inside a block
_SLAB = 64  # conformations read at once, since neighbours are usually wanted next


class _Layout(NamedTuple):
    positions: str
    energy: str
    forces: str
    energy_eV: float  # of the file's unit of energy


_TRANSITION1X = _Layout("positions", "wB97x_6-31G(d).energy", "wB97x_6-31G(d).forces", 1.0)
_ANI1X = _Layout("coordinates", "wb97x_dz.energy", "wb97x_dz.forces", Hartree)


class _Slab(NamedTuple):
    block: int
    first: int
    numbers: np.ndarray
    positions: np.ndarray
    energies: np.ndarray | None
    forces: np.ndarray | None


class Hdf5Reader:
    """Conformations of a Transition1x or ANI-1x file, block after block in the file's order.

    ``info`` of each structure has ``block``, the name of its group. The groups ``train``, ``val`` and ``test`` of
    Transition1x, which name the reactions of ``data`` again, are skipped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.warnings: list[str] = []
        self._file: h5py.File | None = None
        self._slab: _Slab | None = None
        try:
            file = self._open()
            blocks = list(_blocks(file.get("data", file)))
        except Exception as error:  # a damaged file fails wherever its bytes happen to be decoded
            raise SelectronError(f"{path} cannot be read as HDF5: {error}.") from error
        if not blocks:
            raise SelectronError(
                f"{path} is HDF5 in a layout that is not known; Transition1x and ANI-1x files are, and everything else"
                " has to be converted, for example to extended XYZ."
            )
        self._names = [name for name, _, _ in blocks]
        self._layouts = [layout for _, layout, _ in blocks]
        self._starts = np.cumsum([0, *(count for _, _, count in blocks)])
        self.close()
        if not len(self):
            raise SelectronError(f"{path} is empty: its groups hold no structure.")

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Atoms:
        block = int(np.searchsorted(self._starts, index, side="right")) - 1
        row = index - int(self._starts[block])
        try:
            slab = self._read(block, row)
            row -= slab.first
            atoms = Atoms(slab.numbers, slab.positions[row], info={"block": self._names[block].lstrip("/")})
            labels: dict[str, Any] = {}
            if slab.energies is not None and np.isfinite(slab.energies[row]):
                labels["energy"] = float(slab.energies[row])
            if slab.forces is not None and np.isfinite(slab.forces[row]).all():
                labels["forces"] = slab.forces[row]
        except Exception as error:  # damaged chunks and wrong shapes fail in ways of their own
            raise UnreadableFrame(f"cannot be read from {self._names[block]}: {error}") from error
        if labels:
            atoms.calc = SinglePointCalculator(atoms, **labels)
        return atoms

    def close(self) -> None:
        """Close the file."""
        file, self._file, self._slab = self._file, None, None
        if file is not None:
            file.close()

    def _open(self) -> h5py.File:
        if self._file is None:
            self._file = h5py.File(self.path, "r")
        return self._file

    def _read(self, block: int, row: int) -> _Slab:
        first = row - row % _SLAB
        if self._slab is None or self._slab.block != block or self._slab.first != first:
            group, layout = self._open()[self._names[block]], self._layouts[block]
            _refuse_larger_than_file(group, self.path)
            rows = slice(first, first + _SLAB)

            def label(name: str) -> np.ndarray | None:
                return np.asarray(group[name][rows], dtype=np.float64) * layout.energy_eV if name in group else None

            self._slab = _Slab(
                block,
                first,
                np.asarray(group["atomic_numbers"], dtype=np.int64).reshape(-1),
                np.asarray(group[layout.positions][rows], dtype=np.float64),
                label(layout.energy),
                label(layout.forces),
            )
        return self._slab


def _refuse_larger_than_file(group: h5py.Group, path: Path) -> None:
    """Raises ValueError where an array claims more than the file could hold even if it were packed as tightly as gzip can."""
    most = 1032 * path.stat().st_size
    for name in group:
        one = group.get(name)
        if isinstance(one, h5py.Dataset) and math.prod(one.shape) * one.dtype.itemsize > most:
            raise ValueError(f"{name} claims to be larger than the file can hold")


def _blocks(group: h5py.Group) -> Iterator[tuple[str, _Layout, int]]:
    """Name, layout and number of conformations of every block in ``group`` and below."""
    if "atomic_numbers" not in group:
        for name in group:
            if group.get(name, getclass=True) is h5py.Group:
                yield from _blocks(group[name])
        return
    for layout in (_TRANSITION1X, _ANI1X):
        if layout.positions in group:
            yield group.name, layout, group[layout.positions].shape[0]
    for name in _END_POINTS:
        if name in group:
            yield from _blocks(group[name])
