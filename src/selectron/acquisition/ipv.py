"""Integrated posterior variance: greedy A-optimal design for the pool."""

from __future__ import annotations

import torch
from torch import Tensor

from ..rows import Rows
from .covariance import RowCovariances
from .greedy import Selection, greedy
from .moment import SecondMoment
from .problem import Problem


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


def pool_moment(problem: Problem) -> Tensor:
    """(D, D) float64 second moment of the whole pool where it was given, of the candidates otherwise."""
    if problem.pool_second_moment is not None:
        return problem.pool_second_moment.to(device=problem.device, dtype=torch.float64)
    return _moment(problem.candidates)


def training_moment(problem: Problem) -> Tensor:
    """(D, D) float64 second moment of the training set; zero without one."""
    if problem.train is None:
        return torch.zeros(problem.candidates.dim, problem.candidates.dim, dtype=torch.float64, device=problem.device)
    return _moment(problem.train)


def _moment(rows: Rows) -> Tensor:
    moment = SecondMoment(rows.dim, device=rows.values.device)
    moment.update(rows)
    return moment.matrix


def select_ipv(problem: Problem, budget: int) -> Selection:
    """The candidate whose label lowers the variance summed over the pool most, again and again."""
    criterion = IntegratedVariance(problem, pool_moment(problem))
    return greedy(criterion, available=problem.available, groups=problem.groups, budget=budget)
