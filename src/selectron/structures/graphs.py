"""Structures as tensors: one batch convention, and the neighbour lists inside a cutoff."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from ase import Atoms
from matscipy.neighbours import neighbour_list
from torch import Tensor

_ALL_PAIRS_UP_TO = 200  # atoms; below this the N × N distance matrix of a molecule is quicker than a cell list


class GraphBatch(NamedTuple):
    """B structures with N atoms and E directed edges in all, atoms of a structure contiguous.

    | field         | shape     | meaning                                                              |
    |---------------|-----------|----------------------------------------------------------------------|
    | positions     | (N, 3)    | Å                                                                    |
    | numbers       | (N,)      | int64, atomic numbers                                                |
    | system_idx    | (N,)      | int64, the structure an atom belongs to                              |
    | counts        | (B,)      | int64, atoms of each structure                                       |
    | cell          | (B, 3, 3) | Å, rows are lattice vectors; zero where there is no cell             |
    | pbc           | (B, 3)    | bool                                                                 |
    | edge_index    | (2, E)    | int64, sender and receiver; vector = r[receiver] − r[sender] + shift |
    | unit_shifts   | (E, 3)    | whole lattice vectors that the receiver's image is away              |
    | edge_counts   | (B,)      | int64, edges of each structure                                       |

    Edges are sorted by receiver, and so grouped by structure. A batch for a potential without a cutoff has
    no edges.
    """

    positions: Tensor
    numbers: Tensor
    system_idx: Tensor
    counts: Tensor
    cell: Tensor
    pbc: Tensor
    edge_index: Tensor
    unit_shifts: Tensor
    edge_counts: Tensor

    @property
    def n_structures(self) -> int:
        """B."""
        return int(self.counts.shape[0])

    @property
    def shifts(self) -> Tensor:
        """(E, 3) in Å: lattice translation of each edge."""
        return torch.einsum("ei,eij->ej", self.unit_shifts, self.cell[self.edge_system_idx])

    @property
    def edge_system_idx(self) -> Tensor:
        """(E,) int64: the structure an edge belongs to."""
        return self.system_idx[self.edge_index[0]]

    def take(self, structures: Tensor) -> GraphBatch:
        """The structures ``structures`` (K,) of this batch, in that order; one may come more than once."""
        atoms, owner = _blocks(self.counts, structures)
        edges, edge_owner = _blocks(self.edge_counts, structures)
        counts = self.counts[structures]
        starts = torch.cumsum(self.counts, 0) - self.counts
        shift = (torch.cumsum(counts, 0) - counts - starts[structures])[edge_owner]
        return GraphBatch(
            positions=self.positions[atoms],
            numbers=self.numbers[atoms],
            system_idx=owner,
            counts=counts,
            cell=self.cell[structures],
            pbc=self.pbc[structures],
            edge_index=self.edge_index[:, edges] + shift,
            unit_shifts=self.unit_shifts[edges],
            edge_counts=self.edge_counts[structures],
        )

    def to(self, device: torch.device | str, dtype: torch.dtype) -> GraphBatch:
        """The same batch on ``device``, its floating-point fields in ``dtype``."""
        return GraphBatch(*(f.to(device, dtype) if f.is_floating_point() else f.to(device) for f in self))


def _blocks(counts: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Items of the blocks ``chosen`` one after the other, and which of the chosen blocks each belongs to."""
    sizes = counts[chosen]
    owner = torch.repeat_interleave(torch.arange(len(chosen), device=counts.device), sizes)
    starts = torch.cumsum(counts, 0) - counts
    within = torch.arange(len(owner), device=counts.device) - (torch.cumsum(sizes, 0) - sizes)[owner]
    return starts[chosen][owner] + within, owner


def neighbours(atoms: Atoms, cutoff_A: float) -> tuple[np.ndarray, np.ndarray]:
    """Directed edges of all pairs, periodic images included, closer than ``cutoff_A``.

    Returns the pair (edge_index (2, E) int64, sorted by receiver, unit_shifts (E, 3) float64). An atom is the neighbour
    of its own periodic images but not of itself.
    """
    positions = atoms.positions
    pbc = atoms.pbc
    if not pbc.any():
        if len(atoms) <= _ALL_PAIRS_UP_TO:
            difference = positions[:, None] - positions[None]
            close = np.einsum("ijx,ijx->ij", difference, difference) < cutoff_A * cutoff_A
            np.fill_diagonal(close, False)
            receiver, sender = np.nonzero(close)
            edge_index = np.stack([sender, receiver])
            return edge_index, np.zeros((edge_index.shape[1], 3))
        extent = np.ptp(positions, axis=0) + 2 * cutoff_A + 1.0
        cell = np.diag(extent)
    else:
        cell = atoms.cell.array.copy()
        if not pbc.all():
            cell = complete_cell(cell, pbc, positions, cutoff_A)
    # matscipy sorts by its first index: it is the receiver here, and the vector from sender to receiver turns round
    receiver, sender, shift = neighbour_list("ijS", pbc=pbc, cell=cell, positions=positions, cutoff=cutoff_A)
    return np.stack([sender, receiver]).astype(np.int64), -shift.astype(np.float64)


def complete_cell(cell: np.ndarray, pbc: np.ndarray, positions: np.ndarray, cutoff_A: float) -> np.ndarray:
    """Gives open directions vectors that are orthogonal to the periodic ones and longer than the structure."""
    completed = cell.copy()
    completed[~pbc] = 0.0
    for axis in np.flatnonzero(~pbc):
        others = completed[np.linalg.norm(completed, axis=1) > 0]
        # the null space of the vectors there are: the last right-singular vector is orthogonal to all of them
        direction = np.linalg.svd(others)[2][-1] if len(others) else np.eye(3)[axis]
        extent = np.ptp(positions @ direction) + 2 * cutoff_A + 1.0
        completed[axis] = direction * extent
    if np.linalg.det(completed) < 0:
        open_axis = int(np.flatnonzero(~pbc)[0])
        completed[open_axis] *= -1.0
    return completed


def collate(structures: Sequence[Atoms], cutoff_A: float | None) -> GraphBatch:
    """One float64 CPU batch of ``structures``; no edges where ``cutoff_A`` is None."""
    counts = np.array([len(atoms) for atoms in structures], dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]]) if len(counts) else np.zeros(0, dtype=np.int64)
    edges, shifts = [], []
    for atoms, start in zip(structures, starts, strict=True):
        if cutoff_A is None:
            edge_index, unit_shifts = np.zeros((2, 0), dtype=np.int64), np.zeros((0, 3))
        else:
            edge_index, unit_shifts = neighbours(atoms, cutoff_A)
        edges.append(edge_index + start)
        shifts.append(unit_shifts)
    stacked = {
        "positions": [atoms.positions for atoms in structures],
        "numbers": [atoms.numbers for atoms in structures],
    }
    positions = np.concatenate(stacked["positions"]) if counts.size else np.zeros((0, 3))
    numbers = np.concatenate(stacked["numbers"]).astype(np.int64) if counts.size else np.zeros(0, dtype=np.int64)
    cells = np.stack([atoms.cell.array for atoms in structures]) if counts.size else np.zeros((0, 3, 3))
    pbc = np.stack([atoms.pbc for atoms in structures]) if counts.size else np.zeros((0, 3), dtype=bool)
    return GraphBatch(
        positions=torch.from_numpy(positions.astype(np.float64, copy=False)),
        numbers=torch.from_numpy(numbers),
        system_idx=torch.from_numpy(np.repeat(np.arange(len(counts)), counts)),
        counts=torch.from_numpy(counts),
        cell=torch.from_numpy(cells.astype(np.float64, copy=False)),
        pbc=torch.from_numpy(pbc),
        edge_index=torch.from_numpy(np.concatenate(edges, axis=1) if edges else np.zeros((2, 0), dtype=np.int64)),
        unit_shifts=torch.from_numpy(np.concatenate(shifts) if shifts else np.zeros((0, 3))),
        edge_counts=torch.tensor([e.shape[1] for e in edges], dtype=torch.int64),
    )
