"""Farthest-point sampling, also known as MaxDist, k-centre-greedy and core-set selection."""

from __future__ import annotations

import torch
from torch import Tensor

from .distances import COLUMNS_AT_ONCE, SquaredDistances
from .greedy import Selection, greedy
from .problem import Problem


class FarthestPoint:
    """Score: squared distance to the nearest training structure or pick.

    Holzmüller et al. (2023), section 4.3, MaxDist in TP mode. Without a training set the first pick is the structure of
    largest norm, farthest from the origin.
    """

    def __init__(self, problem: Problem) -> None:
        self.distances = SquaredDistances(problem)
        self.nearest, _ = self.distances.nearest_training()
        self.has_centre = self.distances.train.shape[0] > 0
        self._last = self.distances.norms

    def score(self, available: Tensor) -> Tensor:
        """(n,) squared distances to the nearest centre."""
        self._last = torch.where(available, self.nearest if self.has_centre else self.distances.norms, 0.0)
        return self._last

    def update(self, pick: int) -> None:
        """The pick is one more centre."""
        count = min(COLUMNS_AT_ONCE, self._last.numel())
        column = self.distances.column(pick, torch.topk(self._last, count).indices)
        self.nearest = torch.minimum(self.nearest, column)
        self.has_centre = True


def select_fps(problem: Problem, budget: int) -> Selection:
    """The candidate farthest from all training structures and picks, again and again."""
    return greedy(FarthestPoint(problem), available=problem.available, groups=problem.groups, budget=budget)
