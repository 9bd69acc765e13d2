"""One scale for features, prior and noise, so that the defaults mean the same for every feature map."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..errors import SelectronError
from ..rows import Rows
from .posterior import DEFAULT_NOISE_VARIANCE


class Scale(NamedTuple):
    """What to multiply features by, and the prior and noise that go with it.

    | field           | meaning                                                                      |
    |-----------------|------------------------------------------------------------------------------|
    | factor          | number that every feature row is multiplied by                               |
    | prior_precision | λ = 1: the average structure then has prior variance 1, summed over its rows |
    | noise_variance  | σ² of a row, `relative_noise` times the mean squared norm of a scaled row    |
    """

    factor: float
    prior_precision: float
    noise_variance: float

    def apply(self, rows: Rows) -> Rows:
        """The rows multiplied by ``factor``."""
        return Rows(rows.values * self.factor, rows.counts)


def default_scale(rows: Rows, *, relative_noise: float = DEFAULT_NOISE_VARIANCE) -> Scale:
    """The scale at which the mean squared norm of a structure, mean_x Σ_rows ‖φ‖², is 1; λ = 1.

    `rows` are those of the training set, or of the pool where there is none: the factor of Holzmüller et al.
    (2023), automatic scale normalisation. Features are not centred, as in the papers: the common mean of all
    structures is then one well-determined direction of the posterior, not a coordinate that is thrown away, and a
    linear model needs no separate bias. Because a large common mean counts in the norm, σ² has to stay well below
    the share of the squared norm that differs between structures; 1e-3 of the mean squared norm of a row is the
    default. Raises `SelectronError` for rows that are empty, zero or not finite.
    """
    squared = rows.values.to(torch.float64).square().sum()
    mean_structure = float(squared) / max(rows.n_structures, 1)
    if not 0.0 < mean_structure < float("inf"):
        raise SelectronError("Features cannot be scaled: the rows are empty, all zero, or not finite.")
    mean_rows = rows.values.shape[0] / rows.n_structures
    return Scale(mean_structure**-0.5, 1.0, relative_noise / mean_rows)
