"""What a sampling run gives: frames, the ends of trajectories, and how far it is."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms

from selectron.sampling.build import Thresholds


class Frame(NamedTuple):
    """One configuration of one particle.

    | field           | unit | meaning                                                                          |
    |-----------------|------|----------------------------------------------------------------------------------|
    | atoms           |      | ``info`` and arrays hold what follows, under the names of :func:`framed`          |
    | step            |      | of the run                                                                       |
    | time_fs         | fs   | None where the step size leaves the unit of time open                            |
    | ensemble        |      | which copy                                                                       |
    | particle        |      | of the ensemble                                                                  |
    | energy_eV       | eV   | of the model (the committee's mean), without bias                                |
    | bias_norm       | eV/Å | Euclidean norm of the bias force; for SKMD of b in eq. 5b; NaN without bias      |
    | temperature_K   | K    | kinetic; NaN for overdamped dynamics                                             |
    | uncertainty_eV  | eV   | σ/√n of a committee; NaN where there is none                                     |
    | acquired        |      | whether a stopping criterion held                                                |
    | stopping_reason |      | its name; empty for a frame of a trajectory                                      |
    """

    atoms: Atoms
    step: int
    time_fs: float | None
    ensemble: int
    particle: int
    energy_eV: float
    bias_norm: float
    temperature_K: float
    uncertainty_eV: float
    acquired: bool
    stopping_reason: str


class Ended(NamedTuple):
    """A trajectory that broke, with the step at which it did and the reason; its particle moves no more."""

    step: int
    ensemble: int
    particle: int
    reason: str


@dataclass
class Tally:
    """Counts over a run: ``frames``, ``acquired``, steps that were ``shortened``, acquisitions by reason, broken trajectories,
    and the journeys of each ensemble (``journeys``, for asynchronous SKMD)."""

    frames: int = 0
    acquired: int = 0
    shortened: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    ended: list[Ended] = field(default_factory=list)
    journeys: list[int] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """As numbers, strings, lists and dictionaries."""
        return {**asdict(self), "ended": [tuple(one) for one in self.ended]}

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Tally:
        """From :meth:`plain`."""
        return cls(**{**plain, "ended": [Ended(*one) for one in plain["ended"]]})


class Progress(NamedTuple):
    """How far a run is.

    ``stage`` is "ensemble" (the initial ensemble is made), "pilot" or "sampling"; ``steps`` is None where the run does not
    end by its steps. Means are over what moves at this step, NaN before the first. ``finished`` says why a run is over, and is
    empty until then: "steps", "iterations", "acquisitions" or "nothing moves any more".
    """

    stage: str
    step: int
    steps: int | None
    moving: int = 0
    time_fs: float | None = None
    energy_eV: float = math.nan
    temperature_K: float = math.nan
    bias_norm: float = math.nan
    tally: Tally = Tally()
    thresholds: Thresholds = {}  # noqa: RUF012
    finished: str = ""


def framed(template: Atoms, positions: np.ndarray, forces: np.ndarray, method: str, frame: Frame) -> Frame:
    """``frame`` with its atoms: ``template`` at ``positions`` (n, 3), Å.

    ``info`` holds method, step, time_fs, ensemble, particle, bias_norm, temperature_K, uncertainty, acquired and
    stopping_reason, as far as there are any, and ``model_energy_eV``; the array ``model_forces`` holds ``forces`` (n, 3)
    in eV/Å. These names are no labels to any trainer: energies and forces of the model that sampled must not be learnt.
    """
    atoms = template.copy()
    atoms.positions = positions
    told: dict[str, Any] = {
        "method": method,
        "step": frame.step,
        "time_fs": None if frame.time_fs is None else round(frame.time_fs, 6),
        "ensemble": frame.ensemble,
        "particle": frame.particle,
        "model_energy_eV": frame.energy_eV,
        "bias_norm": frame.bias_norm,
        "temperature_K": frame.temperature_K,
        "uncertainty": frame.uncertainty_eV,
        "acquired": frame.acquired,
        "stopping_reason": frame.stopping_reason or None,
    }
    atoms.info.update({k: v for k, v in told.items() if v is not None and not (isinstance(v, float) and math.isnan(v))})
    atoms.set_array("model_forces", forces, float, (3,))
    return frame._replace(atoms=atoms)
