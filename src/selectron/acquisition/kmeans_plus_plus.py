"""k-means++ seeding as a batch selector: farthest-point sampling with chance."""

from __future__ import annotations

import torch
from torch import Tensor

from .distances import NearestCentre
from .greedy import Selection, greedy, selection
from .problem import Problem


class SquaredDistanceSampling:
    """Pick i with probability proportional to its squared distance d_i² to the nearest training structure or pick.

    Arthur and Vassilvitskii (2007), section 2.2; Holzmüller et al. (2023), k-means++ in TP mode. Drawn
    as an exponential race, argmax_i d_i² / E_i with E_i ~ Exp(1), which is how ``torch.multinomial`` draws one
    sample: with the same seed on a CPU both draw the same. Random numbers come from the CPU, so a GPU picks the
    same too. Without a training set the first pick is uniform.
    """

    def __init__(self, problem: Problem) -> None:
        self.nearest = NearestCentre(problem)
        self.generator = torch.Generator().manual_seed(problem.seed)
        self.drawn: list[Tensor] = []

    def score(self, available: Tensor) -> Tensor:
        """(n,) d_i² / E_i, the highest of which wins the race."""
        race = torch.empty(self.nearest.distance.numel(), dtype=torch.float64).exponential_(generator=self.generator)
        weights = self.nearest.distance if self.nearest.n_centres else torch.ones_like(self.nearest.distance)
        return weights / race.to(weights.device)

    def update(self, pick: int) -> None:
        """The pick is one more centre."""
        distance = self.nearest.distance if self.nearest.n_centres else self.nearest.norms
        self.drawn.append(distance[pick].clone())
        self.nearest.add(pick)


def select_kmeans_plus_plus(problem: Problem, budget: int) -> Selection:
    """Candidates drawn one by one with probability proportional to the squared distance to what is already there.

    The scores returned are those squared distances (the squared norm for a first pick without a training set).
    """
    sampling = SquaredDistanceSampling(problem)
    picks = greedy(sampling, available=problem.available, groups=problem.groups, budget=budget)
    return selection(picks.indices.tolist(), sampling.drawn, picks.indices.device)
