"""Isolated atoms among structures: they give reference energies, and are neither trained on nor picked nor counted."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.geometry import complete_cell
from ase.neighborlist import primitive_neighbor_list

ALONE_BEYOND_A = 6.0
"""An atom whose nearest periodic image is farther away than this has no neighbour; no element's crystal is so wide."""


def is_isolated_atom(atoms: Atoms) -> bool:
    """Whether ``atoms`` is one atom alone in vacuum, whatever its periodicity.

    It is one atom that either says so (``config_type`` is IsolatedAtom, in any case, with or without ``_``, ``-`` or a
    space: mace-torch's name) or has no periodic image within :data:`ALONE_BEYOND_A`, as in the box of a plane-wave code. The
    atom of a primitive cell has such images.
    """
    if len(atoms) != 1:
        return False
    said = atoms.info.get("config_type")
    if isinstance(said, str) and "".join(c for c in said.lower() if c.isalpha()) == "isolatedatom":
        return True
    pbc, cell = atoms.pbc, atoms.cell.array
    if not pbc.any():
        return True
    if not (np.isfinite(cell).all() and np.linalg.matrix_rank(cell[pbc]) == pbc.sum()):
        return False
    whole = complete_cell(np.where(pbc[:, None], cell, 0.0))
    return not len(primitive_neighbor_list("i", pbc, whole, np.zeros((1, 3)), ALONE_BEYOND_A))
