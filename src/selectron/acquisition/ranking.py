"""Selectors that rank once: by posterior variance, by scores computed elsewhere, or by chance."""

from __future__ import annotations

import torch

from ..errors import SelectronError
from .greedy import Selection, ranked
from .problem import Problem


def select_top_k(problem: Problem, budget: int) -> Selection:
    """The largest posterior variances (Holzmüller et al., 2023, MaxDiag); those given, or computed here."""
    variances = problem.variances
    if variances is None:
        variances = problem.posterior.variance(problem.candidates)
    return ranked(variances, available=problem.available, groups=problem.groups, budget=budget)


def select_by_disagreement(problem: Problem, budget: int) -> Selection:
    """The largest disagreement of a committee, given as ``variances``; raises `SelectronError` without."""
    if problem.variances is None:
        raise SelectronError(
            "A committee selector ranks by the disagreement of several models: give a committee, not a single model."
        )
    return ranked(problem.variances, available=problem.available, groups=problem.groups, budget=budget)


def select_random(problem: Problem, budget: int) -> Selection:
    """Uniformly without replacement; the scores are the random keys, drawn on the CPU so that every device agrees."""
    generator = torch.Generator().manual_seed(problem.seed)
    keys = torch.rand(problem.n, generator=generator, dtype=torch.float64).to(problem.device)
    return ranked(keys, available=problem.available, groups=problem.groups, budget=budget)
