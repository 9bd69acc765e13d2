"""Largest cluster maximum distance."""

from __future__ import annotations

import torch
from torch import Tensor

from .distances import NearestCentre
from .greedy import NEVER, Selection, greedy
from .problem import Problem


class LargestCluster:
    """Score: squared distance to the centre, for members of the largest cluster; the others are out.

    Holzmüller et al. (2023), LCMD-TP: training structures and picks are cluster centres, every candidate
    belongs to the nearest one (the earlier of equals), and the size of a cluster is the sum of the squared distances of
    its members. Without a training set the first pick is the structure of largest norm.
    """

    def __init__(self, problem: Problem, budget: int) -> None:
        self.nearest = NearestCentre(problem)
        self.most_centres = self.nearest.n_centres + budget

    def score(self, available: Tensor) -> Tensor:
        """(n,) squared distances within the largest cluster."""
        if self.nearest.n_centres == 0:
            return self.nearest.norms
        # Who cannot be picked does not count: a cluster of excluded candidates would win for ever.
        weights = torch.where(available, self.nearest.distance, 0.0)
        sizes = cluster_sizes(weights, self.nearest.centre, self.most_centres)
        return torch.where((sizes == sizes.max()).gather(0, self.nearest.centre), weights, NEVER)

    def update(self, pick: int) -> None:
        """The pick is one more centre; candidates that are closer to it than to their own change over."""
        self.nearest.add(pick)


def cluster_sizes(weights: Tensor, cluster: Tensor, n_clusters: int) -> Tensor:
    """(n_clusters,) int64: sums of non-negative ``weights`` (n,) over clusters, in units of the largest / 2^k.

    Integers, up to 2⁶², so that neither the order of the candidates nor the order of a GPU's atomic additions can
    break a tie. One unit is 2⁻⁴⁷ of the largest weight for 20,000 candidates.
    """
    bits = 62 - max(1, int(weights.numel() - 1).bit_length())
    largest = weights.max().clamp(min=1e-200)
    integers = (weights * (2.0**bits / largest)).to(torch.int64)
    return torch.zeros(n_clusters, dtype=torch.int64, device=weights.device).index_add_(0, cluster, integers)


def select_lcmd(problem: Problem, budget: int) -> Selection:
    """The farthest member of the largest cluster around training structures and picks, again and again."""
    return greedy(LargestCluster(problem, budget), available=problem.available, groups=problem.groups, budget=budget)
