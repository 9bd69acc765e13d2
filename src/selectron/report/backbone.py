"""Backbone dihedrals of peptides: which atoms they are, found in the bonding graph, and their angles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.geometry import find_mic
from ase.neighborlist import natural_cutoffs, neighbor_list

from selectron.errors import SelectronError

BOND_SCALE = 1.15
"""Two atoms are bonded when they are nearer than this times the sum of their covalent radii."""

ALL_PAIRS_UP_TO = 400  # atoms; ASE's cell list takes seconds for a molecule in a wide periodic box


@dataclass(frozen=True)
class Backbone:
    """Atoms of the φ and ψ of R residues, along each chain from the N to the C terminus, chain after chain.

    | field | shape          | meaning                          |
    |-------|----------------|----------------------------------|
    | phi   | (R, 4) int64   | C of the residue before, N, Cα, C |
    | psi   | (R, 4) int64   | N, Cα, C, N of the residue after  |
    """

    phi: np.ndarray
    psi: np.ndarray

    def __len__(self) -> int:
        return len(self.phi)


def dihedral(positions: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Dihedral angles in degrees, in [−180, 180), by the IUPAC sign: clockwise is positive, seen from atom 2 to 3.

    Args:
        positions: (..., N, 3) in Å, any number of frames; one that is not periodic, or whose molecules are whole.
        indices: (4,) or (R, 4) atoms a, b, c, d of each angle.

    Returns:
        (...,) or (..., R) float64; NaN where three neighbours lie on one line.

    tan ω = |b₂| b₁ · (b₂ × b₃) / ((b₁ × b₂) · (b₂ × b₃)) with b₁ = r_b − r_a, b₂ = r_c − r_b, b₃ = r_d − r_c (IUPAC,
    Pure Appl. Chem. 68, 2193 (1996), torsion angle).
    """
    corners = np.asarray(positions, dtype=np.float64)[..., np.asarray(indices, dtype=np.int64), :]
    return _torsion(np.diff(corners, axis=-2))


def frame_dihedrals(frames: Sequence[Atoms], indices: np.ndarray) -> np.ndarray:
    """Angles (n, R) in degrees of the dihedrals ``indices`` (R, 4) in n frames; across periodic boundaries too.

    Raises SelectronError when a frame lacks the atoms that ``indices`` name.
    """
    indices = np.asarray(indices, dtype=np.int64).reshape(-1, 4)
    angles = np.empty((len(frames), len(indices)))
    for i, atoms in enumerate(frames):
        if indices.size and indices.max() >= len(atoms):
            raise SelectronError(
                f"Frame {i} has {len(atoms)} atoms, but the dihedrals were found in a structure of at least "
                f"{indices.max() + 1}; the frames of a run must hold the same molecule."
            )
        bonds = np.diff(atoms.positions[indices], axis=-2)
        if atoms.pbc.any():
            bonds = find_mic(bonds.reshape(-1, 3), atoms.cell, atoms.pbc)[0].reshape(bonds.shape)
        angles[i] = _torsion(bonds)
    return angles


def find_backbone(atoms: Atoms) -> Backbone:
    """The φ and ψ of every residue that has both, from the bonding graph of ``atoms``.

    A residue is N–Cα–C where C carries an O without further neighbours and is bonded to the N of the next residue, N is
    bonded to another such C, and Cα is an sp³ carbon (four neighbours; at most three where the structure has no
    hydrogen). Bonds are taken from the geometry, so give a structure in which none is broken or half formed.

    Raises SelectronError when there is no such residue.
    """
    found = residues(atoms)
    if not len(found):
        raise SelectronError(
            f"{atoms.get_chemical_formula()} has no residue with both φ and ψ: no N–Cα–C between two amide groups was "
            "found in its bonding graph; a Ramachandran map needs a peptide, for example a capped alanine."
        )
    return found


def residues(atoms: Atoms) -> Backbone:
    """As :func:`find_backbone`; no residue, and no error, where there is no peptide."""
    numbers, bonded = atoms.numbers, _neighbours(atoms)
    explicit_hydrogen = bool((numbers == 1).any())

    def of(atom: int, number: int) -> list[int]:
        return [j for j in bonded[atom] if numbers[j] == number]

    carbonyl = {c for c in np.flatnonzero(numbers == 6).tolist() if any(len(bonded[o]) == 1 for o in of(c, 8))}
    rows: dict[int, tuple[list[int], list[int]]] = {}
    for alpha in np.flatnonzero(numbers == 6).tolist():
        neighbours = len(bonded[alpha])
        if alpha in carbonyl or not (neighbours == 4 if explicit_hydrogen else neighbours <= 3):
            continue
        for nitrogen in of(alpha, 7):
            for carbon in sorted(carbonyl.intersection(bonded[alpha])):
                before = sorted(carbonyl.intersection(bonded[nitrogen]) - {carbon})
                # A C bonded to both nitrogens closes a ring of five, which is a hydantoin and no backbone.
                pairs = [
                    (c, n) for c in before for n in of(carbon, 7) if n != nitrogen and n not in bonded[c] and c != alpha
                ]
                if pairs:
                    previous, following = pairs[0]
                    rows[nitrogen] = ([previous, nitrogen, alpha, carbon], [nitrogen, alpha, carbon, following])
    order = _along_chains({n: psi[3] for n, (_, psi) in rows.items()})
    phi = np.array([rows[n][0] for n in order], dtype=np.int64).reshape(-1, 4)
    psi = np.array([rows[n][1] for n in order], dtype=np.int64).reshape(-1, 4)
    return Backbone(phi, psi)


def _torsion(bonds: np.ndarray) -> np.ndarray:
    """Angles in degrees of three bond vectors each, (..., 3, 3)."""
    first, second, third = bonds[..., 0, :], bonds[..., 1, :], bonds[..., 2, :]
    normal, other = np.cross(first, second), np.cross(second, third)
    sine = np.linalg.norm(second, axis=-1) * np.einsum("...i,...i->...", first, other)
    cosine = np.einsum("...i,...i->...", normal, other)
    degrees = np.degrees(np.arctan2(sine, cosine))
    straight = (np.abs(normal).max(axis=-1) < 1e-10) | (np.abs(other).max(axis=-1) < 1e-10)
    return np.where(straight, np.nan, np.where(degrees >= 180.0, -180.0, degrees))


def _neighbours(atoms: Atoms) -> list[set[int]]:
    """Atoms bonded to each atom; an image of an atom counts as the atom."""
    radii = np.array(natural_cutoffs(atoms, mult=BOND_SCALE))
    if len(atoms) <= ALL_PAIRS_UP_TO:
        vectors = atoms.positions[:, None] - atoms.positions
        if atoms.pbc.any():
            vectors = find_mic(vectors.reshape(-1, 3), atoms.cell, atoms.pbc)[0].reshape(vectors.shape)
        near = np.linalg.norm(vectors, axis=-1) < np.add.outer(radii, radii)
        np.fill_diagonal(near, False)
        first, second = np.nonzero(near)
    else:
        first, second = neighbor_list("ij", atoms, radii)
    bonded: list[set[int]] = [set() for _ in range(len(atoms))]
    for i, j in zip(first.tolist(), second.tolist(), strict=True):
        bonded[i].add(j)
    return bonded


def _along_chains(following: dict[int, int]) -> list[int]:
    """Keys of a successor map, chain after chain; a ring starts at its smallest key."""
    order: list[int] = []
    seen: set[int] = set()
    starts = sorted(set(following) - set(following.values()))
    for start in [*starts, *sorted(following)]:
        atom = start
        while atom in following and atom not in seen:
            seen.add(atom)
            order.append(atom)
            atom = following[atom]
    return order
