"""What the graph of one step of molecular dynamics costs: list with a skin, against a list from scratch.

    python benchmarks/neighbour_lists.py [--quick] [--threads 1] [--device cpu|cuda] [--steps 300] [--skin 0.7]

Both sides start from positions of a trajectory and end with the same GraphBatch on the device; the edges of every tenth step
are compared, outside the clock. The trajectories: copper under ASE's EMT (crystal at 300 K and melt at 2500 K); elsewhere
atoms that swing independently at thermal speed, which carries pairs in and out of the cutoff. Replicas follow the same
trajectory, each some steps ahead of the other. Three kinds of steps are told apart: the same edges as before, other
edges, and a list made anew; `mean_s` is over all steps as they came. For molecules a call of the embedded model for energies
and forces, its graph given, sets the scale. On the CPU the times are of process CPU time, which other processes on the machine
disturb less than wall time; on a GPU of wall time, synchronised. Writes neighbour_lists[_DEVICE][_quick].json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.io import read
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution

from _common import add_common_arguments, machine_facts, save
from selectron.potentials import load_potential
from selectron.structures.graphs import GraphBatch, collate
from selectron.structures.verlet import refreshed, skin_list

SEED = 0
CUTOFF_A = 5.0
APART = 7  # steps between one replica and the next
DTYPES = (torch.float64, torch.float32)


def swinging(atoms: Atoms, steps: int, *, temperature_K: float, period_fs: float) -> np.ndarray:
    """(steps, n, 3) Å: independent oscillators in steps of 1 fs, thermal speeds."""
    random = np.random.default_rng(SEED)
    speed = np.sqrt(units.kB * temperature_K / atoms.get_masses()) * units.fs  # Å/fs
    omega = 2 * np.pi / (period_fs * random.uniform(0.7, 1.4, (len(atoms), 3)))
    amplitude = random.normal(0, 1, (2, len(atoms), 3)) * speed[:, None] / omega
    phase = omega * np.arange(steps)[:, None, None]
    return atoms.positions + amplitude[0] * np.cos(phase) + amplitude[1] * np.sin(phase)


def copper(steps: int, *, temperature_K: float, atoms: Atoms) -> np.ndarray:
    """(steps, n, 3) Å: Langevin dynamics of 2 fs a step under EMT, after 500 steps of equilibration."""
    atoms = atoms.copy()
    atoms.calc = EMT()
    MaxwellBoltzmannDistribution(atoms, temperature_K=2 * temperature_K, rng=np.random.default_rng(SEED))
    dynamics = Langevin(
        atoms, 2 * units.fs, temperature_K=temperature_K, friction=0.02 / units.fs, rng=np.random.default_rng(SEED)
    )
    dynamics.run(500)
    frames = []
    for _ in range(steps):
        dynamics.run(1)
        frames.append(atoms.positions.copy())
    return np.stack(frames)


def systems(shared: Path, steps: int) -> dict[str, tuple[Atoms, np.ndarray]]:
    """Structure and trajectory by name."""
    ethanol = molecule("CH3CH2OH")
    dipeptide = read(shared / "data" / "alanine_dipeptide_vacuum.xyz", format="xyz")
    dipeptide = Atoms(dipeptide.numbers, dipeptide.positions)
    silicon = bulk("Si", cubic=True) * 2
    solid = bulk("Cu") * 4
    melt = solid.copy()
    melt.set_cell(solid.cell * 1.03, scale_atoms=True)
    return {
        "ethanol": (ethanol, swinging(ethanol, steps, temperature_K=300, period_fs=40)),
        "alanine dipeptide": (dipeptide, swinging(dipeptide, steps, temperature_K=300, period_fs=40)),
        "Si64, 300 K": (silicon, swinging(silicon, steps, temperature_K=300, period_fs=100)),
        "Cu64, crystal at 300 K": (solid, copper(steps, temperature_K=300, atoms=solid)),
        "Cu64, melt at 2500 K": (melt, copper(steps, temperature_K=2500, atoms=melt)),
    }


def timed(function: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Seconds, and what the function returns."""
    if not device.startswith("cuda"):
        start = time.process_time()
        result = function()
        return time.process_time() - start, result
    torch.cuda.synchronize()
    start = time.perf_counter()
    result = function()
    torch.cuda.synchronize()
    return time.perf_counter() - start, result


def ordered(batch: GraphBatch) -> torch.Tensor:
    """(E, 5) edges in an order that both sides share."""
    rows = torch.cat([batch.edge_index.flip(0).T.double(), batch.unit_shifts.double()], dim=1).cpu().numpy()
    return torch.from_numpy(rows[np.lexsort(rows.T[::-1])] + 0.0)


def compare(
    atoms: Atoms, frames: np.ndarray, replicas: int, steps: int, skin_A: float, device: str, dtype: torch.dtype
) -> dict[str, Any]:
    """Times in seconds of each kind of step, and of collate on every tenth."""
    structures = [atoms.copy() for _ in range(replicas)]
    batch = collate(structures, None).to(device, dtype)
    at = [
        torch.from_numpy(np.concatenate([frames[t + APART * k] for k in range(replicas)])).to(device, dtype)
        for t in range(steps)
    ]
    skin = skin_list(batch._replace(positions=at[0]), CUTOFF_A, skin_A)
    kinds: dict[str, list[float]] = {"same edges": [], "other edges": [], "listed anew": []}
    scratch: list[float] = []
    differing = edges = compared = 0
    for step, positions in enumerate(at):
        moved = batch._replace(positions=positions)
        seconds, (after, graph) = timed(lambda skin=skin, moved=moved: refreshed(skin, moved), device)  # type: ignore[misc]
        kind = (
            "listed anew"
            if after.ends is not skin.ends
            else "same edges"
            if after.graph is skin.graph
            else "other edges"
        )
        kinds[kind].append(seconds)
        skin = after
        if step % 10 == 0:
            for one, own in zip(structures, positions.double().cpu().numpy().reshape(replicas, -1, 3), strict=True):
                one.positions = own
            seconds, reference = timed(lambda: collate(structures, CUTOFF_A).to(device, dtype), device)
            scratch.append(seconds)
            mine, theirs = ordered(graph), ordered(reference)
            compared, edges = compared + 1, graph.edge_index.shape[1]
            differing += not torch.equal(mine, theirs)
    everything = [seconds for each in kinds.values() for seconds in each]
    return {
        "atoms": len(batch.positions),
        "edges": edges,
        "listed_pairs": skin.ends.shape[0] // 2,
        "steps": {kind: len(each) for kind, each in kinds.items()},
        "median_s": {kind: median(each) for kind, each in kinds.items() if each},
        "mean_s": mean(everything),
        "collate_median_s": median(scratch),
        "collate_mean_s": mean(scratch),
        "speedup_of_means": mean(scratch) / mean(everything),
        "steps_compared": compared,
        "steps_with_other_edges_than_collate": differing,
    }


def model_call(atoms: Atoms, replicas: int, device: str) -> float:
    """Median seconds of energies and forces by the embedded model in float32, graph given."""
    potential = load_potential("embedded", device=device)
    batch = potential.batch([atoms] * replicas)
    return median(timed(lambda: potential.evaluate(batch), device)[0] for _ in range(12))


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_common_arguments(parser)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--skin", type=float, default=0.7, help="Å")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    steps = 30 if arguments.quick else arguments.steps
    results: dict[str, dict[str, Any]] = {}
    for name, (atoms, frames) in systems(arguments.shared, steps + 31 * APART).items():
        for replicas in (1, 32):
            row: dict[str, Any] = {}
            if not atoms.pbc.any():
                row["embedded_model_call_s"] = model_call(atoms, replicas, arguments.device)
            for dtype in DTYPES:
                key = str(dtype).removeprefix("torch.")
                found = row[key] = compare(atoms, frames, replicas, steps, arguments.skin, arguments.device, dtype)
                typical = ", ".join(f"{kind} {1e3 * each:.3f}" for kind, each in found["median_s"].items())
                print(
                    f"{replicas:2d} × {name}, {key}: {typical}; mean {1e3 * found['mean_s']:.3f} ms;"
                    f" collate {1e3 * found['collate_mean_s']:.2f} ms, {found['speedup_of_means']:.0f} times; steps"
                    f" {list(found['steps'].values())}; {found['steps_with_other_edges_than_collate']} differ",
                    flush=True,
                )
            if "embedded_model_call_s" in row:
                print(f"   the embedded model takes {1e3 * row['embedded_model_call_s']:.1f} ms")
            results[f"{replicas} x {name}"] = row
    settings = {"cutoff_A": CUTOFF_A, "skin_A": arguments.skin, "steps": steps, "steps_apart": APART, "seed": SEED}
    settings["clock"] = "process CPU time" if arguments.device == "cpu" else "wall"
    stem = "neighbour_lists" + ("" if arguments.device == "cpu" else f"_{arguments.device.split(':')[0]}")
    stem += "_quick" if arguments.quick else ""
    save(arguments.output, stem, {"settings": settings, "machine": machine_facts(arguments.device), "results": results})


if __name__ == "__main__":
    main()
