"""Greedy determinant maximisation, also known as sequential posterior variance and batch BALD for regression."""

from __future__ import annotations

import torch
from torch import Tensor

from .covariance import RowCovariances
from .greedy import Selection, greedy
from .problem import Problem


class Determinant:
    """Score: log det(I + K_x / σ²), K_x the covariance of the rows of x given training set and picks.

    Holzmüller et al. (2023), MaxDet on the posterior kernel; the sum of the scores is log det(I +
    K_batch / σ²), twice the mutual information of the batch's labels and the weights. For one row a structure the
    order is that of the conditional variances.
    """

    def __init__(self, problem: Problem) -> None:
        self.covariances = RowCovariances(problem.posterior, problem.candidates, None)

    def score(self, available: Tensor) -> Tensor:
        """(n,) log determinants; the conditional variances, which rank the same and cost less, for single rows."""
        variances = self.covariances.variances
        return self.covariances.log_determinants() if variances is None else variances

    def update(self, pick: int) -> None:
        """Condition on all rows of the pick."""
        self.covariances.add(pick)


def select_maxdet(problem: Problem, budget: int) -> Selection:
    """The candidate about whose rows training set and picks say least, again and again; scores are log determinants."""
    criterion = Determinant(problem)
    picks = greedy(criterion, available=problem.available, groups=problem.groups, budget=budget)
    if criterion.covariances.variances is None:
        return picks
    return Selection(picks.indices, torch.log1p(picks.scores.clamp(min=0.0) / problem.noise_variance))
