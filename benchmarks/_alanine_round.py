"""One iteration of alanine_dipeptide.py: sample, select, label, fine-tune, measure; each kept in a folder when it is done."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.io import read

from _alanine_models import Surrogate, TestSets, angles, plain_errors, unit_descriptors, with_labels
from selectron.acquisition import default_scale, select_batch
from selectron.features import make_features
from selectron.potentials import load_potential
from selectron.potentials.mace import MacePotential
from selectron.report.ramachandran import Backbone, ramachandran_coverage
from selectron.rows import Rows, concatenate
from selectron.sampling.frames import Ended, Progress
from selectron.sampling.options import SampleOptions, sample_options
from selectron.sampling.run import run_sampling
from selectron.structures.writing import write_extxyz
from selectron.training.evaluate import errors
from selectron.training.fine_tune import TrainingFailed, fine_tune
from selectron.training.options import TrainOptions

BATCH = 16


class Method(NamedTuple):
    """A sampler and a selector; ``temperature_K`` and ``timestep_fs`` are the sampler's, the rest is SKMD's.

    ``equations`` are the option ``form``: in the full form a particle feels its own force in full and the mean of the kernel's
    bias, in the mean form, as equation 5a is written, it feels 1/M of its force. ``amplitude`` is the kernel's.
    """

    sampler: str
    temperature_K: float
    selector: str
    timestep_fs: float = 1.0
    equations: str | None = None
    amplitude: float | None = None

    @property
    def sampling(self) -> str:
        """Methods with the same name here sample alike."""
        return "-".join([self.sampler, f"{self.temperature_K:g}", *([self.equations] if self.equations else [])])


METHODS = {
    "langevin-300 fps": Method("langevin", 300, "fps"),
    "langevin-700 fps": Method("langevin", 700, "fps"),
    "skmd fps": Method("skmd", 50, "fps", 0.1, "full", 10.0),
    "skmd joint-ntk": Method("skmd", 50, "joint-ntk", 0.1, "full", 10.0),
    "skmd-mean fps": Method("skmd", 50, "fps", 0.3, "mean", 1.0),
    "skmd-mean joint-ntk": Method("skmd", 50, "joint-ntk", 0.3, "mean", 1.0),
}
COMPARED = [name for name in METHODS if not name.startswith("skmd-mean")]


class Form(NamedTuple):
    """Counts of the study: each iteration samples ``journeys`` paths of ``journey_steps`` and picks ``picks`` of their ends.

    ``directions`` of the descriptor make SKMD's kernel, all 64 where it is None.
    """

    surrogate: Surrogate
    tests: TestSets
    iterations: int
    journeys: int
    journey_steps: int
    picks: int
    epochs: int
    burn_in_steps: int
    snapshot_every: int
    seeds: int
    particles: int = 30
    directions: int | None = None


class Bench(NamedTuple):
    """What all runs of a form share. ``joint_selector`` picks from joint-NTK rows; ``threads`` are those of training."""

    form: Form
    surrogate: Path
    oracle: MacePotential
    tests: dict[str, list[Atoms]]
    minimum_eV: float
    backbone: Backbone
    joint_selector: str
    device: str
    threads: int


class Clock:
    """Seconds of wall and of this process since it was made."""

    def __init__(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def read(self, more_core_s: float = 0.0) -> dict[str, float]:
        """``more_core_s`` are those of another process."""
        core = time.process_time() - self._began[1] + more_core_s
        return {"seconds": round(time.perf_counter() - self._began[0], 3), "core_s": round(core, 3)}


def run_options(method: Method, form: Form, seed: int) -> SampleOptions:
    """The paper's settings (section 5.2, appendix E.2); its schedule is stretched where there are fewer journeys than 300."""
    stopping = [{"kind": "fixed-steps", "steps": form.journey_steps}]
    shared = {
        "method": method.sampler,
        "temperature_K": method.temperature_K,
        "timestep_fs": method.timestep_fs,
        "particles": form.particles,
        "stopping": stopping,
        "stride": 0,
    }
    if method.sampler == "langevin":
        steps = form.journeys // form.particles * form.journey_steps
        own: dict[str, Any] = {"damping_time_fs": 100.0, "steps": steps}
    else:
        schedule = {"hold": form.journeys * 250 // 300, "end": form.journeys, "final": 0.5}
        own = {
            "form": method.equations,
            "damping_amu_per_ps": 75.0,
            "iterations": form.journeys,
            "kernel": {
                "amplitude": method.amplitude,
                "bandwidth": "median",
                "amplitude_schedule": schedule,
                "bandwidth_schedule": schedule,
            },
        }
        if form.directions is not None:
            own["descriptor"] = {"directions": form.directions}
    return sample_options({**shared, **own, "seed": seed})


def sampled(
    place: Path, method: Method, model: Path, starts: list[Atoms], bench: Bench, seed: int
) -> tuple[list[Atoms], list[Atoms], dict[str, Any]]:
    """Candidates, where each particle is at the end, and facts; from ``place`` where they are known already.

    A particle whose path broke goes on, in the next iteration, from the last candidate that it gave.
    """
    facts = place / "sampled.json"
    if not facts.exists():
        place.mkdir(parents=True, exist_ok=True)
        clock = Clock()
        broken: list[Ended] = []
        shortened = 0

        def told(progress: Progress) -> None:
            nonlocal shortened
            shortened = progress.tally.shortened

        ends = [atoms.copy() for atoms in starts]
        candidates = []
        potential = load_potential(model, device=bench.device)
        options = run_options(method, bench.form, seed)
        for frame in run_sampling(potential, starts, options, on_step=told, on_ended=broken.append):
            candidates.append(frame.atoms)
            ends[frame.particle] = frame.atoms
        write_extxyz(place / "candidates.extxyz", candidates)
        write_extxyz(place / "ends.extxyz", [Atoms(atoms.numbers, atoms.positions) for atoms in ends])
        known = {
            "candidates": len(candidates),
            "broken": [{"step": one.step, "particle": one.particle, "reason": one.reason} for one in broken],
            "shortened_steps": shortened,
            "cost": clock.read(),
        }
        facts.write_text(json.dumps(known))
    known = json.loads(facts.read_text())
    candidates = read(place / "candidates.extxyz", ":") if known["candidates"] else []
    return candidates, read(place / "ends.extxyz", ":"), known


def selected(
    method: Method, model: Path, candidates: list[Atoms], earlier: list[Atoms], bench: Bench, seed: int
) -> list[int]:
    """Places of the picks among the candidates, given all earlier picks, on descriptors of the model that sampled.

    ``fps``: farthest points of descriptors at unit length. ``joint-ntk``: rows and scale as ``selectron select`` has them.
    """
    potential = load_potential(model, device=bench.device)
    assert isinstance(potential, MacePotential)
    if method.selector == "fps":
        train = unit_descriptors(earlier, potential) if earlier else None
        chosen = select_batch(
            "fps", unit_descriptors(candidates, potential), train=train, budget=bench.form.picks, seed=seed
        )
        return chosen.indices.cpu().tolist()
    features = make_features(method.selector, potential)

    def rows(structures: list[Atoms]) -> Rows:
        return concatenate([features.rows(structures[i : i + BATCH]) for i in range(0, len(structures), BATCH)])

    pool, known = rows(candidates), rows(earlier) if earlier else None
    scale = default_scale(pool if known is None else known)
    chosen = select_batch(
        bench.joint_selector,
        scale.apply(pool),
        train=None if known is None else scale.apply(known),
        budget=bench.form.picks,
        prior_precision=scale.prior_precision,
        noise_variance=scale.noise_variance,
        seed=seed,
    )
    return chosen.indices.cpu().tolist()


def fitted(place: Path, picks: list[Atoms], bench: Bench, seed: int) -> tuple[Path | None, dict[str, Any]]:
    """The initial surrogate fine-tuned on all ``picks``, None where that failed, and facts; the paper's two-stage LoRA."""
    clock, epochs = Clock(), bench.form.epochs
    options = TrainOptions(
        preset="paper-lora",
        epochs=epochs,
        stage_two_start=epochs // 2,
        references="keep",
        seed=seed,
        device=bench.device,
        threads=bench.threads,
    )
    try:
        found = fine_tune(bench.surrogate, picks, None, options, place / "training")
    except TrainingFailed as failure:
        return None, {"failed": str(failure).splitlines()[0], "cost": clock.read()}
    facts = {
        "epochs": len([one for one in found.history if one.epoch >= 0]),
        "best_epoch": found.kept_epoch,
        "trained_on": found.n_train,
        "validated_on": found.n_valid,
        "validation_before": plain_errors(found.before),
        "validation_after": plain_errors(found.after),
        "cost": clock.read(found.core_s),
    }
    return found.model_path, facts


def tested(model: Path, bench: Bench) -> dict[str, dict[str, float]]:
    """Errors on each test set."""
    potential = load_potential(model, device=bench.device, dtype="float64")
    return {name: plain_errors(errors(potential, structures)) for name, structures in bench.tests.items()}


def learned(
    folder: Path, name: str, seed: int, starts: list[Atoms], bench: Bench, on_entry: Callable[[list[dict]], None]
) -> list[dict[str, Any]]:
    """All iterations of a method and seed, an entry each; what ``folder`` holds already is not done again."""
    method, model = METHODS[name], bench.surrogate
    picks: list[Atoms] = []
    seen: list[np.ndarray] = []
    entries: list[dict[str, Any]] = []
    for iteration in range(1, bench.form.iterations + 1):
        place = folder / name.replace(" ", "-") / f"iteration{iteration}"
        # methods with one sampler share what they sample with the initial surrogate
        shared = folder / f"first-{method.sampling}"
        where = shared if iteration == 1 else place
        draw = 1000 * seed + iteration
        candidates, ends, sampling = sampled(where, method, model, starts, bench, draw)
        if not (place / "entry.json").exists():
            place.mkdir(parents=True, exist_ok=True)
            entry = _entry(place, method, model, candidates, picks, seen, bench, draw)
            entry = {"iteration": iteration, "sampling": sampling, **entry}
            (place / "entry.json").write_text(json.dumps(entry))
        entry = json.loads((place / "entry.json").read_text())
        seen.append(angles(candidates, bench.backbone))
        if entry["picks"]:
            picks += read(place / "picks.extxyz", ":")
        trained = place / "training" / "fine_tuned.model"
        model = trained if trained.exists() and "failed" not in entry["training"] else model
        starts = ends
        entries.append(entry)
        on_entry(entries)
    return entries


def _entry(
    place: Path,
    method: Method,
    model: Path,
    candidates: list[Atoms],
    earlier: list[Atoms],
    seen: list[np.ndarray],
    bench: Bench,
    seed: int,
) -> dict[str, Any]:
    """What follows the sampling of an iteration."""
    clock = Clock()
    chosen = selected(method, model, candidates, earlier, bench, seed) if candidates else []
    selection = clock.read()
    clock = Clock()
    new = [
        atoms
        for atoms in with_labels([candidates[i] for i in chosen], bench.oracle)
        if np.isfinite(atoms.get_potential_energy()) and np.isfinite(atoms.get_forces()).all()
    ]
    labelling = clock.read()
    write_extxyz(place / "picks.extxyz", new)
    everything = [*earlier, *new]
    trained: Path | None = None
    training: dict[str, Any] = {"failed": "fewer than two labels", "cost": Clock().read()}
    if len(everything) > 1:
        trained, training = fitted(place, everything, bench, seed)
    own, all_picks = angles(new, bench.backbone), angles(everything, bench.backbone)
    all_seen = np.concatenate([*seen, angles(candidates, bench.backbone)])
    above = np.array([atoms.get_potential_energy() for atoms in new]) - bench.minimum_eV
    largest = np.array([np.abs(atoms.get_forces()).max() for atoms in new])
    return {
        "picks": len(new),
        "labels": len(everything),
        "not_labelled": len(chosen) - len(new),
        "selection": {"cost": selection},
        "labelling": {"cost": labelling},
        "training": training,
        "errors": tested(trained or model, bench),
        "coverage": {
            f"{bins:g} degrees": {
                "picks": ramachandran_coverage(*all_picks.T, bin_degrees=bins),
                "candidates": ramachandran_coverage(*all_seen.T, bin_degrees=bins),
            }
            for bins in (10.0, 20.0)
        },
        "energy_above_minimum_eV": _quantiles(above),
        "largest_force_eV_A": _quantiles(largest),
        "phi_psi": own.round(1).tolist(),
    }


def _quantiles(values: np.ndarray) -> dict[str, float] | None:
    if not len(values):
        return None
    middle, high = np.quantile(values, [0.5, 0.95])
    return {"median": round(float(middle), 4), "95 %": round(float(high), 4), "greatest": round(float(values.max()), 4)}
