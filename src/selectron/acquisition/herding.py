"""Kernel herding: training set and picks as the best small copy of the pool's distribution."""

from __future__ import annotations

import torch
from torch import Tensor

from .distances import squared_norms
from .greedy import Selection, greedy
from .problem import Problem

MEAN_SAMPLE = 4096
BANDWIDTH_SAMPLE = 512
BLOCK_ENTRIES = 2**21


class Herding:
    """Score: (1/n) Σ_j k(x_j, x) − (1/(t + 1)) Σ_s k(x_s, x), with s over the t training structures and picks so far.

    Chen, Welling and Smola (2010): each pick lowers the maximum mean discrepancy between pool and chosen
    points; starting from the training set makes it fill what the training set lacks. k(x, y) = exp(−‖x − y‖² / 2ℓ²)
    on structure vectors, ℓ² the median squared distance of (a sample of) the candidates. The mean over the pool
    runs over all candidates up to 4096, beyond that over as many drawn with the seed.
    """

    def __init__(self, problem: Problem) -> None:
        vectors, train = (each.to(torch.float64) for each in problem.vectors)
        mean = vectors.mean(0)
        self.points = vectors - mean
        self.squares = squared_norms(self.points)
        generator = torch.Generator().manual_seed(problem.seed)
        self.bandwidth_squared = median_squared_distance(_sample(self.points, BANDWIDTH_SAMPLE, generator))
        sample = _sample(self.points, MEAN_SAMPLE, generator)
        self.pool_mean = self._kernel_sum(sample) / sample.shape[0]
        self.chosen_sum = self._kernel_sum(train - mean)
        self.n_chosen = int(train.shape[0])

    def score(self, available: Tensor) -> Tensor:
        """(n,) by how much more the pool is near a candidate than the chosen points are."""
        return self.pool_mean - self.chosen_sum / (self.n_chosen + 1)

    def update(self, pick: int) -> None:
        """The pick is one more chosen point."""
        self.chosen_sum += self._kernel_sum(self.points[pick][None])
        self.n_chosen += 1

    def _kernel_sum(self, centres: Tensor) -> Tensor:
        """(n,) Σ_c k(x_c, x) over centres (c, q)."""
        inverse = 1.0 / self.bandwidth_squared
        total = torch.zeros_like(self.squares)
        for block in torch.split(centres, max(1, BLOCK_ENTRIES // self.squares.numel())):
            exponent = torch.addmm(self.squares[None, :], block, self.points.T, beta=-0.5 * inverse, alpha=inverse)
            total += exponent.sub_(0.5 * inverse * squared_norms(block)[:, None]).exp_().sum(0)
        return total


def median_squared_distance(points: Tensor) -> float:
    """Median of the squared distances of all pairs of ``points`` (n, q); 1 where all points are the same."""
    squared = torch.nn.functional.pdist(points).square()
    median = float(squared.median()) if squared.numel() else 0.0
    return median if median > 0.0 else 1.0


def _sample(points: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """All points, or ``size`` of them drawn without replacement."""
    if points.shape[0] <= size:
        return points
    return points[torch.randperm(points.shape[0], generator=generator)[:size].to(points.device)]


def select_herding(problem: Problem, budget: int) -> Selection:
    """The candidate that brings the distribution of training set and picks closest to the pool's, again and again."""
    return greedy(Herding(problem), available=problem.available, groups=problem.groups, budget=budget)
