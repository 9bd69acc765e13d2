"""A name for a structure that depends on nothing but its atoms."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from ase import Atoms

_PER_ANGSTROM = 1e8


def structure_hash(atoms: Atoms) -> str:
    """32 hexadecimal digits that two structures share when their atoms are the same, in the same order.

    BLAKE2b (16 bytes) over the atomic numbers, the periodic directions, the positions and the lattice vectors of the
    periodic directions, positions and vectors rounded to 1e-8 Å and written as little-endian 64-bit integers. Labels,
    ``info``, other per-atom arrays, constraints and lattice vectors of directions that are not periodic do not enter,
    so that a structure keeps its hash through :func:`~selectron.structures.write_extxyz` (eight decimals) and through
    labelling. Moving, rotating, wrapping or reordering the atoms changes it.
    """
    pbc = np.asarray(atoms.pbc, dtype=bool)
    digest = blake2b(atoms.numbers.astype("<i8").tobytes(), digest_size=16)
    digest.update(pbc.tobytes())
    digest.update(_whole(atoms.arrays["positions"]))
    if pbc.any():
        digest.update(_whole(np.where(pbc[:, None], atoms.cell.array, 0.0)))
    return digest.hexdigest()


def _whole(lengths_A: np.ndarray) -> bytes:
    """Lengths as integers: −0.0 and 0.0, and whatever rounds to them, become the same 0."""
    return np.rint(lengths_A * _PER_ANGSTROM).astype("<i8").tobytes()
