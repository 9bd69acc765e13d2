"""What every selector is given: candidates, training set, who may be picked, and the numbers of the posterior."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..errors import SelectronError
from ..rows import Rows
from .duplicates import DEFAULT_TOLERANCE, duplicate_groups
from .embedding import SKETCH_WIDTH, has_single_rows, structure_embedding, whitened
from .moment import require_dim
from .posterior import Posterior, require_positive

# To tell equal from different to 1e-5 a sketch need not be as wide as to measure distances.
DUPLICATE_WIDTH = 64


@dataclass(frozen=True)
class Problem:
    """A selection problem that has been checked.

    | field              | shape        | meaning                                                        |
    |--------------------|--------------|----------------------------------------------------------------|
    | candidates, train  | `Rows`       | n candidates, t training structures (None: no training set)    |
    | available          | (n,) bool    | no duplicate of a training structure or of an excluded one     |
    | groups             | (n,) int64   | equal for duplicates                                           |
    | pool_second_moment | (D, D)       | Σ Φᵀ Φ over the whole pool, or None for that of the candidates |
    | variances          | (n,) float64 | scores computed elsewhere, or None                             |
    """

    candidates: Rows
    train: Rows | None
    available: Tensor
    groups: Tensor
    prior_precision: float
    noise_variance: float
    pool_second_moment: Tensor | None
    variances: Tensor | None
    seed: int

    @property
    def n(self) -> int:
        """Number of candidates."""
        return self.candidates.n_structures

    @property
    def device(self) -> torch.device:
        """Where the candidates' rows are."""
        return self.candidates.values.device

    @cached_property
    def vectors(self) -> tuple[Tensor, Tensor]:
        """`structure_embedding` of the candidates (n, q) and of the training structures (t, q), t may be 0.

        Several rows a structure are whitened first: their distances are those of what is not known about them yet.
        """
        if has_single_rows(self.candidates, self.train):
            return _embed(self.candidates, self.train, SKETCH_WIDTH)
        train = None if self.train is None else whitened(self.train, self.posterior)
        return _embed(whitened(self.candidates, self.posterior), train, SKETCH_WIDTH)

    @cached_property
    def posterior(self) -> Posterior:
        """The posterior given the training set."""
        posterior = Posterior(
            self.candidates.dim,
            prior_precision=self.prior_precision,
            noise_variance=self.noise_variance,
            device=self.device,
        )
        if self.train is not None:
            posterior.update(self.train)
        return posterior


def make_problem(
    candidates: Rows,
    *,
    train: Rows | None,
    prior_precision: float,
    noise_variance: float,
    pool_second_moment: Tensor | None,
    variances: Tensor | None,
    seed: int,
    exclude: Tensor | None,
    duplicate_tolerance: float = DEFAULT_TOLERANCE,
) -> Problem:
    """Check the input of a selection, find duplicates, and say who may be picked. Raises `SelectronError`."""
    n, device = candidates.n_structures, candidates.values.device
    require_positive(prior_precision=prior_precision, noise_variance=noise_variance)
    _require_finite(candidates, "candidate")
    if train is not None:
        require_dim(train, candidates.dim)
        train = Rows(train.values.to(device), train.counts.to(device))
        _require_finite(train, "training structure")
    for name, given in (("variances", variances), ("exclude", exclude)):
        if given is not None and tuple(given.shape) != (n,):
            raise SelectronError(f"`{name}` has shape {tuple(given.shape)}, but there are {n} candidates.")
    if variances is not None and bool(torch.isnan(variances).any()):
        raise SelectronError("Some variances are not a number; quarantine those structures before acquisition.")
    if pool_second_moment is not None and tuple(pool_second_moment.shape) != (candidates.dim, candidates.dim):
        raise SelectronError(
            f"The pool's second moment has shape {tuple(pool_second_moment.shape)}, "
            f"but the rows have {candidates.dim} features."
        )
    groups, known = _groups_and_known(*_embed(candidates, train, DUPLICATE_WIDTH), duplicate_tolerance)
    available = ~known
    if exclude is not None:
        excluded_groups = groups[exclude.to(device=device, dtype=torch.bool)]
        available &= ~torch.isin(groups, excluded_groups)
    return Problem(
        candidates=candidates,
        train=train,
        available=available,
        groups=groups,
        prior_precision=prior_precision,
        noise_variance=noise_variance,
        pool_second_moment=pool_second_moment,
        variances=None if variances is None else variances.to(device=device, dtype=torch.float64),
        seed=seed,
    )


def _embed(candidates: Rows, train: Rows | None, width: int) -> tuple[Tensor, Tensor]:
    single = has_single_rows(candidates, train)
    vectors = structure_embedding(candidates, single=single, width=width)
    return vectors, vectors[:0] if train is None else structure_embedding(train, single=single, width=width)


def _groups_and_known(vectors: Tensor, train_vectors: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Duplicate groups (n,) of the candidates, and (n,) bool: whether a training structure is in the group."""
    n, t = vectors.shape[0], train_vectors.shape[0]
    both = torch.cat([vectors, train_vectors.to(vectors.dtype)]) if t else vectors
    joint = duplicate_groups(both, tolerance)
    trained = torch.zeros(n + t, dtype=torch.bool, device=vectors.device)
    trained[joint[n:]] = True
    # Labels are lowest indices and candidates come first, so a candidate's label is the index of a candidate.
    return joint[:n], trained[joint[:n]]


def _require_finite(rows: Rows, what: str) -> None:
    if int(rows.counts.sum()) != rows.values.shape[0]:
        raise SelectronError(
            f"The counts of rows add up to {int(rows.counts.sum())}, but there are {rows.values.shape[0]} rows."
        )
    # An entry that is not finite makes its row's sum so, at a fraction of the memory of testing each.
    finite = torch.isfinite(rows.values.sum(1, dtype=torch.float64))
    if not bool(finite.all()):
        first = int(rows.owner[~finite][0])
        raise SelectronError(
            f"The features of {what} {first} (counted from 0) are not finite; quarantine it before acquisition."
        )
