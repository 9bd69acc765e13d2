"""BAIT for regression: pick too many by their effect on the summed variance, then give the least useful back."""

from __future__ import annotations

import torch
from torch import Tensor

from .covariance import RowCovariances
from .greedy import Selection, greedy
from .ipv import IntegratedVariance, pool_moment, training_moment
from .problem import Problem

OVERSELECTION = 2.0


def select_bait(problem: Problem, budget: int, *, overselection: float = OVERSELECTION) -> Selection:
    """Forward greedy to ``overselection`` · budget picks, then backward greedy to the budget.

    Ash et al. (2021), algorithm 1: both steps minimise tr(M G), G the second moment of pool and training set, M the
    posterior covariance. With ``overselection`` 1 there is no backward step (BAIT-F). Picks stay in the order in
    which they were made, with their scores of that moment.
    """
    forward = IntegratedVariance(problem, pool_moment(problem) + training_moment(problem))
    wanted = max(budget, round(overselection * budget))
    picks = greedy(forward, available=problem.available, groups=problem.groups, budget=wanted)
    if picks.indices.numel() <= budget:
        return picks
    kept = give_back(forward.covariances.restricted(picks.indices), budget)
    return Selection(picks.indices[kept], picks.scores[kept])


def give_back(batch: RowCovariances, budget: int) -> Tensor:
    """(n,) bool with ``budget`` members of the batch kept; whose loss raises the summed variance least goes first."""
    kept = torch.ones(batch.n, dtype=torch.bool, device=batch.rows.device)
    for _ in range(batch.n - budget):
        losses = batch.losses()
        # Rounding can make the loss of a member that nothing else can replace negative; such a member stays.
        losses = torch.where(kept & (losses >= 0.0), losses, float("inf"))
        leaving = int(torch.argmin(losses))
        if not bool(kept[leaving]):
            leaving = int(torch.nonzero(kept)[-1])
        kept[leaving] = False
        batch.remove(leaving)
    return kept
