"""Atoms that are held: constraints that extended XYZ and the samplers know, and arrays that mean one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms, FixCartesian

from selectron.wording import counted

DESCRIBING_ARRAYS = ("initial_magmoms", "initial_charges", "tags", "masses", "fixed")
"""Per-atom arrays that say what a structure is, not what was computed of it or how it moved."""

HELD_ARRAY, FREE_ARRAY = "fixed", "move_mask"
"""Arrays of 0 and 1 (or truth values): ``fixed`` is 1 for atoms that are held (OC20), ``move_mask`` for those that move."""


def free_coordinates(atoms: Atoms) -> np.ndarray | None:
    """(n, 3) bool, False where ``FixAtoms`` or ``FixCartesian`` holds a coordinate; None where nothing is held."""
    free = None
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms | FixCartesian):
            free = np.ones((len(atoms), 3), dtype=bool) if free is None else free
            held = True if isinstance(constraint, FixAtoms) else np.asarray(constraint.mask, dtype=bool)
            free[constraint.index] &= ~np.broadcast_to(held, 3)
    return None if free is None or free.all() else free


def move_mask(atoms: Atoms) -> np.ndarray | None:
    """(n,) or (n, 3) bool as extended XYZ has it, True for what moves; None where nothing is held."""
    free = free_coordinates(atoms)
    if free is None:
        return None
    return free[:, 0] if (free.any(1) == free.all(1)).all() else free


def unknown_constraints(atoms: Atoms) -> list[str]:
    """Names of the constraints that neither extended XYZ nor a sampler knows."""
    return [type(one).__name__ for one in atoms.constraints if not isinstance(one, FixAtoms | FixCartesian)]


def hold(atoms: Atoms, free: np.ndarray) -> None:
    """Gives ``atoms`` the constraints that hold what is not ``free`` ((n,) or (n, 3) bool), in place of all it had."""
    free = np.broadcast_to(free[:, None], (len(free), 3)) if free.ndim == 1 else free
    constraints: list[FixAtoms | FixCartesian] = []
    for row in np.unique(free, axis=0):
        if not row.all():
            index = np.flatnonzero((free == row).all(1))
            constraints.append(FixCartesian(index, mask=~row) if row.any() else FixAtoms(index))
    atoms.set_constraint(constraints)


def held_by_arrays(atoms: Atoms) -> str | None:
    """Holds the atoms that an array says are held, where ``atoms`` has no constraint; which array that was, if any.

    An array ``fixed`` stays; ``move_mask``, under which extended XYZ keeps constraints, goes.
    """
    for name in (HELD_ARRAY, FREE_ARRAY):
        values = atoms.arrays.get(name)
        if values is None or not is_mask(values, len(atoms)):
            continue
        free = np.equal(values, 0 if name == HELD_ARRAY else 1)
        if name == FREE_ARRAY:
            del atoms.arrays[name]
        if not atoms.constraints and not free.all():
            hold(atoms, free)
            return name
    return None


def gathered(atoms: Atoms) -> None:
    """The same coordinates held by one constraint for each set of directions: ASE's reader makes one for each atom."""
    if len(atoms.constraints) > 8 and not unknown_constraints(atoms):
        free = free_coordinates(atoms)
        hold(atoms, np.ones(len(atoms), dtype=bool) if free is None else free)


def of_nothing_computed(atoms: Atoms, info: dict[str, Any]) -> Atoms:
    """Elements, positions, cell, periodicity, constraints and :data:`DESCRIBING_ARRAYS` of ``atoms``, with ``info``.

    No label, momentum or other array comes along.
    """
    copy = Atoms(
        atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc, constraint=atoms.constraints, info=info
    )
    for name in DESCRIBING_ARRAYS:
        if name in atoms.arrays:
            copy.set_array(name, atoms.arrays[name])
    return copy


def held_sentence(structures: Sequence[Atoms]) -> str | None:
    """What of ``structures`` is held in place, and how that is known; None where nothing is."""
    masks = [free_coordinates(atoms) for atoms in structures]
    held = sum(1 for mask in masks if mask is not None)
    if not held:
        return None
    atoms = sum(int((~mask).any(1).sum()) for mask in masks if mask is not None)
    return (
        f"Held in place: {counted(atoms, 'atom')} of {counted(held, 'structure')}, by FixAtoms, FixCartesian, or an array "
        f"'{HELD_ARRAY}' of 0 and 1."
    )


def is_mask(values: np.ndarray | None, atoms: int) -> bool:
    """Whether ``values`` is an array (n,) or (n, 3) of 0 and 1 or truth values for ``atoms`` atoms."""
    if values is None:
        return False
    shaped = values.shape in ((atoms,), (atoms, 3))
    return shaped and values.dtype.kind in "biuf" and bool(((values == 0) | (values == 1)).all())
