"""The SKMD paper's sampling study (appendix B.1, figure 4): how near do samples come to the Boltzmann distribution?

    python benchmarks/mueller_brown_sampling.py [--quick] [--trials 100] [--steps 16000]

Wasserstein-2 distance (POT, exact) of 32 points to the Boltzmann distribution of the Müller–Brown surface against the number of
simulation steps, one step being one force evaluation: overdamped Langevin dynamics, SKMD with stopping times T = 1, 10,
50 and 100, and rows of our own. All methods of a trial start from the same points and feel the same Brownian path. A single
Langevin chain is represented by 32 points evenly spaced along it, ensembles by their particles. 'Independent' are
32 draws from the Boltzmann distribution itself: what 32 points can reach at best without being placed.

Writes ``mueller_brown_sampling.json`` (every distance of every trial) and ``.png``. ``--quick`` takes under a minute.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import matplotlib as mpl
import numpy as np
import ot
import torch
from torch import Tensor

from _common import add_common_arguments, machine_facts, save
from _mueller_brown import ANYWHERE, BOUNDS, CHOSEN, KT_EV, PARTICLES, STEP_SIZE, SURFACE, clump, points_as_structures
from selectron.potentials.surfaces import boltzmann_samples
from selectron.sampling import (
    Coordinates,
    Sampler,
    SteinKernel,
    Stepping,
    Unbiased,
    Watch,
    brownian,
    fixed_bandwidth,
    fixed_steps,
    make_system,
    median_bandwidth,
    skmd,
    synchronous_skmd,
)

mpl.use("Agg")
import matplotlib.pyplot as plt

REFERENCE_POINTS = 2000
CHECKPOINTS = (320, 640, 1280, 2560, 4800, 8000, 12800, 16000)
SEED = 7
Positions = Callable[[], list[Tensor]]


def ensembles(start: Tensor, kT_eV: float, stopping_time: int, stein: SteinKernel, form: str) -> Sampler:
    """SKMD of one ensemble a trial."""
    particles = start.shape[1]
    system = make_system(SURFACE, points_as_structures(start.reshape(-1, 2)), descriptor=Coordinates())
    return skmd(
        system,
        particles=particles,
        stepping=Stepping(kT_eV, STEP_SIZE, form=form, max_displacement_A=None),
        seed=SEED,
        stein=stein,
        watch=Watch((fixed_steps(stopping_time),), ANYWHERE),
    )


def followed(sampler: Sampler, checkpoints: list[int], trials: int) -> list[Tensor]:
    """Particles (trials, M, 2) at each checkpoint."""
    state, found = sampler.init(), []
    for step in range(1, checkpoints[-1] + 1):
        state, _ = sampler.step(state)
        if step in checkpoints:
            standing = state.standing.positions.clone()
            # the particle on its way counts where it is
            standing[torch.arange(trials), state.active] = state.positions.reshape(trials, 1, 3)
            found.append(standing[:, :, 0, :2])
    if bool((state.ended >= 0).any()):
        raise RuntimeError("an ensemble left the surface: the step is too long")
    return found


def one_chain(start: Tensor, kT_eV: float, checkpoints: list[int]) -> list[Tensor]:
    """A Langevin chain a trial, as PARTICLES points evenly spaced along it up to each checkpoint."""
    system = make_system(SURFACE, points_as_structures(start[:, 0]))
    sampler = brownian(Unbiased(system), kT_eV=kT_eV, step_size=STEP_SIZE, seed=SEED, watch=Watch(geometry=ANYWHERE))
    state, path = sampler.init(), []
    for _ in range(checkpoints[-1]):
        state, _ = sampler.step(state)
        path.append(state.positions[:, :2])
    whole = torch.stack(path, dim=1)
    return [whole[:, torch.linspace(n / PARTICLES - 1, n - 1, PARTICLES).long()] for n in checkpoints]


def synchronous(start: Tensor, kT_eV: float, checkpoints: list[int], trials: int) -> list[Tensor]:
    """Stochastic SVGD: a step of all particles counts as M steps."""
    particles = start.shape[1]
    system = make_system(SURFACE, points_as_structures(start.reshape(-1, 2)), descriptor=Coordinates())
    sampler = synchronous_skmd(
        system,
        particles=particles,
        stepping=Stepping(kT_eV, STEP_SIZE, max_displacement_A=None),
        seed=SEED,
        watch=Watch(geometry=ANYWHERE),
    )
    state, found = sampler.init(), []
    for step in range(1, checkpoints[-1] // particles + 1):
        state, _ = sampler.step(state)
        if step * particles in checkpoints:
            found.append(state.positions.reshape(trials, particles, 3)[..., :2])
    return found


def wasserstein_2(points: Tensor, reference: np.ndarray) -> np.ndarray:
    """(trials,) exact W2 of each trial's points (trials, n, 2) to the points of ``reference``."""
    n, m = points.shape[1], len(reference)
    weights, other = np.full(n, 1.0 / n), np.full(m, 1.0 / m)
    cost = (ot.dist(one, reference) for one in points.numpy())
    return np.array([np.sqrt(ot.emd2(weights, other, matrix)) for matrix in cost])


def methods(trials: int, start: Tensor, kT_eV: float, checkpoints: list[int]) -> dict[str, Positions]:
    """What is compared, by name."""
    alone = SteinKernel(amplitude=0.0, bandwidth=fixed_bandwidth(1.0))
    median = SteinKernel(bandwidth=median_bandwidth())

    def stein(stopping_time: int, kernel: SteinKernel, form: str = "sum") -> Positions:
        return lambda: followed(ensembles(start, kT_eV, stopping_time, kernel, form), checkpoints, trials)

    return {
        "Langevin, one chain": lambda: one_chain(start, kT_eV, checkpoints),
        "Langevin, 32 chains": stein(1, alone),
        "SKMD, T = 1": stein(1, median),
        "SKMD, T = 10": stein(10, median),
        "SKMD, T = 50": stein(50, median),
        "SKMD, T = 100": stein(100, median),
        "SKMD, T = 10, ℓ = 0.3": stein(10, SteinKernel(bandwidth=fixed_bandwidth(0.3))),
        "SKMD, T = 10, mean form": stein(10, median, "mean"),
        "synchronous SKMD": lambda: synchronous(start, kT_eV, checkpoints, trials),
    }


def main() -> None:
    """Runs, writes, draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--steps", type=int, default=CHECKPOINTS[-1])
    parser.add_argument("--kT", type=float, default=KT_EV, help="eV")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    trials, steps = (10, 4800) if arguments.quick else (arguments.trials, arguments.steps)
    checkpoints = [n for n in CHECKPOINTS if n <= steps]
    kT_eV = arguments.kT
    start = clump(trials, PARTICLES, 0.05, SEED)
    draws = boltzmann_samples(
        SURFACE, kT_eV=kT_eV, bounds=BOUNDS, count=REFERENCE_POINTS + trials * PARTICLES, seed=SEED
    )
    reference, independent = draws[:REFERENCE_POINTS].numpy(), draws[REFERENCE_POINTS:].reshape(trials, PARTICLES, 2)
    content = {
        "question": "Wasserstein-2 distance of 32 points to Boltzmann, against simulation steps",
        "constants": {**CHOSEN, "start": "32 points around the minor basin's minimum, standard deviation 0.05"},
        "trials": trials,
        "kT": kT_eV,
        "steps": checkpoints,
        "machine": machine_facts("cpu"),
        "independent": wasserstein_2(independent, reference).tolist(),
        "w2": {},
        "seconds": {},
    }
    for name, run in methods(trials, start, kT_eV, checkpoints).items():
        began = time.perf_counter()
        found = run()
        content["seconds"][name] = time.perf_counter() - began
        distances = np.stack([wasserstein_2(points, reference) for points in found])
        content["w2"][name] = distances.round(5).tolist()
        last = f"{distances[-1].mean():.3f} ± {distances[-1].std():.3f}"
        print(f"{name:26s} {content['seconds'][name]:6.1f} s  W2 at the end {last}")
    print(f"{'independent draws':26s}           W2            {np.mean(content['independent']):.3f}")
    label = (
        "mueller_brown_sampling" + (f"_kT{kT_eV:g}" if kT_eV != KT_EV else "") + ("_quick" if arguments.quick else "")
    )
    save(arguments.output, label, content)
    draw(content, arguments.output / f"{label}.png")


def draw(content: dict, path) -> None:
    """Mean and standard deviation over trials."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.3), sharey=True, constrained_layout=True)
    names = list(content["w2"])
    panels = (("the paper's rows", names[:6]), ("rows of our own", [names[1], names[3], *names[6:]]))
    colours = ["#000000", "#777777", "#0072B2", "#56B4E9", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#F0E442"]
    for axis, (title, chosen) in zip(axes, panels, strict=True):
        for name in chosen:
            values = np.array(content["w2"][name])
            mean, spread = values.mean(1), values.std(1)
            colour = colours[names.index(name)]
            axis.plot(content["steps"], mean, "o-", ms=3.5, lw=1.5, label=name, color=colour)
            axis.fill_between(content["steps"], mean - spread, mean + spread, color=colour, alpha=0.12, lw=0)
        axis.axhline(np.mean(content["independent"]), color="#444444", ls=":", lw=1, label="independent draws")
        axis.set(xlabel="simulation steps (force evaluations)", title=title, xscale="log")
        axis.legend(fontsize=8, frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("Wasserstein-2 distance to Boltzmann (Å)")
    axes[0].set_ylim(0.0, None)
    figure.suptitle(
        f"Müller–Brown, kT = {content['kT']:g}: mean and standard deviation of {content['trials']} trials", fontsize=11
    )
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
