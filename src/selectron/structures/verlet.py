"""Neighbour lists that last: pairs inside the cutoff plus a skin are kept, and each step only picks the close ones.

Verlet, Phys. Rev. 159, 98 (1967): pairs closer than cutoff + skin are listed once. As long as no atom has moved farther than
skin / 2, no other pair can have come inside the cutoff, and a step needs nothing but the lengths of the listed pairs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from selectron.structures.graphs import GraphBatch, complete_cell, neighbours

_ALL_PAIRS_UP_TO = 64  # atoms; a molecule of at most so many lists every pair, and never has to do so again
_FEW_IMAGES = (
    1_000_000  # atoms × atoms × cells around; above, distances to all images are never quicker than a cell list
)
_ROUNDING_A = 1e-3  # listed beyond the skin, so that rounding in float32 loses no pair
_FARTHEST_A = 1e6  # from the origin; beyond, float32 resolves no bond, and folding into the cell takes for ever


class _Pairs(NamedTuple):
    """H pairs of one structure, each once, and the order that its 2H directed edges come in.

    | field       | shape  | meaning                                                                              |
    |-------------|--------|--------------------------------------------------------------------------------------|
    | ends        | (2, H) | int64, sender and receiver of one of the two directions                              |
    | unit_shifts | (H, 3) | float64, of that direction                                                           |
    | order       | (2H,)  | int64, edges by receiver, sender, shift; k < H is pair k, k + H is its other direction |
    """

    ends: np.ndarray
    unit_shifts: np.ndarray
    order: np.ndarray


class SkinList(NamedTuple):
    """Pairs closer than cutoff + skin of a batch of B structures with N atoms, and the edges of the latest step.

    | field       | shape     | meaning                                                                                |
    |-------------|-----------|----------------------------------------------------------------------------------------|
    | cutoff_A    |           | Å, edges are shorter than this                                                         |
    | skin_A      |           | Å                                                                                      |
    | positions   | (N, 3)    | Å, where each structure was when its pairs were listed                                 |
    | cell        | (B, 3, 3) | Å, likewise                                                                            |
    | counts, pbc |           | of the batch; they stay                                                                |
    | limit_A     | (N,)      | Å, how far an atom may be from ``positions``: skin / 2; infinite in a molecule of which |
    |             |           | all pairs are listed; None where that is so for every structure                        |
    | pairs       | B         | the listed pairs of each structure, on the CPU                                         |
    | ends        | (2H,)     | int64, senders and then receivers of the H listed pairs                                |
    | shifts      | (H, 3)    | Å, lattice translation of each; None where nothing is periodic                         |
    | edge_index  | (2, 2H)   | int64, both directions of all pairs, by receiver, sender, shift                        |
    | unit_shifts | (2H, 3)   | of those edges                                                                         |
    | edge_pair   | (2H,)     | int64, the pair that each of those edges belongs to                                    |
    | edge_starts | (B + 1,)  | int64, where the edges of each structure begin, and their number                       |
    | close       | (H,)      | bool, the pairs inside the cutoff at the latest step                                   |
    | graph       |           | edge_index, unit_shifts and edge_counts of that step                                   |
    """

    cutoff_A: float
    skin_A: float
    positions: Tensor
    cell: Tensor
    counts: Tensor
    pbc: Tensor
    limit_A: Tensor | None
    pairs: tuple[_Pairs, ...]
    ends: Tensor
    shifts: Tensor | None
    edge_index: Tensor
    unit_shifts: Tensor
    edge_pair: Tensor
    edge_starts: Tensor
    close: Tensor
    graph: tuple[Tensor, Tensor, Tensor]


def skin_list(batch: GraphBatch, cutoff_A: float, skin_A: float = 0.7) -> SkinList:
    """The list of ``batch``, whose own edges are not looked at.

    A wider skin is listed anew more seldom, and costs more at every step.

    Args:
        batch: structures on any device, float32 or float64.
        cutoff_A: edges are shorter than this.
        skin_A: how much farther pairs are listed.

    Raises:
        ValueError: cutoff or skin is not positive.
    """
    if not (cutoff_A > 0 and skin_A > 0):
        raise ValueError(f"cutoff_A and skin_A are lengths above 0, not {cutoff_A} and {skin_A}")
    counts = batch.counts.tolist()
    periodic = batch.pbc.any(dim=1).tolist()
    lasting = [n <= _ALL_PAIRS_UP_TO and not images for n, images in zip(counts, periodic, strict=True)]
    limits = np.repeat(np.where(lasting, np.inf, skin_A / 2), counts)
    limit_A = None if all(lasting) else torch.from_numpy(limits).to(batch.positions)
    pairs = tuple(_listed(batch, range(len(counts)), cutoff_A + skin_A))
    return _assembled(batch, cutoff_A, skin_A, limit_A, pairs, batch.positions.detach().clone())


def refreshed(skin: SkinList, batch: GraphBatch) -> tuple[SkinList, GraphBatch]:
    """``batch`` with the edges of its positions, all pairs closer than the cutoff, and the list to use at the next step.

    The edges are those of :func:`~selectron.structures.graphs.collate`, ordered by receiver, sender and shift, so that
    they depend on the positions alone and not on when the list was made: a trajectory that restarts from a
    checkpoint is the same bit for bit. Atoms may leave the cell; unit shifts belong to the positions as they are.

    When an atom has moved farther than skin / 2, or a cell has changed, its structure is listed anew, and so is every
    other that has used up half its allowance. A periodic or large structure that has exploded (positions not
    finite, or beyond 10⁶ Å) has no edges until it comes back.

    Steps with the same edges share their tensors, which must not be written to. A step costs one transfer to the
    host where the edges are the same as before, and one more where they are not.

    Args:
        skin: of the step before, made of the same structures.
        batch: with new positions, and perhaps a new cell; its own edges are not looked at.

    Raises:
        ValueError: the batch holds other structures than the list, or other types or devices.
    """
    _check_same(skin, batch)
    positions = batch.positions.detach()
    close = _close(skin, positions)
    if skin.limit_A is None:
        unchanged = torch.equal(close, skin.close)
    else:
        within = (torch.linalg.vector_norm(positions - skin.positions, dim=1) <= skin.limit_A).all()
        same_cells = (batch.cell == skin.cell).all()
        same_edges = (close == skin.close).all()
        valid, fixed, unchanged = torch.stack([within, same_cells, same_edges]).tolist()
        if not (valid and fixed):  # positions that are not finite are within no limit
            skin = _renewed(skin, batch, positions)
            close = skin.close
            unchanged = True
    if not unchanged:
        skin = skin._replace(close=close, graph=_graph(skin, close))
    edge_index, unit_shifts, edge_counts = skin.graph
    return skin, batch._replace(edge_index=edge_index, unit_shifts=unit_shifts, edge_counts=edge_counts)


def _check_same(skin: SkinList, batch: GraphBatch) -> None:
    old, new = skin.positions, batch.positions
    if new.shape != old.shape or new.dtype != old.dtype or new.device != old.device:
        raise ValueError(
            f"the list is of {len(old)} atoms in {old.dtype} on {old.device},"
            f" the batch has {len(new)} in {new.dtype} on {new.device}"
        )
    for name in ("counts", "pbc"):  # the same object in a trajectory, which costs no look at its values
        mine, theirs = getattr(skin, name), getattr(batch, name)
        if mine is not theirs and not torch.equal(mine, theirs):
            raise ValueError(f"the list belongs to other structures than the batch: their {name} differ")


def _close(skin: SkinList, positions: Tensor) -> Tensor:
    """(H,) bool: listed pairs inside the cutoff. Every length is computed by itself, whatever else is listed."""
    senders, receivers = positions.index_select(0, skin.ends).view(2, -1, 3).unbind(0)
    vectors = receivers - senders
    if skin.shifts is not None:
        vectors += skin.shifts
    return torch.linalg.vector_norm(vectors, dim=1) < skin.cutoff_A


def _graph(skin: SkinList, close: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """edge_index, unit_shifts and edge_counts of the pairs ``close``."""
    kept = close.index_select(0, skin.edge_pair).nonzero().squeeze(1)
    edge_counts = torch.searchsorted(kept, skin.edge_starts).diff()
    return skin.edge_index.index_select(1, kept), skin.unit_shifts.index_select(0, kept), edge_counts


def _renewed(skin: SkinList, batch: GraphBatch, positions: Tensor) -> SkinList:
    """The list with those structures listed anew whose allowance is half used up, or whose cell is another."""
    assert skin.limit_A is not None
    moved = torch.linalg.vector_norm(positions - skin.positions, dim=1)
    other_cell = (batch.cell != skin.cell).flatten(1).any(dim=1)
    spent = skin.limit_A.isfinite() & (~(moved <= 0.5 * skin.limit_A) | other_cell[batch.system_idx])
    due = torch.zeros_like(other_cell)
    due[batch.system_idx[spent]] = True
    which = due.nonzero().squeeze(1).tolist()
    pairs = list(skin.pairs)
    for i, renewed in zip(which, _listed(batch, which, skin.cutoff_A + skin.skin_A), strict=True):
        pairs[i] = renewed
    reference = torch.where(due[batch.system_idx, None], positions, skin.positions)
    return _assembled(batch, skin.cutoff_A, skin.skin_A, skin.limit_A, tuple(pairs), reference)


def _assembled(
    batch: GraphBatch,
    cutoff_A: float,
    skin_A: float,
    limit_A: Tensor | None,
    pairs: tuple[_Pairs, ...],
    positions: Tensor,
) -> SkinList:
    """The tensors of ``pairs`` on the batch's device, and the edges of the batch as it is."""
    like, device = batch.positions, batch.positions.device
    first_atom = _starts(batch.counts.tolist())
    first_pair = _starts([each.ends.shape[1] for each in pairs])
    edges, shifts, owners = [], [], []
    for each, atom, pair in zip(pairs, first_atom, first_pair, strict=False):
        edges.append((np.concatenate([each.ends, each.ends[::-1]], axis=1) + atom)[:, each.order])
        shifts.append(np.concatenate([each.unit_shifts, 0.0 - each.unit_shifts])[each.order])
        owners.append(each.order % max(1, each.ends.shape[1]) + pair)
    ends = _joined([each.ends + atom for each, atom in zip(pairs, first_atom, strict=False)], (2, 0), axis=1)
    pair_shifts = torch.from_numpy(_joined([each.unit_shifts for each in pairs], (0, 3))).to(like)
    translations = None
    if any(each.unit_shifts.any() for each in pairs):
        vectors = batch.cell.detach()[batch.system_idx[torch.from_numpy(ends[0]).to(device)]]
        # term by term: a product of matrices may round differently with what else is listed
        a, b, c = (pair_shifts[:, i, None] * vectors[:, i] for i in range(3))
        translations = a + b + c
    skin = SkinList(
        cutoff_A=cutoff_A,
        skin_A=skin_A,
        positions=positions,
        cell=batch.cell.detach().clone(),
        counts=batch.counts,
        pbc=batch.pbc,
        limit_A=limit_A,
        pairs=pairs,
        ends=torch.from_numpy(ends.reshape(-1)).to(device),
        shifts=translations,
        edge_index=torch.from_numpy(_joined(edges, (2, 0), axis=1)).to(device),
        unit_shifts=torch.from_numpy(_joined(shifts, (0, 3))).to(like),
        edge_pair=torch.from_numpy(_joined(owners, (0,))).to(device),
        edge_starts=torch.from_numpy(2 * first_pair).to(device),
        close=torch.zeros(0, dtype=torch.bool, device=device),
        graph=(batch.edge_index, batch.unit_shifts, batch.edge_counts),
    )
    close = _close(skin, batch.positions.detach())
    return skin._replace(close=close, graph=_graph(skin, close))


def _starts(sizes: Sequence[int]) -> np.ndarray:
    """Where each of the blocks begins, and the end of the last."""
    return np.concatenate([[0], np.cumsum(np.asarray(sizes, dtype=np.int64))]).astype(np.int64)


def _joined(arrays: list[np.ndarray], empty: tuple[int, ...], axis: int = 0) -> np.ndarray:
    """The arrays one after the other; for none, one of the shape ``empty`` and whole numbers or, with 3 columns, floats."""
    if arrays:
        return np.ascontiguousarray(np.concatenate(arrays, axis=axis))
    return np.zeros(empty, dtype=np.float64 if empty == (0, 3) else np.int64)


def _listed(batch: GraphBatch, which: Iterable[int], reach_A: float) -> list[_Pairs]:
    """Pairs of the structures ``which`` that are closer than ``reach_A``, or all pairs of small molecules."""
    first_atom = _starts(batch.counts.tolist())
    positions = batch.positions.detach().to("cpu", torch.float64).numpy()
    cell = batch.cell.detach().to("cpu", torch.float64).numpy()
    pbc = batch.pbc.cpu().numpy()
    found = []
    for i in which:
        own = positions[first_atom[i] : first_atom[i + 1]]
        if not pbc[i].any() and len(own) <= _ALL_PAIRS_UP_TO:
            found.append(_all_pairs(len(own)))
        elif (np.abs(own) < _FARTHEST_A).all() and np.isfinite(cell[i]).all():
            found.append(_ordered(*_edges(own, cell[i], pbc[i], reach_A + _ROUNDING_A)))
        else:
            found.append(_all_pairs(0))
    return found


def _edges(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, reach_A: float) -> tuple[np.ndarray, np.ndarray]:
    """What :func:`neighbours` returns, in any order; several times faster for most small crystals."""
    atoms = Atoms(numbers=np.ones(len(positions)), positions=positions, cell=cell, pbc=pbc)
    if not pbc.any():
        return neighbours(atoms, reach_A)
    whole = cell if pbc.all() else complete_cell(cell, pbc, positions, reach_A)
    inverse = np.linalg.inv(whole)
    margin = reach_A * np.linalg.norm(inverse, axis=0) + 1e-9  # the reach in units of the distance between cell faces
    span = np.where(pbc, np.ceil(margin), 0)
    # a cell list is slow where the cell is too narrow for two bins
    narrow = (margin[pbc] > 0.5).any()
    if not narrow or len(positions) ** 2 * np.prod(2 * span + 1) > _FEW_IMAGES:
        return neighbours(atoms, reach_A)
    fractional = positions @ inverse
    home = np.floor(fractional) * pbc
    fractional -= home
    cells = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in span), indexing="ij"), axis=-1).reshape(-1, 3)
    images = cells[:, None] + fractional
    near = (~pbc | ((images >= -margin) & (images <= 1 + margin))).all(axis=2)
    which, image_of = np.nonzero(near)
    own, others = fractional @ whole, images[near] @ whole
    squared = sum(
        (np.subtract.outer(own[:, k], others[:, k]) ** 2 for k in range(3)), np.zeros((len(own), len(others)))
    )
    sender, image = np.nonzero(squared < reach_A * reach_A)
    receiver, offset = image_of[image], cells[which[image]]
    itself = (sender == receiver) & ~offset.any(axis=1)
    sender, receiver, offset = sender[~itself], receiver[~itself], offset[~itself]
    return np.stack([sender, receiver]), offset + home[sender] - home[receiver]


@functools.lru_cache(maxsize=_ALL_PAIRS_UP_TO + 1)
def _all_pairs(count: int) -> _Pairs:
    ends = np.stack(np.triu_indices(count, 1)).astype(np.int64)
    senders, receivers = np.concatenate([ends, ends[::-1]], axis=1)
    return _Pairs(ends, np.zeros((ends.shape[1], 3)), np.lexsort((senders, receivers)))


def _ordered(edge_index: np.ndarray, unit_shifts: np.ndarray) -> _Pairs:
    """Each pair of the directed edges once, and the order of both directions."""
    sender, receiver = edge_index
    x, y, z = unit_shifts.T
    positive = (x > 0) | (x == 0) & (
        (y > 0) | (y == 0) & (z > 0)
    )  # tells an atom's two edges to an image of itself apart
    once = (sender < receiver) | (sender == receiver) & positive
    ends, shifts = edge_index[:, once], unit_shifts[once] + 0.0  # no negative zeros
    senders, receivers = np.concatenate([ends, ends[::-1]], axis=1)
    both = np.concatenate([shifts, 0.0 - shifts]).astype(np.int64)
    keys = (receivers, senders, *(both - both.min(axis=0, initial=0)).T)
    sizes = [int(key.max(initial=0)) + 1 for key in keys]
    if math.prod(sizes) < 2**63:  # one whole number an edge, which sorts many times faster than five
        return _Pairs(ends, shifts, np.argsort(np.ravel_multi_index(keys, sizes)))
    return _Pairs(ends, shifts, np.lexsort(keys[::-1]))
