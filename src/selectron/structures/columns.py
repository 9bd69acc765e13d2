"""Per-atom arrays as columns of extended XYZ that ASE reads back as they were."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ase import Atoms
from ase.io.extxyz import PROPERTY_NAME_MAP, per_config_properties

from selectron.structures.constraints import FREE_ARRAY, is_mask, move_mask

EIGHT_DECIMALS, ALL_DIGITS = "%16.8f", "%24.16e"
"""Of one width, so that a number that was cut off with the end of a file is noticed."""

TAKEN = frozenset({"species", "symbols", "pos", "Z", "charge", "move_mask", *per_config_properties})
"""Names of columns that ASE reads as something else."""

_NAME = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff:\\\"]+")
_INT32 = 1 << 31  # ASE reads whole numbers into 32 bits
_EXACT = 1 << 53


class Columns:
    """The lines of one frame with the elements and positions of ``atoms``, its constraints, and ``arrays`` (n, …).

    What cannot be written is told to ``lost(name, reason)``.
    """

    def __init__(self, atoms: Atoms, arrays: Mapping[str, Any], lost: Callable[[str, str], object]) -> None:
        self.lost = lost
        self._names = ["species:S:1", "pos:R:3"]
        self._fields = {"species", "pos0", "pos1", "pos2"}  # what the reader calls its columns
        self._formats = ["%-2s", *[EIGHT_DECIMALS] * 3]
        self._columns: list[list[Any]] = [list(atoms.symbols), *atoms.positions.T.tolist()]
        mask = move_mask(atoms)
        if mask is None and is_mask(arrays.get(FREE_ARRAY), len(atoms)):
            mask = arrays[FREE_ARRAY] != 0
            lost(FREE_ARRAY, "written as the constraint that it means")
        if mask is not None:
            self._put(FREE_ARRAY, "L", mask)
            arrays = {name: values for name, values in arrays.items() if name != FREE_ARRAY}
        for name, values in arrays.items():
            if name not in ("numbers", "positions"):
                self._add(name, values)

    @property
    def properties(self) -> str:
        """What the columns are, as the entry ``Properties`` has it."""
        text = ":".join(self._names)
        return f'"{text}"' if re.search(r"[\s'{}\[\]=,]", text) else text

    def lines(self) -> str:
        """One line an atom."""
        line = " ".join(self._formats) + "\n"
        return "".join([line % row for row in zip(*self._columns, strict=True)])

    def _add(self, name: str, values: Any) -> None:
        """A column, or several, of an array (n, …)."""
        if name in TAKEN or not _NAME.fullmatch(name) or name != name.strip():
            self.lost(name, "left out, as extended XYZ cannot hold the name")
            return
        array, kind, reason = _column(np.asarray(values))
        if reason:
            self.lost(name, reason)
        if not kind:
            return
        if array.ndim > 2 or (array.ndim == 2 and array.shape[1] == 1):
            shape = " × ".join(map(str, array.shape[1:]))
            array = array.reshape(len(array), int(np.prod(array.shape[1:])))
            self.lost(name, f"written as {array.shape[1]} columns, not as {shape}")
        if array.ndim == 2 and array.shape[1] == 0:
            self.lost(name, "left out, as it holds nothing")
        else:
            self._put(name, kind, array)

    def _put(self, name: str, kind: str, array: np.ndarray) -> None:
        width = 1 if array.ndim == 1 else array.shape[1]
        written = PROPERTY_NAME_MAP.get(name, name)
        fields = {written} if width == 1 else {f"{written}{i}" for i in range(width)}
        if fields & self._fields:
            self.lost(name, "left out, as its columns would have the names of others")
            return
        self._fields |= fields
        self._names.append(f"{written}:{kind}:{width}")
        real = EIGHT_DECIMALS if name == "forces" else ALL_DIGITS
        self._formats += [{"R": real, "I": "%8d", "S": "%-2s", "L": "%s"}[kind]] * width
        shown = np.where(array, "T", "F") if kind == "L" else array
        self._columns += shown.reshape(len(array), width).T.tolist()


def _column(array: np.ndarray) -> tuple[np.ndarray, str, str]:
    """``array`` as it can be written, the letter of its type ("" where it cannot), and what is lost."""
    if array.dtype.kind == "f":
        return array.astype(np.float64, copy=False), "R", ""
    if array.dtype.kind in "iu":
        largest = max(int(array.max()), -int(array.min())) if array.size else 0
        if largest < _INT32:
            return array, "I", ""
        if largest <= _EXACT:
            return array.astype(np.float64), "R", "written as real numbers, as ASE reads whole ones into 32 bits"
        return array, "", "left out, as ASE reads whole numbers into 32 bits"
    if array.dtype.kind == "b":
        return array, "L", ""
    if array.dtype.kind == "O":
        found = _of_objects(array)
        if found is not None:
            return _column(found)
    if array.dtype.kind == "U":
        words = array.ravel().tolist()
        if all(len(word.split()) == 1 and word == word.strip() and not _SURROGATE.search(word) for word in words):
            return array, "S", ""
        return array, "", "left out, as words with spaces or without letters cannot stand in a column"
    return array, "", f"left out, as a column cannot hold {array.dtype.name}"


_SURROGATE = re.compile(r"[\ud800-\udfff]")


def _of_objects(array: np.ndarray) -> np.ndarray | None:
    """An array of text, truth values or numbers, where all objects are of one such kind."""
    values = array.ravel().tolist()
    for kinds in (str, bool | np.bool_, int | float | np.integer | np.floating):
        if values and all(isinstance(one, kinds) for one in values):
            found = np.array(values)
            return found.reshape(array.shape) if found.dtype.kind in "Ubiuf" else None
    return None
