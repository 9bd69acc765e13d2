"""Structures to extended XYZ, plain or gzipped."""

from __future__ import annotations

import gzip
import io
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

from ase import Atoms
from ase.io.extxyz import per_atom_properties, per_config_properties

from selectron.structures.atomic import atomic_output
from selectron.structures.columns import Columns
from selectron.structures.comment_line import entry
from selectron.structures.constraints import unknown_constraints
from selectron.wording import counted

WEIGHT_KEY = "config_weight"
"""What a structure's label counts for in training, in ``info``; mace-torch's name."""

_PER_ATOM, _PER_STRUCTURE = frozenset(per_atom_properties), frozenset(per_config_properties)
_NAMED = 8  # entries that a sentence about losses names


def warn(line: str) -> None:
    """As a Python warning."""
    warnings.warn(line, stacklevel=4)


def write_extxyz(path: str | Path, structures: Iterable[Atoms], *, tell: Callable[[str], object] = warn) -> int:
    """Write ``structures`` one after the other to ``path`` and say how many there were.

    What is written reads back as it was, with ASE and with :class:`~selectron.structures.Pool`: ``info``, per-atom arrays,
    cell, periodicity, the constraints that extended XYZ knows (``FixAtoms``, ``FixCartesian``), and results of a calculator
    that belong to the structure as it is (they win over ``info`` of the same name). Positions and ``forces`` have eight
    decimals, all other numbers all their digits. What cannot be written so is given to ``tell`` in one sentence at the end:
    which entry, what became of it, in how many structures; without ``tell`` it is a Python warning.

    A name that ends in ``.gz`` is compressed, with the same bytes for the same structures. The file appears when the last
    structure is written (:func:`~selectron.structures.atomic_output`), and only one structure is held at a time.

    Raises:
        SelectronError: the folder is missing or not writable, or the disk is full.
    """
    losses = Losses()
    if not str(path).endswith(".gz"):
        with atomic_output(path) as stream:
            count = _write(stream, structures, losses)
    else:
        with (
            atomic_output(path, "wb") as raw,
            gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=6, mtime=0) as packed,
            io.TextIOWrapper(packed, encoding="utf-8", newline="\n") as stream,
        ):
            count = _write(stream, structures, losses)
    if losses:
        tell(losses.sentence())
    return count


class Losses(Counter[tuple[str, str]]):
    """In how many structures something could not be written as it was: what, and what became of it."""

    def sentence(self) -> str:
        """All of it, for people."""
        parts = [
            f"{what} {reason} ({counted(count, 'structure')})" for (what, reason), count in self.most_common(_NAMED)
        ]
        more = f"; and {len(self) - _NAMED} more" if len(self) > _NAMED else ""
        return f"Not everything is written as it was: {'; '.join(parts)}{more}."


def _write(stream: IO[Any], structures: Iterable[Atoms], losses: Losses) -> int:
    count = 0
    for atoms in structures:
        stream.write(frame_lines(atoms, losses))
        count += 1
    return count


def frame_lines(atoms: Atoms, losses: Losses) -> str:
    """The lines of ``atoms`` in extended XYZ; what they cannot hold is counted in ``losses``."""
    results = _results(atoms, losses)
    per_atom = {name: value for name, value in results.items() if name in _PER_ATOM}
    info = atoms.info
    if results:
        info = {key: value for key, value in info.items() if key not in results}
        info |= {name: value for name, value in results.items() if name not in per_atom}
    arrays = {name: values for name, values in atoms.arrays.items() if name not in results} | per_atom
    columns = Columns(atoms, arrays, lambda name, reason: losses.update([(f"array {name!r}", reason)]))
    parts = [f"Properties={columns.properties}"]
    if atoms.cell.any():
        parts.insert(0, f'Lattice="{" ".join(map(repr, atoms.cell.array.ravel().tolist()))}"')
    for key, value in info.items():
        text, lost = entry(key, value)
        if text:
            parts.append(text)
        if lost:
            losses[f"info {key!r}", lost] += 1
    for name in unknown_constraints(atoms):
        losses[f"constraint {name}", "left out, as extended XYZ knows FixAtoms and FixCartesian"] += 1
    parts.append(f'pbc="{" ".join("T" if one else "F" for one in atoms.pbc)}"')
    return f"{len(atoms)}\n{' '.join(parts)}\n{columns.lines()}"


def _results(atoms: Atoms, losses: Losses) -> dict[str, Any]:
    """Results of the calculator that can be written."""
    calc = atoms.calc
    if calc is None or not calc.results:
        return {}
    if calc.check_state(atoms):
        losses["results of a calculator", "left out, as they are of another geometry"] += 1
        return {}
    found = {}
    for name, value in calc.results.items():
        if value is None:
            continue
        if name in _PER_STRUCTURE or name in _PER_ATOM:
            found[name] = value
        else:
            losses[f"result {name!r}", "left out, as ASE reads no result of that name"] += 1
    return found
