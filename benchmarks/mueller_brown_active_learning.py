"""The SKMD paper's learning study (section 5.1, appendix E.1): whose points teach a network the Müller–Brown surface?

    python benchmarks/mueller_brown_active_learning.py [--quick] [--trials 50] [--iterations 16] [--methods NAME ...]

An MLP 2-20-1 with tanh units and a confining quartic term starts from 32 points of one basin. Every iteration a sampler that
runs on the network proposes 32 points, they are labelled, and the network is fitted again to all points so far. All
methods of a trial share initial points, initial network, fit and Brownian path. Tested on Boltzmann samples of the surface.

Rows of the paper: Langevin (a point every 100 steps), UDD (committee of 5 on folds of the data), SKMD (T = 100), a-SKMD.
Rows of our own: the two-phase scheme that the paper leaves to future work (median bandwidth and fixed stopping first, then
fixed bandwidth and adaptive stopping), a-SKMD in which every labelled point repels (not only the ensemble), and 32
points drawn at random from the box of the figure, which needs no sampler at all; Langevin dynamics and a-SKMD with
longer paths between points, because uncertainty-driven dynamics takes many more steps than the paper's other rows.

Writes ``mueller_brown_active_learning.json`` (errors of every trial and iteration, steps, points of one trial), a figure of
errors and one of points. ``--quick`` takes under three minutes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from torch import Tensor

from _common import add_common_arguments, machine_facts, save
from _mueller_brown import (
    ANYWHERE,
    BOUNDS,
    CHOSEN,
    KT_EV,
    PARTICLES,
    STEP_SIZE,
    SURFACE,
    clump,
    points_as_structures,
)
from selectron.potentials.mlp import MLPPotential, PlanarScaling
from selectron.potentials.surfaces import boltzmann_samples, landscape
from selectron.sampling import (
    CommitteeField,
    Coordinates,
    Sampler,
    SteinKernel,
    Stepping,
    Unbiased,
    Watch,
    bias_norm_below,
    brownian,
    fixed_steps,
    make_system,
    median_bandwidth,
    skmd,
    uncertainty_above,
    uncertainty_driven,
)
from selectron.training.mlp_fit import fit_mlp

mpl.use("Agg")
import matplotlib.pyplot as plt

SEED = 11
SPACING = 100
"""Steps between points of Langevin dynamics, and the stopping time of SKMD (paper: 100)."""
LONG_SPACING = 400
"""That of the row which gives Langevin dynamics about as many steps as uncertainty-driven dynamics takes here."""
MOST_STEPS = 500
"""Steps after which a point is taken even though no criterion holds; the paper has no such limit in its text."""
LONGEST_STEP_A = 0.1
"""Drifts are cut there, for all methods: an early network has cliffs where Euler's rule would leap over the whole plane."""
COMMITTEE = 5
EXPLORATION = 4
"""Iterations of the first phase of the two-phase scheme."""


class Settings(NamedTuple):
    """What the paper determines from pilot simulations and does not tell; see ``CONSTANTS`` for how each was chosen."""

    bias_threshold: float = 1.0
    min_steps_skmd: int = 50
    min_steps_udd: int = 50
    uncertainty_threshold: float = 5.0
    udd_height: float = 40.0
    udd_width: float = 20.0
    initial_width: float = 0.1
    energy_weight: float = 1.0
    force_weight: float = 0.01
    regularisation: float = 1e-3
    first_fit: int = 300
    later_fit: int = 150


SCALING = PlanarScaling(centre_A=(-0.2, 0.8), width_A=(1.6, 1.5), energy_eV=100.0, confinement_eV=200.0)
PICTURED = (0, 1, 2, 4)


@dataclass
class Trials:
    """E trials of one method: points (E, n, 2) with labels, the fitted networks, and what the sampler carries along."""

    points: Tensor
    energies: Tensor
    forces: Tensor
    model: MLPPotential
    committee: list[MLPPotential]
    ensemble: Tensor
    bandwidth: Tensor
    steps: list[float] = field(default_factory=list)
    forced: list[float] = field(default_factory=list)


def labels(points: Tensor) -> tuple[Tensor, Tensor]:
    """True energies (E, n) and forces (E, n, 2)."""
    energies, forces = SURFACE.energies_and_forces(points.reshape(-1, 2))
    return energies.reshape(points.shape[:2]), forces.reshape(points.shape)


def begun(trials: int, settings: Settings, committee: bool) -> Trials:
    """The same for every method."""
    points = clump(trials, PARTICLES, settings.initial_width, SEED)
    energies, forces = labels(points)
    model = MLPPotential.initialise(trials, SEED, scaling=SCALING)
    members = [MLPPotential.initialise(trials, SEED + 1 + k, scaling=SCALING) for k in range(COMMITTEE)]
    first, second = torch.triu_indices(PARTICLES, PARTICLES, 1)
    bandwidth = (points[:, first] - points[:, second]).norm(dim=-1).median(dim=1).values
    one = Trials(points, energies, forces, model, members if committee else [], points, bandwidth)
    fitted(one, settings, settings.first_fit)
    return one


def fitted(one: Trials, settings: Settings, steps: int) -> None:
    """Fits the network, and the committee on all but one fold each."""
    weights = {
        "energy_weight": settings.energy_weight,
        "force_weight": settings.force_weight,
        "regularisation": settings.regularisation,
        "steps": steps,
    }
    one.model, _ = fit_mlp(one.model, one.points, one.energies, one.forces, **weights)
    fold = torch.arange(one.points.shape[1]) % COMMITTEE
    for k, member in enumerate(one.committee):
        mask = (fold != k).expand(one.points.shape[:2])
        one.committee[k], _ = fit_mlp(member, one.points, one.energies, one.forces, mask=mask, **weights)


def collected(sampler: Sampler, trials: int, wanted: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The first ``wanted`` acquired points (E, wanted, 2), steps to the last (E,), how many were forced (E,), last points."""
    state = sampler.init()
    found = torch.full((trials, wanted, 2), float("nan"), dtype=torch.float64)
    count = torch.zeros(trials, dtype=torch.int64)
    steps, forced = torch.zeros(trials), torch.zeros(trials)
    last = state.positions.reshape(trials, -1, 3)[:, 0, :2].clone()
    while bool((count < wanted).any()):
        state, info = sampler.step(state)
        lost = torch.nonzero((state.ended >= 0) & (count < wanted)).squeeze(1)
        for trial in lost.tolist():
            # a trajectory that left the surface proposes nothing more: its last point stands for the rest
            found[trial, int(count[trial]) :] = last[trial]
            forced[trial] += wanted - float(count[trial])
            steps[trial] = float(state.step)
            count[trial] = wanted
        new = torch.nonzero((info.stopped >= 0) & (count < wanted)).squeeze(1)
        if len(new):
            found[new, count[new]] = info.positions[new, :2]
            last[new] = info.positions[new, :2]
            steps[new] = float(state.step)
            forced[new] += (info.stopped[new] == 1).float()
            count[new] += 1
    return found, steps, forced, last


def langevin(one: Trials, settings: Settings, seed: int, iteration: int, spacing: int = SPACING) -> Tensor:
    """A path that goes on from iteration to iteration, a point every ``spacing`` steps."""
    del settings, iteration
    system = make_system(one.model, points_as_structures(one.ensemble[:, 0]))
    watch = Watch((fixed_steps(spacing),), ANYWHERE)
    sampler = brownian(
        Unbiased(system), kT_eV=KT_EV, step_size=STEP_SIZE, seed=seed, watch=watch, max_displacement_A=LONGEST_STEP_A
    )
    return noted(one, collected(sampler, len(one.points), PARTICLES), path=True)


def udd(one: Trials, settings: Settings, seed: int, iteration: int) -> Tensor:
    """Uncertainty-driven dynamics on the committee's mean."""
    del iteration
    system = make_system(one.model, points_as_structures(one.ensemble[:, 0]))
    criteria = (
        uncertainty_above(settings.uncertainty_threshold, settings.min_steps_udd),
        fixed_steps(MOST_STEPS),
    )
    bias = uncertainty_driven(height_eV=settings.udd_height, width_eV=settings.udd_width)
    sampler = brownian(
        CommitteeField(system, one.committee, bias),
        kT_eV=KT_EV,
        step_size=STEP_SIZE,
        seed=seed,
        watch=Watch(criteria, ANYWHERE),
        max_displacement_A=LONGEST_STEP_A,
    )
    return noted(one, collected(sampler, len(one.points), PARTICLES), path=True)


def stein(one: Trials, settings: Settings, seed: int, *, adaptive: bool, median: bool, memory: bool = False) -> Tensor:
    """One round of SKMD: every particle of the ensemble makes one journey."""
    trials = len(one.points)
    criteria: tuple = (fixed_steps(SPACING),)
    if adaptive:
        criteria = (bias_norm_below(settings.bias_threshold, settings.min_steps_skmd), fixed_steps(MOST_STEPS))
    standing = one.ensemble
    if memory:
        # the ensemble is the latest 32 points; all others that have a label stand and repel
        standing = torch.cat([one.ensemble, one.points[:, : one.points.shape[1] - PARTICLES]], dim=1)
    # trials have bandwidths of their own, so the rule returns what was measured at the beginning
    rule = median_bandwidth() if median else (lambda squared: one.bandwidth)
    system = make_system(one.model, points_as_structures(standing.reshape(-1, 2)), descriptor=Coordinates())
    sampler = skmd(
        system,
        particles=standing.shape[1],
        anchors=standing.shape[1] - PARTICLES,
        stepping=Stepping(KT_EV, STEP_SIZE, max_displacement_A=LONGEST_STEP_A),
        seed=seed,
        stein=SteinKernel(bandwidth=rule),
        watch=Watch(criteria, ANYWHERE),
    )
    return noted(one, collected(sampler, trials, PARTICLES), path=False)


def noted(one: Trials, outcome: tuple[Tensor, Tensor, Tensor, Tensor], *, path: bool) -> Tensor:
    """Writes down what the round cost and where the next one starts."""
    found, steps, forced, last = outcome
    one.steps.append(float(steps.mean()))
    one.forced.append(float(forced.mean()))
    one.ensemble = last[:, None].expand(-1, PARTICLES, -1).contiguous() if path else found
    return found


def scattered(one: Trials, settings: Settings, seed: int, iteration: int) -> Tensor:
    """Points drawn evenly from the box: no sampler."""
    del settings, iteration
    generator = torch.Generator().manual_seed(seed)
    (x_low, x_high), (y_low, y_high) = BOUNDS
    low, high = torch.tensor([x_low, y_low]), torch.tensor([x_high, y_high])
    drawn = low + (high - low) * torch.rand(len(one.points), PARTICLES, 2, generator=generator, dtype=torch.float64)
    one.steps.append(0.0)
    one.forced.append(0.0)
    return drawn


Proposal = Callable[[Trials, Settings, int, int], Tensor]
METHODS: dict[str, Proposal] = {
    "Langevin": langevin,
    "UDD": udd,
    "SKMD": lambda one, s, seed, i: stein(one, s, seed, adaptive=False, median=False),
    "a-SKMD": lambda one, s, seed, i: stein(one, s, seed, adaptive=True, median=False),
    "two-phase": lambda one, s, seed, i: stein(one, s, seed, adaptive=i >= EXPLORATION, median=i < EXPLORATION),
    "a-SKMD, all labelled repel": lambda one, s, seed, i: stein(one, s, seed, adaptive=True, median=False, memory=True),
    "random in the box": scattered,
    "Langevin, every 400 steps": lambda one, s, seed, i: langevin(one, s, seed, i, LONG_SPACING),
    "a-SKMD, γ = 0.5": lambda one, s, seed, i: stein(
        one, s._replace(bias_threshold=0.5), seed, adaptive=True, median=False
    ),
}

CONSTANTS = {
    **CHOSEN,
    "initial points": "32 around the minor basin's minimum, standard deviation initial_width",
    "bandwidth": "median distance in the initial ensemble (as the paper), each trial its own; the length itself is lost",
    "bias_threshold, min_steps_skmd": "lost; see docs/samplers/skmd.md for the pilot",
    "uncertainty_threshold, udd_height, udd_width": "lost; chosen in a pilot so that UDD does as well as it can",
    "confining quartic": f"{SCALING.confinement_eV} eV ‖u‖⁴ in u = (r − centre)/width",
    "energy_weight, force_weight": "lost; 1 and 0.01, which makes both terms of the loss about equally large",
    "training": "Levenberg–Marquardt from the last iteration's parameters, for all alike; the paper's optimiser is lost",
    "MOST_STEPS": f"{MOST_STEPS}: a journey that meets no criterion ends and is acquired",
}


def errors(model: MLPPotential, test: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """RMSE of energies (E,) in eV and of force components (E,) in eV/Å on the test points (n, 2)."""
    trials = model.networks
    energies, forces = model.energies_and_forces(test.repeat(trials, 1))
    true_energies, true_forces = SURFACE.energies_and_forces(test)
    energy = (energies.reshape(trials, -1) - true_energies).square().mean(1).sqrt()
    force = (forces.reshape(trials, -1, 2) - true_forces).square().mean((1, 2)).sqrt()
    return energy.numpy(), force.numpy()


def learned(name: str, trials: int, iterations: int, settings: Settings, test: Tensor) -> dict[str, Any]:
    """One method through all iterations."""
    began = time.perf_counter()
    one = begun(trials, settings, committee=name == "UDD")
    history = [errors(one.model, test)]
    pictures: dict[str, Any] = {}
    for iteration in range(iterations + 1):
        if iteration in PICTURED:
            pictures[str(iteration)] = {
                "points": one.points[0].tolist(),
                "parameters": one.model.parameters[0].tolist(),
            }
        if iteration == iterations:
            break
        # one seed an iteration, so that every method feels the same Brownian path
        points = METHODS[name](one, settings, SEED + 1000 * iteration, iteration)
        energies, forces = labels(points)
        one.points = torch.cat([one.points, points], dim=1)
        one.energies = torch.cat([one.energies, energies], dim=1)
        one.forces = torch.cat([one.forces, forces], dim=1)
        fitted(one, settings, settings.later_fit)
        history.append(errors(one.model, test))
    energy = np.array([e for e, _ in history])
    force = np.array([f for _, f in history])
    seconds = time.perf_counter() - began
    print(
        f"{name:28s} {seconds:6.0f} s, {np.sum(one.steps):7.0f} steps, forced {np.sum(one.forced):5.1f}; "
        f"energy {np.median(energy[-1]):7.2f} ({energy[-1].mean():.2f} ± {energy[-1].std():.2f}), "
        f"force {np.median(force[-1]):7.1f} ({force[-1].mean():.1f} ± {force[-1].std():.1f})",
        flush=True,
    )
    return {
        "energy_rmse_eV": energy.round(4).tolist(),
        "force_rmse_eV_A": force.round(3).tolist(),
        "mean_steps": one.steps,
        "mean_forced": one.forced,
        "seconds": seconds,
        "pictures": pictures,
    }


def main() -> None:
    """Runs, writes, draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--iterations", type=int, default=16)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    for name, default in Settings()._asdict().items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = Settings(**{name: getattr(arguments, name) for name in Settings._fields})
    trials, iterations = (6, 3) if arguments.quick else (arguments.trials, arguments.iterations)
    test = boltzmann_samples(SURFACE, kT_eV=KT_EV, bounds=BOUNDS, count=2000, seed=SEED)
    label = "mueller_brown_active_learning" + ("_quick" if arguments.quick else "")
    content: dict[str, Any] = {
        "question": "error of a network on Boltzmann samples against iterations of active learning",
        "constants": CONSTANTS,
        "settings": settings._asdict(),
        "scaling": SCALING._asdict(),
        "trials": trials,
        "iterations": iterations,
        "machine": machine_facts("cpu"),
        "methods": {},
    }
    for name in arguments.methods:
        result = learned(name, trials, iterations, settings, test)
        content["methods"] = {**known(arguments.output / f"{label}.json", content), name: result}
        save(arguments.output, label, content)
    draw_errors(content, arguments.output / f"{label}.png")
    draw_points(content, arguments.output / f"{label}_points.png")


def known(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Methods that the file has already, where it was made with the same settings: they may run one by one."""
    if not path.exists():
        return {}
    before = json.loads(path.read_text())
    same = all(before.get(key) == json.loads(json.dumps(content[key])) for key in ("settings", "trials", "iterations"))
    return before["methods"] if same else {}


COLOURS = ["#000000", "#D55E00", "#56B4E9", "#0072B2", "#009E73", "#CC79A7", "#999999", "#8B6914", "#7A5195"]


def draw_errors(content: dict[str, Any], path: Path) -> None:
    """Median and quartiles over trials: a network that went wrong once must not hide the others."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.3), constrained_layout=True)
    for axis, key, label in zip(
        axes, ("energy_rmse_eV", "force_rmse_eV_A"), ("energy RMSE (eV)", "force RMSE (eV/Å)"), strict=True
    ):
        for name, colour in zip(METHODS, COLOURS, strict=True):
            if name not in content["methods"]:
                continue
            values = np.array(content["methods"][name][key])
            low, middle, high = np.quantile(values, [0.25, 0.5, 0.75], axis=1)
            axis.plot(middle, "o-", ms=3.5, lw=1.5, color=colour, label=name)
            axis.fill_between(np.arange(len(middle)), low, high, color=colour, alpha=0.12, lw=0)
        axis.set(xlabel="iteration (32 labels each)", ylabel=label, yscale="log")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=8, frameon=False)
    figure.suptitle(f"Learning Müller–Brown: median and quartiles of {content['trials']} trials", fontsize=11)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_points(content: dict[str, Any], path: Path) -> None:
    """One trial: the network's landscape and the points so far, at some iterations."""
    names = [name for name in METHODS if name in content["methods"]]
    shown = [i for i in PICTURED if i <= content["iterations"]]
    figure, axes = plt.subplots(
        len(names) + 1, len(shown), figsize=(2.6 * len(shown), 2.5 * (len(names) + 1)), squeeze=False,
        sharex=True, sharey=True, constrained_layout=True,
    )  # fmt: skip
    levels = np.linspace(-150, 100, 26)
    truth = landscape(SURFACE, bounds=BOUNDS, grid=120)
    for column, iteration in enumerate(shown):
        axes[0, column].contourf(truth.x, truth.y, truth.energies.clip(-150, 100), levels, cmap="viridis")
        axes[0, column].set_title(f"iteration {iteration}", fontsize=10)
        for row, name in enumerate(names, start=1):
            picture = content["methods"][name]["pictures"][str(iteration)]
            model = MLPPotential(torch.tensor([picture["parameters"]], dtype=torch.float64), SCALING)
            seen = landscape(model, bounds=BOUNDS, grid=120)
            axis = axes[row, column]
            axis.contourf(seen.x, seen.y, seen.energies.clip(-150, 100), levels, cmap="viridis")
            points = np.array(picture["points"])
            axis.plot(*points[: -PARTICLES or None].T, ".", ms=3, color="white", alpha=0.8)
            axis.plot(*points[-PARTICLES:].T, ".", ms=4, color="#D55E00")
    for row, label in enumerate(["the true surface", *names]):
        axes[row, 0].set_ylabel(label, fontsize=9)
    (x_low, x_high), (y_low, y_high) = BOUNDS
    axes[0, 0].set(xlim=(x_low, x_high), ylim=(y_low, y_high))
    figure.suptitle("Network and points of one trial; the latest 32 in orange", fontsize=11)
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    main()
