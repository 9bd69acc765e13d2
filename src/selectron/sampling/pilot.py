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
from selectron.sampling.build import Thresholds, build
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
    ``options.pilot.steps`` steps; the threshold of a criterion is the ``quantile`` of what it looks at, over all steps of all
    particles that are at least ``min_steps`` into a journey.

    Raises SelectronError where a pilot sees no bias or no disagreement at all.
    """
    wanted = [one for one in options.criteria if not isinstance(one, FixedSteps) and one.threshold == "auto"]
    readings: list[Reading] = []

    def recording(reading: Reading) -> Tensor:
        readings.append(reading)
        return reading.age >= options.pilot.steps

    recorder = (Criterion("pilot", recording),)
    first = build(members, structures, options, particles=particles, stopping=recorder, seed=options.seed)
    state = first.init()
    bandwidth = None
    if options.method in STEIN and options.bandwidth == "initial-median":
        bandwidth = state.memory.bias.bandwidth if hasattr(state, "momenta") else state.held_bandwidth
    if not wanted:
        return Pilot({}, bandwidth, state)
    seed = noise.mixed(options.seed, 0, _STREAM)
    sampler = build(
        members, structures, options, particles=particles, stopping=recorder, seed=seed, bandwidth=bandwidth
    )
    total, after = options.pilot.steps * options.pilot.journeys, state
    for step in range(1, total + 1):
        after, _ = sampler.step(after)
        if on_step is not None:
            on_step(step, total)
    return Pilot({one.kind: _threshold(one, readings) for one in wanted}, bandwidth, state)


def _threshold(criterion: BiasNormBelow | UncertaintyAbove, readings: Sequence[Reading]) -> float:
    ages = torch.stack([reading.age for reading in readings]).cpu().numpy()
    looked_at = [
        reading.bias_norm if isinstance(criterion, BiasNormBelow) else reading.uncertainty for reading in readings
    ]
    values = torch.stack(looked_at).cpu().numpy()
    values = values[(ages >= criterion.min_steps) & np.isfinite(values)]
    if not len(values):
        raise SelectronError(
            f"The pilot for {criterion.kind} saw nothing: its journeys are shorter than min_steps ({criterion.min_steps}), or "
            "they broke; set pilot.steps or a threshold."
        )
    found = float(np.quantile(values, criterion.quantile))
    if not found > 0.0:
        raise SelectronError(
            f"The pilot for {criterion.kind} saw values of zero only, which set no threshold: "
            + (
                "one particle alone feels no bias, and particles too far apart for the bandwidth feel none either."
                if isinstance(criterion, BiasNormBelow)
                else "the members of the committee do not disagree."
            )
        )
    return found
