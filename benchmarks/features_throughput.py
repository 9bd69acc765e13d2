"""How many structures a second activation and energy NTK features take, beside a plain energy and force evaluation.

    python benchmarks/features_throughput.py [--quick] [--threads 1] [--device cpu|cuda] [--batch-size 32] [--repeats 7]

Same structures, same model, same batches, one run, the repeats interleaved. There are two baselines, and a ratio to each:

- mace-torch: the model as mace-torch loads and calls it, energies and forces of a batch;
- selectron: the same through selectron's exchanged layers, which is quicker, so that its ratios are the stricter ones.

Every time includes the neighbour lists and all that lies between ASE's atoms and the result; mace-torch's own data pipeline is
slower than selectron's, so its baseline is given selectron's batches too. The loop is ∂E/∂θ by plain autograd through the plain
model, one structure after the other, on a part of the structures. On the CPU the ratios are of process CPU time, which other
processes on the machine disturb less than wall time (both are written down); on a GPU of wall time, synchronised.
Writes features_throughput[_DEVICE][_quick].json and .png.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import matplotlib as mpl
import torch
from ase import Atoms

from _common import add_common_arguments, machine_facts, reactive_molecules, sample, save
from selectron.features import ActivationFeatures, EnergyNTKFeatures
from selectron.potentials import MacePotential
from selectron.potentials.mace_files import load_mace

mpl.use("Agg")
import matplotlib.pyplot as plt

SEED = 0
DIM = 512
AIMS = {"activation": 0.6, "energy NTK": 1.5}
BASELINES = ("mace-torch energy + forces", "selectron energy + forces")
LOOP = "loop of autograd"


def batched(structures: list[Atoms], size: int) -> list[list[Atoms]]:
    """Runs of ``size``."""
    return [structures[i : i + size] for i in range(0, len(structures), size)]


def tasks(potential: MacePotential, plain: torch.nn.Module, structures: list[Atoms], size: int) -> dict[str, Any]:
    """What is measured, by name, each a function without arguments."""
    activation, ntk = ActivationFeatures(potential), EnergyNTKFeatures(potential, dim=DIM, seed=SEED)

    def stock() -> None:
        for part in batched(structures, size):
            plain(potential.inputs(potential.batch(part)), compute_force=True)

    def fast() -> None:
        for part in batched(structures, size):
            potential.evaluate(potential.batch(part))

    def rows(features: ActivationFeatures | EnergyNTKFeatures) -> Callable[[], None]:
        def run() -> None:
            for part in batched(structures, size):
                features.rows(part)

        return run

    return {
        BASELINES[0]: stock,
        BASELINES[1]: fast,
        "activation": rows(activation),
        "energy NTK": rows(ntk),
        "energy NTK, last layer": rows(EnergyNTKFeatures(potential, parameters="last-layer")),
    }


def loop(potential: MacePotential, plain: torch.nn.Module, structures: list[Atoms]) -> Callable[[], None]:
    """∂E/∂θ of each structure by itself, unsketched."""
    parameters = list(plain.parameters())

    def run() -> None:
        for parameter in parameters:
            parameter.requires_grad_(True)
        for atoms in structures:
            energy = plain(potential.inputs(potential.batch([atoms])), compute_force=False)["energy"].sum()
            found = torch.autograd.grad(energy, parameters, allow_unused=True)
            torch.cat([g.flatten() for g in found if g is not None])
        for parameter in parameters:
            parameter.requires_grad_(False)

    return run


def measured(function: Callable[[], None], n: int, device: str) -> dict[str, float]:
    """Seconds a structure: wall clock and process CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return {"wall_s": (time.perf_counter() - wall) / n, "cpu_s": (time.process_time() - cpu) / n}


def summary(raw: dict[str, list[dict[str, float]]], clock: str) -> dict[str, Any]:
    """Median, quartiles, structures a second, and the ratio to each baseline: the median of the ratios within each repeat."""
    results: dict[str, Any] = {}
    for name, timings in raw.items():
        seconds = [timing[clock] for timing in timings]
        low, _, high = quantiles(seconds, n=4, method="inclusive")
        results[name] = {
            "median_ms": 1e3 * median(seconds),
            "quartiles_ms": [1e3 * low, 1e3 * high],
            "structures_per_s": 1.0 / median(seconds),
            "ratio": {
                baseline: median(t[clock] / b[clock] for t, b in zip(timings, raw[baseline], strict=True))
                for baseline in BASELINES
            },
        }
    return results


def draw(results: dict[str, Any], title: str, path: Path) -> None:
    """Time a structure as bars, quartiles as error bars, both ratios beside them."""
    figure, axes = plt.subplots(figsize=(8.0, 3.6), layout="constrained")
    for position, (name, result) in enumerate(results.items()):
        centre = result["median_ms"]
        error = [[centre - result["quartiles_ms"][0]], [result["quartiles_ms"][1] - centre]]
        color = "tab:gray" if name in BASELINES or name == LOOP else "tab:blue"
        axes.barh(position, centre, xerr=error, color=color, height=0.7, error_kw={"linewidth": 1})
        ratios = " / ".join(f"{result['ratio'][baseline]:.2f}" for baseline in BASELINES)
        axes.text(result["quartiles_ms"][1], position, f"  {ratios}", va="center", fontsize=8)
    axes.set_yticks(range(len(results)), list(results))
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set_xlabel("time a structure (ms); beside the bars: ratio to the first bar / to the second")
    axes.set_title(title, fontsize=10)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure, print, write the result file, draw the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else None, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add_common_arguments(parser)
    parser.set_defaults(threads=1)
    parser.add_argument("--model", type=Path, help="a .model file instead of MACE-OFF23-small")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--structures", type=int, default=128)
    parser.add_argument("--loop-structures", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.structures, arguments.loop_structures, arguments.repeats = 32, 4, 2
    torch.set_num_threads(arguments.threads)
    device = arguments.device
    model = arguments.model or arguments.shared / "models" / "MACE-OFF23_small.model"
    structures = sample(reactive_molecules(arguments.shared), arguments.structures, SEED)
    potential = MacePotential(load_mace(model), name=model.stem, device=device)
    plain = load_mace(model).to(potential.device, potential.dtype).eval().requires_grad_(False)

    load_at_start = list(os.getloadavg())
    work = tasks(potential, plain, structures, arguments.batch_size)
    few = sample(structures, arguments.loop_structures, SEED)
    counts = dict.fromkeys(work, len(structures)) | {LOOP: len(few)}
    work[LOOP] = loop(potential, plain, few)
    for function in work.values():  # TorchScript compiles in the first calls, sketches are drawn once
        for _ in range(2):
            measured(function, 1, device)
    raw: dict[str, list[dict[str, float]]] = {name: [] for name in work}
    for repeat in range(arguments.repeats):
        for name, function in work.items():
            raw[name].append(measured(function, counts[name], device))
        print(f"repeat {repeat + 1} of {arguments.repeats}", flush=True)

    clock = "wall_s" if device.startswith("cuda") else "cpu_s"
    results = summary(raw, clock)
    for name, result in results.items():
        ratios = ", ".join(f"{ratio:.2f} of {baseline}" for baseline, ratio in result["ratio"].items())
        print(f"{name}: {result['median_ms']:.2f} ms, {result['structures_per_s']:.0f} structures a second, {ratios}")
    content = {
        "settings": {
            "model": model.name,
            "structures": "t1xlike_rdb7_newtonnet.xyz, oracle_dis_fmax < 0.3, at random",
            "n_structures": len(structures),
            "mean_atoms": sum(map(len, structures)) / len(structures),
            "n_loop_structures": len(few),
            "batch_size": arguments.batch_size,
            "repeats": arguments.repeats,
            "dim": DIM,
            "dtype": "float32",
            "seed": SEED,
            "clock": {"wall_s": "wall clock", "cpu_s": "process CPU time"}[clock],
        },
        "machine": machine_facts(device)
        | {"load_average_at_start": load_at_start, "load_average_at_end": list(os.getloadavg())},
        "aims": AIMS,
        "aims_met": {
            name: {baseline: results[name]["ratio"][baseline] <= aim for baseline in BASELINES}
            for name, aim in AIMS.items()
        },
        "results": results,
        "raw": raw,
    }
    stem = "features_throughput"
    stem += f"_{device.split(':')[0]}" if device.startswith("cuda") else ""
    stem += f"_{arguments.threads}_threads" if arguments.threads != 1 else ""
    stem += "_quick" if arguments.quick else ""
    save(arguments.output, stem, content)
    where = (
        content["machine"]["device"]
        if device.startswith("cuda")
        else f"{arguments.threads} CPU thread{'s' * (arguments.threads > 1)}"
    )
    size = content["settings"]["mean_atoms"]
    title = f"{model.stem}, {len(structures)} molecules of {size:.1f} atoms, batches of {arguments.batch_size}, {where}"
    draw(results, title, arguments.output / f"{stem}.png")


if __name__ == "__main__":
    main()
