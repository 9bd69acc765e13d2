"""Groups of structures that are the same to within the noise of their features."""

from __future__ import annotations

import torch
from torch import Tensor

DEFAULT_TOLERANCE = 1e-5
N_PROJECTIONS = 8
# A difference of length t has a random projection longer than 7 t / √D with probability 3e-12.
PROJECTION_MARGIN = 7.0
PAIRS_AT_ONCE = 16384


def duplicate_groups(vectors: Tensor, tolerance: float = DEFAULT_TOLERANCE) -> Tensor:
    """(n,) int64: for each of n vectors (n, q) the lowest index of the group of duplicates that it belongs to.

    Two vectors are duplicates when ‖a − b‖ ≤ tolerance · max(‖a‖, ‖b‖); members of a group are joined through a
    leader, not along chains, so slow drift along a trajectory does not merge it into one group. The default 1e-5
    lies above the noise of float32 features (about 1e-6 relative, from the order of sums in a batch) and below any
    difference that a label could resolve. Vectors are sorted along a fixed random direction, neighbours within the
    window that duplicates must share are compared along seven more, and what passes is verified by the full
    distance in float64: O(n log n + n q), plus the pairs verified.
    """
    n, q = vectors.shape
    device = vectors.device
    leader = torch.arange(n, device=device)
    if n < 2:
        return leader
    projections, norms = _project(vectors)
    window = norms * (tolerance * min(1.0, PROJECTION_MARGIN / q**0.5))
    # Rounding of the projections themselves must not hide an exact duplicate.
    window = window + 1e-13 * norms
    widest = window.max()
    alive = torch.argsort(projections[:, 0], stable=True)
    along, reach = _sorted_by(alive, projections, window)
    offset = 1
    while offset < alive.numel():
        # Ends when not even the widest window reaches further; a longer vector's may reach over shorter ones in between.
        gap = along[offset:] - along[:-offset]
        if not bool((gap <= widest).any()):
            break
        position = torch.nonzero(gap <= torch.maximum(reach[offset:], reach[:-offset]))[:, 0]
        first, second = alive[position], alive[position + offset]
        apart = (projections[second] - projections[first]).abs()
        likely = (apart <= torch.maximum(window[first], window[second])[:, None]).all(1)
        position = position[likely][_same(vectors, norms, first[likely], second[likely], tolerance)]
        if position.numel() == 0:
            offset += 1
            continue
        # Runs of neighbours that are duplicates of each other share the run's first member, as far as they are duplicates
        # of that one too.
        member = position + offset
        parent = torch.arange(alive.numel(), device=device)
        parent[member] = position
        for _ in range(int(alive.numel()).bit_length()):
            parent = parent[parent]
        root = parent[member]
        agreed = _same(vectors, norms, alive[root], alive[member], tolerance)
        leader[alive[member[agreed]]] = alive[root[agreed]]
        keep = torch.ones(alive.numel(), dtype=torch.bool, device=device)
        keep[member[agreed]] = False
        alive = alive[keep]
        along, reach = _sorted_by(alive, projections, window)
        offset = 1
    # A leader found early may itself have joined another one later.
    for _ in range(n.bit_length()):
        leader = leader[leader]
    lowest = torch.full((n,), n, dtype=torch.int64, device=device)
    lowest.scatter_reduce_(0, leader, torch.arange(n, device=device), "amin")
    return lowest[leader]


def _sorted_by(order: Tensor, projections: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
    """First projection and window of the vectors in the given order."""
    return projections[:, 0].index_select(0, order), window.index_select(0, order)


def _project(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """(n, 8) float64 projections on fixed random unit vectors, and (n,) float64 norms."""
    n, q = vectors.shape
    generator = torch.Generator().manual_seed(1)
    directions = torch.randn(q, N_PROJECTIONS, generator=generator, dtype=torch.float64).to(vectors.device)
    directions = directions / directions.norm(dim=0)
    projections = torch.empty(n, N_PROJECTIONS, dtype=torch.float64, device=vectors.device)
    norms = torch.empty(n, dtype=torch.float64, device=vectors.device)
    for start in range(0, n, PAIRS_AT_ONCE):
        chunk = vectors[start : start + PAIRS_AT_ONCE].to(torch.float64)
        projections[start : start + PAIRS_AT_ONCE] = chunk @ directions
        norms[start : start + PAIRS_AT_ONCE] = chunk.norm(dim=1)
    return projections, norms


def _same(vectors: Tensor, norms: Tensor, first: Tensor, second: Tensor, tolerance: float) -> Tensor:
    """(p,) bool: whether pairs of vectors are within the tolerance, by their full distance in float64."""
    out = torch.empty(first.numel(), dtype=torch.bool, device=vectors.device)
    for start in range(0, first.numel(), PAIRS_AT_ONCE):
        a, b = first[start : start + PAIRS_AT_ONCE], second[start : start + PAIRS_AT_ONCE]
        distance = (vectors[a].to(torch.float64) - vectors[b].to(torch.float64)).norm(dim=1)
        out[start : start + PAIRS_AT_ONCE] = distance <= tolerance * torch.maximum(norms[a], norms[b])
    return out
