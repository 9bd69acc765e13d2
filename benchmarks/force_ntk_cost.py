"""What force rows cost, in batched energy-and-force evaluations of the same structures, in one run.

    python benchmarks/force_ntk_cost.py [--quick] [--device cuda] [--case molecules|surfaces]

Exact and probed force rows, joint rows and energy rows, against one evaluation by selectron's own MACE layers and one by
plain mace-torch; a loop over force components as it is usually written (reverse over reverse, one structure and one component
at a time, plain mace-torch); and a committee of five: five evaluations, and the training of four more models, in the unit of
one evaluation of the pool, from the time of a training step measured here. Repeats are interleaved. Times are those of the
process (time.process_time) with one thread on the CPU, wall clock on a GPU. Writes force_ntk_cost_CASE.json.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from ase import Atoms

from _common import add_common_arguments, machine_facts, reactive_molecules, sample, save, slabs
from selectron.features import EnergyNTKFeatures, ForceNTKFeatures, JointNTKFeatures
from selectron.potentials import MacePotential
from selectron.potentials.mace_files import load_mace

EPOCHS, TRAINING_SET = 200, 1000
"""A committee member's training: epochs over so many structures, a modest assumption."""


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_arguments(parser)
    parser.add_argument("--case", choices=["molecules", "surfaces"], default="molecules")
    parser.add_argument("--structures", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--only", help="run this task once and print the peak memory, GiB: how the main run measures it"
    )
    arguments = parser.parse_args()
    on_surfaces, on_gpu = arguments.case == "surfaces", arguments.device.startswith("cuda")
    torch.set_num_threads(1 if not on_gpu else arguments.threads)
    frames = (slabs if on_surfaces else reactive_molecules)(arguments.shared)
    model = "mace_mp_small.model" if on_surfaces else "MACE-OFF23_small.model"
    count = arguments.structures or (4 if arguments.quick else (8 if on_surfaces else 32))
    structures = sample([a for a in frames if len(a) <= 60], count, 0)
    potential = MacePotential(load_mace(arguments.shared / "models" / model), device=arguments.device)
    batch = potential.batch(structures)
    few = structures[: max(1, count // 8)]  # exact rows of these; a structure's cost does not depend on the others

    def stock() -> None:
        potential.model(potential.inputs(batch), compute_force=True)

    tasks: dict[str, tuple[Callable[[], Any], list[Atoms]]] = {
        "energy and forces": (lambda: potential.evaluate(batch), structures),
        "energy and forces, plain mace-torch": (stock, structures),
        "energy NTK": (rows(EnergyNTKFeatures(potential), structures), structures),
    }
    for p in (1, 4, 8):
        tasks[f"force NTK, {p} probes"] = (rows(ForceNTKFeatures(potential, probes=p), structures), structures)
    tasks["joint NTK, 4 probes"] = (rows(JointNTKFeatures(potential, probes=4), structures), structures)
    tasks["force NTK, exact"] = (rows(ForceNTKFeatures(potential, probes="exact"), few), few)
    tasks["training step, plain mace-torch"] = (lambda: training_step(potential, batch), structures)
    if arguments.only:
        if arguments.only in tasks:
            tasks[arguments.only][0]()
        print(peak_memory(on_gpu))
        return
    clock = time.perf_counter if on_gpu else time.process_time
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for repeat in range(arguments.repeats + 1):
        for name, (task, on) in tasks.items():
            if name == "force NTK, exact" and repeat > 1:
                continue
            began = clock()
            task()
            if on_gpu:
                torch.cuda.synchronize()
            if repeat or name == "force NTK, exact":  # the first is a warm-up
                seconds[name].append((clock() - began) / sum(len(a) for a in on) * sum(len(a) for a in structures))
    sizes = [len(a) for a in structures]
    components, began = 6, clock()
    component_loop(potential, few[0], components)
    per_component = (clock() - began) / components / len(few[0])
    loop = per_component * sum(3 * n * n for n in sizes)
    unit, plain = median(seconds["energy and forces"]), median(seconds["energy and forces, plain mace-torch"])
    ratios = {
        name: {"of ours": median(s) / unit, "of plain mace-torch": median(s) / plain} for name, s in seconds.items()
    }
    ratios["force NTK, loop over components"] = {"of ours": loop / unit, "of plain mace-torch": loop / plain}
    step = median(seconds["training step, plain mace-torch"])
    training = 4 * EPOCHS * TRAINING_SET / count * step
    ratios["committee of five, inference alone"] = {"of ours": 5.0, "of plain mace-torch": 5.0}
    memory = {task: memory_of(task) for task in ("nothing", *tasks)}
    name = f"force_ntk_cost_{arguments.case}{'_gpu' if on_gpu else ''}{'_quick' if arguments.quick else ''}"
    save(
        arguments.output,
        name,
        {
            "what": __doc__.split("\n")[0],
            "model": model,
            "structures": count,
            "mean atoms": sum(sizes) / count,
            "machine": machine_facts(arguments.device),
            "clock": "wall" if on_gpu else "process time, one thread",
            "peak memory of a process that does it once, GiB": memory,
            "ratios": ratios,
            "seconds for all structures": seconds,
            "committee": {
                "training of four members, seconds": training,
                "assumed": f"{EPOCHS} epochs over {TRAINING_SET} structures each",
                "training in joint NTK (4 probes) screenings of a million structures": training
                / (median(seconds["joint NTK, 4 probes"]) / count * 1e6),
            },
        },
    )
    for label, ratio in ratios.items():
        times = f"{ratio['of ours']:8.2f} of ours {ratio['of plain mace-torch']:8.2f} of plain mace-torch"
        print(f"{label:40} {times} {memory.get(label, float('nan')):6.2f} GiB")


def peak_memory(on_gpu: bool) -> float:
    """Of this process so far, GiB."""
    if on_gpu:
        return torch.cuda.max_memory_allocated() / 2**30
    # not ru_maxrss, which a process inherits from the one that starts it
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**20


def memory_of(task: str) -> float:
    """Peak memory of a fresh process that does the task once, with the arguments of this one; loading the model counts."""
    command = [sys.executable, "-W", "ignore", __file__, *sys.argv[1:], "--only", task]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def rows(features: Any, structures: list[Atoms]) -> Callable[[], Any]:
    """Rows from graphs to features: neighbour lists are part of it."""
    return lambda: features.rows(structures)


def training_step(potential: MacePotential, batch: Any) -> None:
    """Energy and force loss and its gradient, as training takes it."""
    parameters = list(potential.model.parameters())
    for parameter in parameters:
        parameter.requires_grad_(True)
    out = potential.model(potential.inputs(batch), compute_force=True, training=True)
    loss = out["energy"].square().sum() + out["forces"].square().sum()
    torch.autograd.grad(loss, parameters, allow_unused=True)
    for parameter in parameters:
        parameter.requires_grad_(False)


def component_loop(potential: MacePotential, atoms: Atoms, components: int) -> None:
    """∂F_a/∂θ of the first components of one structure, one backward pass each through the graph of the forces."""
    parameters = list(potential.model.parameters())
    for parameter in parameters:
        parameter.requires_grad_(True)
    inputs = potential.inputs(potential.batch([atoms]))
    forces = potential.model(inputs, compute_force=True, training=True)["forces"].flatten()
    for component in range(components):
        torch.autograd.grad(forces[component], parameters, retain_graph=True, allow_unused=True)
    for parameter in parameters:
        parameter.requires_grad_(False)


if __name__ == "__main__":
    main()
