"""When a configuration is acquired: criteria on what a step found."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from selectron.errors import SelectronError


class Reading(NamedTuple):
    """What a criterion sees of P structures: ``age`` in steps since the last acquisition, all (P,)."""

    age: Tensor
    energies: Tensor
    bias_norm: Tensor
    uncertainty: Tensor


class Criterion(NamedTuple):
    """A name that is written as stopping reason, and the test (P,) bool."""

    name: str
    holds: Callable[[Reading], Tensor]


Stopping = tuple[Criterion, ...]
"""Criteria of which one has to hold; the first that does gives the reason."""

NEVER: Stopping = ()


def fixed_steps(steps: int) -> Criterion:
    """After ``steps`` steps (SKMD, section 3.1: the stopping time T)."""
    if steps < 1:
        raise SelectronError(f"A stopping time is at least one step, not {steps}.")
    return Criterion("fixed-steps", lambda reading: reading.age >= steps)


def bias_norm_below(threshold: float, min_steps: int) -> Criterion:
    """The first time after ``min_steps`` steps that ‖b‖ < ``threshold`` in eV/Å (SKMD, eq. 8)."""
    if not threshold > 0.0:
        raise SelectronError(f"The threshold of the bias norm is positive, not {threshold}.")
    return Criterion("bias-norm-below", lambda reading: (reading.age >= min_steps) & (reading.bias_norm < threshold))


def uncertainty_above(threshold: float, min_steps: int) -> Criterion:
    """The first time after ``min_steps`` steps that the committee's uncertainty exceeds ``threshold`` (SKMD, eq. 35)."""
    return Criterion(
        "uncertainty-above", lambda reading: (reading.age >= min_steps) & (reading.uncertainty > threshold)
    )


def first_that_holds(stopping: Stopping, reading: Reading) -> Tensor:
    """(P,) int64: index of the first criterion that holds, −1 where none does."""
    found = torch.full_like(reading.age, -1)
    for index in range(len(stopping) - 1, -1, -1):
        found = torch.where(stopping[index].holds(reading), torch.full_like(found, index), found)
    return found
