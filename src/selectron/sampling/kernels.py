"""Kernels on global descriptors, rules for their bandwidth, and schedules for amplitude and bandwidth."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from selectron.errors import SelectronError


class Kernel(NamedTuple):
    """A kernel h κ(s/ℓ²) of the squared distance s: its ``value`` and ``slope`` = dk/ds.

    Both take (s (E, M), bandwidth ℓ (E, 1), amplitude h (E, 1)). With d(r) − d(r_j) the gradient in a particle's
    position is ∇_{r_j} k = −2 (dk/ds) J(r_j)ᵀ (d(r) − d(r_j)).
    """

    name: str
    value: Callable[[Tensor, Tensor, Tensor], Tensor]
    slope: Callable[[Tensor, Tensor, Tensor], Tensor]


def _gaussian(s: Tensor, bandwidth: Tensor, amplitude: Tensor) -> Tensor:
    return amplitude * torch.exp(-0.5 * s / bandwidth.square())


def _gaussian_slope(s: Tensor, bandwidth: Tensor, amplitude: Tensor) -> Tensor:
    return -0.5 / bandwidth.square() * _gaussian(s, bandwidth, amplitude)


def _multiquadric(s: Tensor, bandwidth: Tensor, amplitude: Tensor) -> Tensor:
    return amplitude * torch.rsqrt(1.0 + s / bandwidth.square())


def _multiquadric_slope(s: Tensor, bandwidth: Tensor, amplitude: Tensor) -> Tensor:
    return -0.5 / bandwidth.square() * amplitude * (1.0 + s / bandwidth.square()).pow(-1.5)


GAUSSIAN = Kernel("gaussian", _gaussian, _gaussian_slope)
"""h exp(−s/2ℓ²) (SKMD, eq. 6)."""

INVERSE_MULTIQUADRIC = Kernel("inverse-multiquadric", _multiquadric, _multiquadric_slope)
"""h (1 + s/ℓ²)^(−1/2), whose long tail makes the kernel Stein discrepancy detect non-convergence (Gorham & Mackey 2017)."""

KERNELS = {kernel.name: kernel for kernel in (GAUSSIAN, INVERSE_MULTIQUADRIC)}

Bandwidth = Callable[[Tensor], Tensor]
"""From squared distances (E, M, M) of an ensemble's particles to its bandwidth (E,)."""


def fixed_bandwidth(length: float) -> Bandwidth:
    """Always ``length``, in units of the descriptor."""
    if not length > 0.0:
        raise SelectronError(f"A bandwidth is a positive length, not {length}.")
    return lambda squared: squared.new_full((squared.shape[0],), length)


def median_bandwidth(factor: float = 1.0) -> Bandwidth:
    """``factor`` times the median distance of pairs (SKMD, appendix E)."""

    def rule(squared: Tensor) -> Tensor:
        count = squared.shape[1]
        if count < 2:
            return squared.new_ones(squared.shape[0])
        first, second = torch.triu_indices(count, count, 1, device=squared.device)
        distance = squared[:, first, second].sqrt()
        median = torch.quantile(distance, 0.5, dim=1)
        if not bool((median > 0.0).all()):
            raise SelectronError(
                "Half of the particles or more are the same configuration, so the median of their distances, which sets "
                "the bandwidth, is zero: start from different configurations or set a bandwidth."
            )
        return factor * median

    return rule


class Schedule(NamedTuple):
    """What multiplies amplitude or bandwidth in outer iteration i = 1, 2, …

    It is 1 up to i = ``hold`` and goes linearly to ``final`` at ``end``. In the decay the bandwidth starts from its value
    at the end of ``hold`` and follows no rule any more. The SKMD paper's MACE run (appendix E.2: iterations 1 to 250 held,
    then to half by iteration 300): ``Schedule(hold=250, end=300, final=0.5)``.
    """

    hold: int
    end: int
    final: float

    def factor(self, iteration: Tensor) -> Tensor:
        """(E,) in the iteration that follows ``iteration`` (E,) complete ones: i = ``iteration`` + 1."""
        done = ((iteration + 1 - self.hold).double() / max(self.end - self.hold, 1)).clamp(0.0, 1.0)
        return 1.0 + (self.final - 1.0) * done


CONSTANT = Schedule(hold=2**62, end=2**62 + 1, final=1.0)
