"""A short simulation that says which thresholds and which bandwidth the run will have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from selectron.errors import SelectronError
from selectron.potentials.base import Potential
from selectron.sampling import noise
from selectron.sampling.build import WIDTH, Thresholds, build, with_width
from selectron.sampling.options import STEIN, BiasNormBelow, FixedSteps, SampleOptions, UncertaintyAbove
from selectron.sampling.stopping import Criterion, Reading

_STREAM = 9  # of the pilot's noise


class Pilot(NamedTuple):
    """Thresholds of the criteria that are "auto", bandwidths (E,) for the rule initial-median, and the state before step 1."""

    thresholds: Thresholds
    bandwidth: Tensor | None
    state: Any


def piloted(
    members: Sequence[Potential],
    structures: Sequence[Atoms],
    options: SampleOptions,
    *,
    particles: int,
    on_step: Callable[[int, int], None] | None = None,
) -> Pilot:
    """What the beginning of a run has to find out.

    The paper sets its thresholds "by tracking the acquisition function over a pilot simulation" (SKMD, appendix E.1) and
    gives no rule. Ours: the sampler runs from the same beginning, with noise of its own, in journeys of
    ``options.pilot.steps`` steps; the threshold of a criterion is the median over all journeys of the ``quantile`` of what
    it looks at in the steps of a journey after ``min_steps``. So half of all journeys as long as those of the pilot reach it,
    however different the particles' surroundings are.

    The width of the uncertainty-driven bias, where it is "auto", is the median of σ/√n in another pilot without bias.

    Raises SelectronError where a pilot sees no bias or no disagreement at all.
    """
    wanted = [one for one in options.criteria if not isinstance(one, FixedSteps) and one.threshold == "auto"]
    total = options.pilot.steps * options.pilot.journeys
    seed = noise.mixed(options.seed, 0, _STREAM)
    narrow = options.method == "udd" and options.udd.width_eV == "auto"
    passes = int(narrow) + bool(wanted)

    def readings_of(options: SampleOptions, state: Any, done: int) -> list[Reading]:
        readings: list[Reading] = []
        stopping = (_recorder(readings, options.pilot.steps),)
        sampler = build(
            members, structures, options, particles=particles, stopping=stopping, seed=seed, bandwidth=bandwidth
        )
        for step in range(1, total + 1):
            state, _ = sampler.step(state)
            if on_step is not None:
                on_step(done + step, passes * total)
        return readings

    never = (_recorder([], options.pilot.steps),)
    first = build(members, structures, options, particles=particles, stopping=never, seed=options.seed)
    first_state = first.init()
    bandwidth = None
    if options.method in STEIN and options.bandwidth == "initial-median":
        held = first_state.memory.bias if hasattr(first_state, "momenta") else None
        bandwidth = first_state.held_bandwidth if held is None else held.bandwidth
    found: Thresholds = {}
    if narrow:
        # a width of "auto" has no bias yet
        found[WIDTH] = _quantile(
            readings_of(options, first_state, 0), "udd.width_eV", lambda one: one.uncertainty, 0.5, 0
        )
        options = with_width(options, found)
        first_state = build(members, structures, options, particles=particles, stopping=never, seed=options.seed).init()
    if wanted:
        readings = readings_of(options, first_state, total * int(narrow))
        found |= {one.kind: _threshold(one, readings) for one in wanted}
    return Pilot(found, bandwidth, first_state)


def _recorder(readings: list[Reading], steps: int) -> Criterion:
    """Ends journeys after ``steps`` steps, and keeps what it saw."""

    def recording(reading: Reading) -> Tensor:
        readings.append(reading)
        return reading.age >= steps

    return Criterion("pilot", recording)


def _threshold(criterion: BiasNormBelow | UncertaintyAbove, readings: Sequence[Reading]) -> float:
    if isinstance(criterion, BiasNormBelow):
        return _quantile(readings, criterion.kind, lambda one: one.bias_norm, criterion.quantile, criterion.min_steps)
    return _quantile(readings, criterion.kind, lambda one: one.uncertainty, criterion.quantile, criterion.min_steps)


def _quantile(
    readings: Sequence[Reading], what: str, look: Callable[[Reading], Tensor], quantile: float, min_steps: int
) -> float:
    """The median over journeys of each journey's quantile of what was read after ``min_steps``."""
    ages = torch.stack([reading.age for reading in readings]).cpu().numpy()
    values = torch.stack([look(reading) for reading in readings]).cpu().numpy()
    number = np.cumsum(np.vstack([np.zeros_like(ages[:1]), ages[1:] <= ages[:-1]]), axis=0)
    seen = (ages >= min_steps) & np.isfinite(values)
    journeys = [
        values[seen[:, row] & (number[:, row] == journey), row]
        for row in range(values.shape[1])
        for journey in range(number[-1, row] + 1)
    ]
    each = [float(np.quantile(journey, quantile)) for journey in journeys if len(journey)]
    if not each:
        raise SelectronError(
            f"The pilot for {what} saw nothing: its journeys are shorter than min_steps ({min_steps}), or "
            "they broke; set pilot.steps or a threshold."
        )
    found = float(np.median(each))
    if not found > 0.0:
        raise SelectronError(
            f"The pilot for {what} saw values of zero only, which set no threshold: "
            + (
                "one particle alone feels no bias, and particles too far apart for the bandwidth feel none either."
                if what == "bias-norm-below"
                else "the members of the committee do not disagree."
            )
        )
    return found
