"""Farthest-point sampling, also known as MaxDist, k-centre-greedy and core-set selection."""

from __future__ import annotations

from torch import Tensor

from .distances import NearestCentre
from .greedy import Selection, greedy
from .problem import Problem


class FarthestPoint:
    """Score: squared distance to the nearest training structure or pick.

    Holzmüller et al. (2023), MaxDist in TP mode. Without a training set the first pick is the structure of
    largest norm, farthest from the origin.
    """

    def __init__(self, problem: Problem) -> None:
        self.nearest = NearestCentre(problem)

    def score(self, available: Tensor) -> Tensor:
        """(n,) squared distances to the nearest centre."""
        return self.nearest.distance if self.nearest.n_centres else self.nearest.norms

    def update(self, pick: int) -> None:
        """The pick is one more centre."""
        self.nearest.add(pick)


def select_fps(problem: Problem, budget: int) -> Selection:
    """The candidate farthest from all training structures and picks, again and again."""
    return greedy(FarthestPoint(problem), available=problem.available, groups=problem.groups, budget=budget)
