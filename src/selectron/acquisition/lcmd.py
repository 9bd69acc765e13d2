"""Largest cluster maximum distance."""

from __future__ import annotations

import torch
from torch import Tensor

from .distances import COLUMNS_AT_ONCE, SquaredDistances
from .greedy import NEVER, Selection, greedy
from .problem import Problem


class LargestCluster:
    """Score: squared distance to the centre, for members of the largest cluster; the others are out.

    Holzmüller et al. (2023), section 4.3, LCMD-TP: training structures and picks are cluster centres, every
    candidate belongs to the nearest one (the earlier of equals), and the size of a cluster is the sum of the
    squared distances of its members. Without a training set the first pick is the structure of largest norm.

    Sizes are summed as 62-bit integers, so neither the order of the candidates nor the order of a GPU's atomic
    additions can break a tie; the rounding, 1e-13 of the largest distance, is below that of the distances.
    """

    def __init__(self, problem: Problem, budget: int) -> None:
        self.distances = SquaredDistances(problem)
        self.nearest, self.centre = self.distances.nearest_training()
        self.n_centres = self.distances.train.shape[0]
        self.most_centres = self.n_centres + budget
        self._sizes = torch.zeros(0)
        self._weights = self.nearest

    def score(self, available: Tensor) -> Tensor:
        """(n,) squared distances within the largest cluster."""
        if self.n_centres == 0:
            return self.distances.norms
        self._weights = torch.where(available, self.nearest, 0.0)
        self._sizes = cluster_sizes(self._weights, self.centre, self.most_centres)
        # Clusters whose members are all taken have size 0 and can win only when nothing else has any size left.
        return torch.where(self._sizes[self.centre] == self._sizes.max(), self._weights, NEVER)

    def update(self, pick: int) -> None:
        """The pick is one more centre; candidates that are closer to it than to their own change over."""
        column = self.distances.column(pick, self._likely())
        closer = column < self.nearest
        self.nearest = torch.where(closer, column, self.nearest)
        self.centre = torch.where(closer, self.n_centres, self.centre)
        self.n_centres += 1

    def _likely(self) -> Tensor:
        """The farthest member of each of the largest clusters: the next picks, unless a new centre changes them."""
        if self.n_centres == 0:
            return torch.zeros(0, dtype=torch.int64)
        largest = torch.topk(self._sizes, min(COLUMNS_AT_ONCE, self._sizes.numel())).indices
        member = self.centre[None, :] == largest[:, None]
        return torch.unique(torch.argmax(torch.where(member, self._weights[None, :], NEVER), dim=1))


def cluster_sizes(weights: Tensor, cluster: Tensor, n_clusters: int) -> Tensor:
    """(n_clusters,) int64: sums of the non-negative ``weights`` (n,) over clusters, in units of max / 2^k."""
    bits = 62 - max(1, int(weights.numel() - 1).bit_length())
    largest = weights.max()
    unit = torch.where(largest > 0, largest, torch.ones_like(largest))
    integers = (weights / unit * 2.0**bits).round().to(torch.int64)
    return torch.zeros(n_clusters, dtype=torch.int64, device=weights.device).index_add_(0, cluster, integers)


def select_lcmd(problem: Problem, budget: int) -> Selection:
    """The farthest member of the largest cluster around training structures and picks, again and again."""
    return greedy(LargestCluster(problem, budget), available=problem.available, groups=problem.groups, budget=budget)
