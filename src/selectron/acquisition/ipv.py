"""Integrated posterior variance: greedy A-optimal design for the pool, whose structures may weigh differently."""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor

from ..rows import Rows
from .covariance import RowCovariances
from .greedy import Selection, greedy
from .moment import SecondMoment
from .problem import Problem


class PoolWeight(Enum):
    """What a structure of the pool with posterior variance s² counts for in G: the factor of its Φᵀ Φ.

    With a weight other than one, what falls is not Σ s² but, to first order in the drops, another sum over the pool;
    Σ s is the expected absolute error up to a factor, where Σ s² is the expected squared one.
    """

    VARIANCE = "1"
    """Σ s² falls."""
    DEVIATION = "1 / (2 s)"
    """Σ s falls."""
    LOGARITHM = "1 / s²"
    """Σ ln s² falls: each structure counts by the share of its variance that goes."""

    def of(self, variances: Tensor) -> Tensor:
        """(n,) float64 weights of structures with these ``variances``."""
        variances = variances.to(torch.float64).clamp_min(1e-300)
        if self is PoolWeight.VARIANCE:
            return torch.ones_like(variances)
        return 0.5 * variances.rsqrt() if self is PoolWeight.DEVIATION else variances.reciprocal()

    def weighted(self, rows: Rows, variances: Tensor) -> Rows:
        """The ``rows`` whose second moment is that of the weighted pool; ``variances`` are of their structures."""
        factors = self.of(variances).sqrt().to(rows.values.device)
        return Rows(rows.values.to(torch.float64) * factors.repeat_interleave(rows.counts)[:, None], rows.counts)


class IntegratedVariance:
    """Score: the drop of the pool's summed variance tr(M G) when the candidate is labelled.

    tr[(I + R Λ⁻¹ Rᵀ)⁻¹ R Λ⁻¹ G Λ⁻¹ Rᵀ] with R = Φ/σ and G = Σ_pool Φᵀ Φ; Cohn (1996) for a linear model,
    and the forward step of BAIT (Ash et al., 2021, algorithm 1) where G sums over pool and training set.
    """

    def __init__(self, problem: Problem, second_moment: Tensor) -> None:
        self.covariances = RowCovariances(problem.posterior, problem.candidates, second_moment)

    def score(self, available: Tensor) -> Tensor:
        """(n,) drops of the summed variance."""
        return self.covariances.gains()

    def update(self, pick: int) -> None:
        """Condition on all rows of the pick."""
        self.covariances.add(pick)


def pool_moment(problem: Problem, weight: PoolWeight = PoolWeight.VARIANCE) -> Tensor:
    """(D, D) float64 second moment of the whole pool where it was given, of the candidates otherwise.

    A moment that is given has its weights already; of the candidates only those that may be picked are weighted.
    """
    if problem.pool_second_moment is not None:
        return problem.pool_second_moment.to(device=problem.device, dtype=torch.float64)
    if weight is PoolWeight.VARIANCE:
        return _moment(problem.candidates)
    rows = problem.candidates.take(torch.nonzero(problem.available)[:, 0])
    return _moment(weight.weighted(rows, problem.posterior.variance(rows)))


def training_moment(problem: Problem) -> Tensor:
    """(D, D) float64 second moment of the training set; zero without one."""
    if problem.train is None:
        return torch.zeros(problem.candidates.dim, problem.candidates.dim, dtype=torch.float64, device=problem.device)
    return _moment(problem.train)


def _moment(rows: Rows) -> Tensor:
    moment = SecondMoment(rows.dim, device=rows.values.device)
    moment.update(rows)
    return moment.matrix


def select_ipv(problem: Problem, budget: int, *, weight: PoolWeight = PoolWeight.VARIANCE) -> Selection:
    """The candidate whose label lowers the variance summed over the (weighted) pool most, again and again."""
    criterion = IntegratedVariance(problem, pool_moment(problem, weight))
    return greedy(criterion, available=problem.available, groups=problem.groups, budget=budget)
