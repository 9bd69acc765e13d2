"""What the frames of a sampling run carry, as arrays."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms

from selectron.errors import SelectronError


@dataclass(frozen=True)
class Samples:
    """A run of n frames, in the order of the file.

    | field         | shape         | meaning                                                             |
    |---------------|---------------|---------------------------------------------------------------------|
    | name          | string        | what the panels of the run are headed with                          |
    | step          | (n,) float64  | step of the sampler; the place in the file where frames have none   |
    | particle      | (n,) int64    | particle of the ensemble                                            |
    | ensemble      | (n,) int64    | ensemble that the particle belongs to                               |
    | energy_eV     | (n,) float64  | energy; NaN where there is none, as with the next three             |
    | bias_norm     | (n,) float64  | norm of the bias, eV/Å                                              |
    | temperature_K | (n,) float64  | temperature                                                         |
    | uncertainty   | (n,) float64  | the model's uncertainty, in the unit of the run                     |
    | acquired      | (n,) bool     | the frame was acquired for labelling                                |
    | reason        | n strings     | why the sampler stopped there; empty elsewhere                      |
    """

    name: str
    step: np.ndarray
    particle: np.ndarray
    ensemble: np.ndarray
    energy_eV: np.ndarray
    bias_norm: np.ndarray
    temperature_K: np.ndarray
    uncertainty: np.ndarray
    acquired: np.ndarray
    reason: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.step)

    def trajectories(self) -> list[tuple[int, int, np.ndarray]]:
        """(ensemble, particle, indices of its frames in the order of the file) of each particle of each ensemble."""
        pairs = np.stack([self.ensemble, self.particle], axis=1)
        distinct, which = np.unique(pairs, axis=0, return_inverse=True)
        return [(int(e), int(p), np.flatnonzero(which.ravel() == i)) for i, (e, p) in enumerate(distinct)]

    def stopping_reasons(self) -> dict[str, int]:
        """How often each reason stopped the sampler, the most frequent first, then by name."""
        counts = Counter(reason for reason in self.reason if reason)
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def samples_of(name: str, frames: Sequence[Atoms]) -> Samples:
    """The ``info`` of the frames as arrays.

    A frame is acquired when ``info["acquired"]`` says so, or, where that is missing, when it has a stopping reason. An
    energy that ``info`` lacks is taken from the frame's calculator results.

    Raises SelectronError for a run without frames, or for an entry of ``info`` that is not a number where one belongs.
    """
    if not len(frames):
        raise SelectronError(f"The run {name!r} has no frames; a figure of a sampling run needs at least one.")
    reasons = tuple(_reason(atoms) for atoms in frames)
    energy = _numbers(name, frames, "model_energy_eV")
    energy = np.where(np.isnan(energy), _numbers(name, frames, "energy_eV"), energy)
    for i in np.flatnonzero(np.isnan(energy)).tolist():
        results = getattr(frames[i].calc, "results", {})
        energy[i] = results.get("energy", np.nan)
    step = _numbers(name, frames, "step")
    return Samples(
        name=name,
        step=np.where(np.isnan(step), np.arange(len(frames)), step),
        particle=np.nan_to_num(_numbers(name, frames, "particle")).astype(np.int64),
        ensemble=np.nan_to_num(_numbers(name, frames, "ensemble")).astype(np.int64),
        energy_eV=energy,
        bias_norm=_numbers(name, frames, "bias_norm"),
        temperature_K=_numbers(name, frames, "temperature_K"),
        uncertainty=_numbers(name, frames, "uncertainty"),
        acquired=np.array(
            [bool(atoms.info.get("acquired", bool(why))) for atoms, why in zip(frames, reasons, strict=True)]
        ),
        reason=reasons,
    )


def all_samples(frames_by_run: Mapping[str, Sequence[Atoms]]) -> list[Samples]:
    """``samples_of`` each run; raises SelectronError when there is none."""
    if not frames_by_run:
        raise SelectronError("A figure of sampling runs needs at least one run; got none.")
    return [samples_of(name, frames) for name, frames in frames_by_run.items()]


def _numbers(run: str, frames: Sequence[Atoms], key: str) -> np.ndarray:
    values = np.full(len(frames), np.nan)
    for i, atoms in enumerate(frames):
        value = atoms.info.get(key)
        if value is None:
            continue
        try:
            values[i] = float(value)
        except (TypeError, ValueError):
            raise SelectronError(
                f"Frame {i} of the run {run!r} has {key} = {value!r} in its info; it must be one number."
            ) from None
    return values


def _reason(atoms: Atoms) -> str:
    """The stopping reason. ASE writes an empty one as ``stopping_reason=`` and reads the next entry into it."""
    value = atoms.info.get("stopping_reason", "")
    return value.strip() if isinstance(value, str) and not re.match(r"\w+=", value) else ""
