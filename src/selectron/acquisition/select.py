"""The selectors by name, and the one function that runs any of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import SelectronError
from ..rows import Rows
from .bait import select_bait
from .fps import select_fps
from .greedy import Selection, count_distinct
from .herding import select_herding
from .ipv import PoolWeight, select_ipv
from .kmeans_plus_plus import select_kmeans_plus_plus
from .lcmd import select_lcmd
from .maxdet import select_maxdet
from .posterior import DEFAULT_NOISE_VARIANCE
from .problem import Problem, make_problem
from .ranking import select_by_disagreement, select_random, select_top_k


class SelectorInfo(NamedTuple):
    """A selector as ``selectron selectors`` lists it.

    `needs` names what decides its picks: "features", "noise" (the posterior's λ and σ²), "pool_second_moment" (of
    the whole pool; without it, that of the candidates), "seed", and "variances" (scores of a committee, without
    which it cannot run). `weight` is what the structures of `pool_second_moment` have to be weighted by.
    """

    summary: str
    function: Callable[[Problem, int], Selection]
    needs: tuple[str, ...]
    weight: PoolWeight = PoolWeight.VARIANCE


def _integrated(summary: str, weight: PoolWeight) -> SelectorInfo:
    """A selector that lowers what ``weight`` makes of the variances, summed over the pool."""
    needs = ("features", "noise", "pool_second_moment")
    return SelectorInfo(summary, partial(select_ipv, weight=weight), needs, weight)


SELECTORS: dict[str, SelectorInfo] = {
    "lcmd": SelectorInfo(
        "farthest member of the largest cluster around training set and picks", select_lcmd, ("features",)
    ),
    "ipv": _integrated("largest drop of the posterior variance summed over the pool", PoolWeight.VARIANCE),
    "isd": _integrated("largest drop of the posterior standard deviation summed over the pool", PoolWeight.DEVIATION),
    "irv": _integrated(
        "largest share of its posterior variance that each structure of the pool loses, summed", PoolWeight.LOGARITHM
    ),
    "maxdet": SelectorInfo(
        "largest log determinant of the posterior covariance given the picks so far",
        select_maxdet,
        ("features", "noise"),
    ),
    "fps": SelectorInfo("farthest point from training set and picks", select_fps, ("features",)),
    "kmeans++": SelectorInfo(
        "drawn with probability proportional to squared distance from training set and picks",
        select_kmeans_plus_plus,
        ("features", "seed"),
    ),
    "bait": SelectorInfo(
        "lowest variance summed over pool and training set: twice the budget forward, then half back",
        select_bait,
        ("features", "noise", "pool_second_moment"),
    ),
    "top-k": SelectorInfo("largest posterior variances, one by one", select_top_k, ("features", "noise")),
    "random": SelectorInfo("uniformly at random", select_random, ("seed",)),
    "herding": SelectorInfo(
        "kernel herding: training set and picks as close in distribution to the pool as can be",
        select_herding,
        ("features", "seed"),
    ),
    "committee-energy": SelectorInfo(
        "largest disagreement of a committee about the energy per atom", select_by_disagreement, ("variances",)
    ),
    "committee-force": SelectorInfo(
        "largest disagreement of a committee about the force on an atom", select_by_disagreement, ("variances",)
    ),
}


def select_batch(
    name: str,
    candidates: Rows,
    *,
    train: Rows | None,
    budget: int,
    prior_precision: float = 1.0,
    noise_variance: float = DEFAULT_NOISE_VARIANCE,
    pool_second_moment: Tensor | None = None,
    variances: Tensor | None = None,
    seed: int = 0,
    exclude: Tensor | None = None,
) -> Selection:
    """Pick up to ``budget`` of the candidates with the selector ``name``, one of `SELECTORS`.

    | argument           | shape     | meaning                                                                     |
    |--------------------|-----------|-----------------------------------------------------------------------------|
    | candidates         | `Rows`    | n structures, on the CPU or a GPU, float32 or float64                       |
    | train              | `Rows`    | structures that are labelled already; None for none                         |
    | prior_precision    |           | λ of the posterior, see `default_scale`                                     |
    | noise_variance     |           | σ² of the posterior                                                         |
    | pool_second_moment | (D, D)    | Σ w Φᵀ Φ over the pool before shortlisting, for ipv, isd, irv and bait      |
    | variances          | (n,)      | scores computed elsewhere: used by top-k, needed by the committee selectors |
    | exclude            | (n,) bool | candidates that must not be picked, nor their duplicates                    |

    A structure whose features equal those of a training structure or of an earlier pick (to 1e-5 relative, see
    `duplicate_groups`) is never picked. Where fewer distinct candidates are left than the budget asks for, all of
    them are returned; an empty pool gives an empty selection. Ties go to the lowest index, and equal input and seed
    give equal picks. Raises `SelectronError` for an unknown name, a budget below 1, features that are not finite,
    or shapes that do not fit.
    """
    if name not in SELECTORS:
        raise SelectronError(f"There is no selector '{name}'; choose one of {', '.join(SELECTORS)}.")
    if budget < 1:
        raise SelectronError(f"The budget is the number of structures to pick, at least 1, but it is {budget}.")
    if candidates.n_structures == 0:
        empty = torch.zeros(0, device=candidates.values.device)
        return Selection(empty.to(torch.int64), empty.to(torch.float64))
    problem = make_problem(
        candidates,
        train=train if train is not None and train.n_structures else None,
        prior_precision=prior_precision,
        noise_variance=noise_variance,
        pool_second_moment=pool_second_moment,
        variances=variances,
        seed=seed,
        exclude=exclude,
    )
    return SELECTORS[name].function(problem, min(budget, count_distinct(problem.available, problem.groups)))
