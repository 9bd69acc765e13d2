"""The one loop behind every batch selector: score what is left, take the best, update."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

NEVER = -float("inf")


class Selection(NamedTuple):
    """Picks in the order in which they were made.

    | field   | shape | meaning                                                         |
    |---------|-------|-----------------------------------------------------------------|
    | indices | (k,)  | int64 positions into the candidates, k ≤ budget                 |
    | scores  | (k,)  | float64 criterion of each pick at the moment when it was picked |
    """

    indices: Tensor
    scores: Tensor


class Criterion(Protocol):
    """What a selector adds to the loop."""

    def score(self, available: Tensor) -> Tensor:
        """(n,) float64 scores, higher is better; entries that are not ``available`` (n,) bool are ignored."""
        ...

    def update(self, pick: int) -> None:
        """Account for the candidate that was just picked."""
        ...


def greedy(criterion: Criterion, *, available: Tensor, groups: Tensor, budget: int) -> Selection:
    """Pick the available candidate of highest score ``budget`` times; ties go to the lowest index.

    ``available`` (n,) bool marks who may be picked, ``groups`` (n,) int64 who is a duplicate of whom: a pick makes
    its whole group unavailable. Stops early when nobody is left.
    """
    available = available.clone()
    budget = min(budget, count_distinct(available, groups))
    indices: list[int] = []
    scores: list[Tensor] = []
    for _ in range(budget):
        masked = torch.where(available, criterion.score(available), NEVER)
        # Rounding may turn the score of a candidate about which nothing is left to learn into a NaN; it comes last.
        masked = torch.nan_to_num(masked, nan=-1e300, posinf=1e300, neginf=NEVER)
        pick = int(torch.argmax(masked))
        if not bool(available[pick]):
            pick = int(torch.argmax(available.to(torch.uint8)))
        indices.append(pick)
        scores.append(masked[pick])
        available &= groups != groups[pick]
        criterion.update(pick)
    return selection(indices, scores, available.device)


def ranked(scores: Tensor, *, available: Tensor, groups: Tensor, budget: int) -> Selection:
    """The same as `greedy` for ``scores`` (n,) that no pick changes, by one sort."""
    order = torch.argsort(scores, descending=True, stable=True)
    order = order[available[order]]
    group = groups[order]
    position = torch.arange(order.numel(), device=order.device)
    first = torch.full((groups.numel(),), order.numel(), dtype=torch.int64, device=order.device)
    first.scatter_reduce_(0, group, position, "amin")
    chosen = order[position == first[group]][:budget]
    return Selection(chosen, scores[chosen].to(torch.float64))


def count_distinct(available: Tensor, groups: Tensor) -> int:
    """Number of groups of duplicates that have a member available."""
    return int(torch.unique(groups[available]).numel())


def selection(indices: list[int], scores: list[Tensor], device: torch.device) -> Selection:
    """A `Selection` from the picks of a loop."""
    return Selection(
        torch.tensor(indices, dtype=torch.int64, device=device),
        torch.stack(scores).to(torch.float64) if scores else torch.zeros(0, dtype=torch.float64, device=device),
    )
