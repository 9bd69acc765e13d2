"""What a step of each sampler costs, in steps of Langevin dynamics with the same model, and what batching replicas brings.

    python benchmarks/sampler_cost.py [--quick] [--threads 2] [--device cpu] [--case ethanol dipeptide crystal]

Ethanol and alanine dipeptide with the embedded model, 64 atoms of silicon with MACE-MP-0-small (from the shared folder).
All samplers take turns, a few steps each; on the CPU processor time (of all threads) is what counts, so that what else
the machine does changes little; the ratio is that of medians. A Jacobian is what an SKMD journey costs beyond its
steps: it is measured by itself and spread over a journey of 500 steps (the paper's).

Throughput: 32 replicas of Langevin dynamics in one batch against ASE's Langevin, one replica, with mace-torch's own
calculator and with our potential behind ASE's interface. Writes ``sampler_cost.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.io import read
from ase.md.langevin import Langevin

from _common import add_common_arguments, machine_facts, save
from selectron.potentials import load_potential
from selectron.potentials.base import Potential
from selectron.potentials.load import model_file
from selectron.sampling import (
    CommitteeField,
    NodeFeatures,
    Projected,
    Sampler,
    SteinKernel,
    Stepping,
    Unbiased,
    Watch,
    WellTemperedMetadynamics,
    brownian,
    brownian_step_size,
    fixed_steps,
    langevin,
    make_system,
    skmd,
    thermal_energy_eV,
    uncertainty_driven,
)

PARTICLES = 30
REPLICAS = 32
JOURNEY = 500
SEED = 3


class Case(NamedTuple):
    """A structure, its model's name or path, and how many descriptor components are kept in the projected row."""

    atoms: Atoms
    model: str
    projected: int
    whole: bool = True
    """Whether an ensemble with the whole descriptor is made: its first Jacobians take minutes for a crystal."""


def cases(shared: Path) -> dict[str, Case]:
    """The three systems; those whose files are missing are left out."""
    found = {"ethanol": Case(molecule("CH3CH2OH"), "embedded", 32)}
    dipeptide = shared / "data" / "alanine_dipeptide_vacuum.xyz"
    if dipeptide.exists():
        found["dipeptide"] = Case(read(dipeptide), "embedded", 32)
    silicon = shared / "models" / "mace_mp_small.model"
    if silicon.exists():
        found["crystal"] = Case(bulk("Si", cubic=True) * (2, 2, 2), str(silicon), 32, whole=False)
    return found


def rattled(atoms: Atoms, count: int, size: float = 0.03) -> list[Atoms]:
    """``count`` configurations near ``atoms``."""
    copies = []
    for index in range(count):
        copy = atoms.copy()
        copy.rattle(size, seed=index)
        copies.append(copy)
    return copies


def samplers(potential: Potential, case: Case, quick: bool) -> dict[str, Callable[[], Sampler]]:
    """What takes turns, by name."""
    kT = thermal_energy_eV(50.0)
    epsilon = brownian_step_size(0.1, 75.0)
    stepping = Stepping(kT, epsilon)
    never = Watch((fixed_steps(10**9),))
    atoms = case.atoms
    particles = 8 if quick else PARTICLES
    one = rattled(atoms, 1)
    ensemble = rattled(atoms, particles)
    plain = make_system(potential, one)

    def stein(descriptor: Any, **options: Any) -> Sampler:
        system = make_system(potential, ensemble, descriptor=descriptor)
        return skmd(system, particles=particles, stepping=stepping, seed=SEED, watch=never, **options)

    described = make_system(potential, one, descriptor=NodeFeatures())
    second = load_potential(case.model, dtype="float32")
    made: dict[str, Callable[[], Sampler]] = {
        "langevin": lambda: langevin(
            Unbiased(plain), temperature_K=300.0, timestep_fs=0.5, damping_time_fs=100.0, seed=SEED
        ),
        "brownian": lambda: brownian(Unbiased(plain), kT_eV=kT, step_size=epsilon, seed=SEED),
        f"skmd, {case.projected} random directions": lambda: stein(Projected(NodeFeatures(), case.projected)),
        "udd, committee of 2": lambda: brownian(
            CommitteeField(plain, [potential, second], uncertainty_driven(height_eV=1.0, width_eV=0.1)),
            kT_eV=kT,
            step_size=epsilon,
            seed=SEED,
        ),
        "metadynamics": lambda: brownian(
            WellTemperedMetadynamics(described, kT_eV=kT, height_eV=0.01, bias_factor=10.0, every=5),
            kT_eV=kT,
            step_size=epsilon,
            seed=SEED,
        ),
    }
    if case.whole:
        made["skmd"] = lambda: stein(NodeFeatures())
        made["skmd, kabsch"] = lambda: stein(NodeFeatures(), stein=SteinKernel(alignment=_kabsch(atoms)))
    return made


def _kabsch(atoms: Atoms) -> Any:
    from selectron.sampling.alignment import kabsch

    return kabsch(torch.from_numpy(atoms.get_masses()))


def taking_turns(made: dict[str, Sampler], rounds: int, steps: int) -> dict[str, list[float]]:
    """Seconds a step of each sampler, one number a round."""
    states = {name: sampler.init() for name, sampler in made.items()}
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for number in range(rounds + 1):
        for name, sampler in made.items():
            state = states[name]
            began = _now()
            for _ in range(steps):
                state, _ = sampler.step(state)
            took = (_now() - began) / steps
            states[name] = state
            if number:  # the first round warms up
                seconds[name].append(took)
    return seconds


def _now() -> float:
    """Processor time on the CPU, which what else runs there does not change; wall clock where there is a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def jacobian_seconds(potential: Potential, case: Case, descriptor: Any) -> float:
    """One Jacobian of one configuration."""
    from selectron.sampling.descriptors import jacobians

    batch = potential.batch([case.atoms])
    jacobians(potential, descriptor, batch)
    began = _now()
    jacobians(potential, descriptor, batch)
    return _now() - began


class Ours(Calculator):
    """Our potential behind ASE's interface, one structure a call."""

    implemented_properties = ("energy", "forces")

    def __init__(self, potential: Potential) -> None:
        super().__init__()
        self.potential = potential

    def calculate(self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes) -> None:
        """Energy and forces."""
        super().calculate(atoms, properties, system_changes)
        found = self.potential.evaluate(self.potential.batch([self.atoms]))
        assert found.forces is not None
        self.results = {"energy": float(found.energies[0]), "forces": found.forces.double().cpu().numpy()}


def throughput(potential: Potential, case: Case, device: str, rounds: int, steps: int) -> dict[str, Any]:
    """Replica steps a second: one batch of replicas against ASE, taking turns."""
    from mace.calculators import MACECalculator

    calculators = {
        "ase, mace-torch": MACECalculator(
            model_paths=str(model_file(case.model)), device=device, default_dtype="float32"
        ),
        "ase, our potential": Ours(potential),
    }
    dynamics = {}
    for name, calculator in calculators.items():
        atoms = rattled(case.atoms, 1)[0]
        atoms.calc = calculator
        dynamics[name] = Langevin(
            atoms, 0.5 * units.fs, temperature_K=300.0, friction=0.01 / units.fs, rng=np.random.default_rng(SEED)
        )
    batched = {
        f"batch of {count}": langevin(
            Unbiased(make_system(potential, rattled(case.atoms, count))),
            temperature_K=300.0,
            timestep_fs=0.5,
            damping_time_fs=100.0,
            seed=SEED,
        )
        for count in (1, REPLICAS)
    }
    states = {name: sampler.init() for name, sampler in batched.items()}
    rates: dict[str, list[float]] = {name: [] for name in [*dynamics, *batched]}
    for number in range(rounds + 1):
        for name, runner in dynamics.items():
            began = _now()
            runner.run(steps)
            if number:
                rates[name].append(steps / (_now() - began))
        for name, sampler in batched.items():
            state, replicas = states[name], sampler.system.n_structures
            taken = max(2, steps // (4 if replicas > 1 else 1))
            began = _now()
            for _ in range(taken):
                state, _ = sampler.step(state)
            if number:
                rates[name].append(replicas * taken / (_now() - began))
            states[name] = state
    return {"replica_steps_per_s": rates, "median": {name: median(values) for name, values in rates.items()}}


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser)
    parser.add_argument("--case", nargs="+", choices=("ethanol", "dipeptide", "crystal"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rounds, steps = (3, 5) if arguments.quick else (15, 10)
    content: dict[str, Any] = {"machine": machine_facts(arguments.device), "particles": PARTICLES, "cases": {}}
    content["clock"] = "wall clock" if torch.cuda.is_available() else "processor time"
    for name, case in cases(arguments.shared).items():
        if arguments.case and name not in arguments.case:
            continue
        potential = load_potential(case.model, device=arguments.device)
        made = {label: make() for label, make in samplers(potential, case, arguments.quick).items()}
        seconds = taking_turns(made, rounds, steps)
        middle = {label: median(values) for label, values in seconds.items()}
        ratio = {label: value / middle["langevin"] for label, value in middle.items()}
        jacobian = {
            "skmd": jacobian_seconds(potential, case, NodeFeatures()),
            f"skmd, {case.projected} random directions": jacobian_seconds(
                potential, case, Projected(NodeFeatures(), case.projected)
            ),
        }
        # the step itself is as dear with the whole descriptor as in a projection, but for a product with J
        steps_of = {label: middle.get(label, middle[f"skmd, {case.projected} random directions"]) for label in jacobian}
        whole = {label: (steps_of[label] + spent / JOURNEY) / middle["langevin"] for label, spent in jacobian.items()}
        print(
            f"{name} ({len(case.atoms)} atoms, {potential.name}): a Langevin step takes {1e3 * middle['langevin']:.2f} ms"
        )
        for label, value in ratio.items():
            more = f"   with its Jacobian every {JOURNEY} steps {whole[label]:.2f}" if label in whole else ""
            print(f"    {label:32s} {value:5.2f}{more}")
        entry: dict[str, Any] = {
            "atoms": len(case.atoms),
            "model": potential.name,
            "seconds_per_step": seconds,
            "ratio_to_langevin": ratio,
            "jacobian_s": jacobian,
            "ratio_with_jacobian": whole,
        }
        rates = throughput(potential, case, arguments.device, max(2, rounds // 3), 4 if name == "crystal" else 20)
        entry["throughput"] = rates
        base = rates["median"]["ase, mace-torch"]
        for label, value in rates["median"].items():
            print(f"    {label:32s} {value:7.1f} replica steps/s, {value / base:5.1f} times ASE with mace-torch")
        content["cases"][name] = entry
        label = "sampler_cost_quick" if arguments.quick else "sampler_cost"
        known = arguments.output / f"{label}.json"
        before = json.loads(known.read_text())["cases"] if known.exists() else {}
        save(arguments.output, label, {**content, "cases": {**before, **content["cases"]}})


if __name__ == "__main__":
    main()
