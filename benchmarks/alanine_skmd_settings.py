"""How far SKMD gets on alanine dipeptide, by form, amplitude and timestep: what alanine_dipeptide.py runs.

    python benchmarks/alanine_skmd_settings.py [--seeds 0 1] [--settings NAME ...]

Each run is 60 journeys of 100 steps of 20 particles with the surrogate of alanine_dipeptide.py before any fine-tuning: visited
Ramachandran bins, oracle energies above the minimum, largest forces, paths that broke, and steps whose drift was cut to the
limit. Beside SKMD, Langevin dynamics with as many steps, and SKMD with a kernel of amplitude 0.001: what its thermostat does
without the kernel. Writes ``alanine_skmd_settings.json`` after each run, goes on where a killed one ended, prints a table.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from _alanine_models import angles, make_tests, molecule, oracle, surrogate, with_labels
from _alanine_round import Bench, Method, run_options
from _common import add_common_arguments, machine_facts, write_json
from alanine_dipeptide import FORMS, begun
from selectron.features import default_cache
from selectron.potentials import load_potential
from selectron.report.ramachandran import find_backbone, ramachandran_coverage
from selectron.sampling.frames import Ended, Progress
from selectron.sampling.options import SampleOptions, sample_options
from selectron.sampling.run import run_sampling

FORM = FORMS["night"]._replace(journeys=60, journey_steps=100)


class Setting(NamedTuple):
    """A sampler of the study; ``steps`` each path, ``alignment`` of the molecules under the kernel."""

    method: Method
    steps: int = FORM.journey_steps
    alignment: str = "none"


def _skmd(equations: str, amplitude: float, timestep_fs: float, **more: Any) -> Setting:
    return Setting(Method("skmd", 50, "fps", timestep_fs, equations, amplitude), **more)


SETTINGS = {
    "Langevin, 300 K": Setting(Method("langevin", 300, "fps")),
    "Langevin, 700 K": Setting(Method("langevin", 700, "fps")),
    "mean form, amplitude 1, 0.3 fs": _skmd("mean", 1, 0.3),
    "mean form, amplitude 10, 0.3 fs": _skmd("mean", 10, 0.3),
    "full form, no kernel, 0.1 fs": _skmd("full", 0.001, 0.1),
    "full form, amplitude 1, 0.1 fs": _skmd("full", 1, 0.1),
    "full form, amplitude 5, 0.1 fs": _skmd("full", 5, 0.1),
    "full form, amplitude 10, 0.1 fs": _skmd("full", 10, 0.1),
    "full form, amplitude 30, 0.1 fs": _skmd("full", 30, 0.1),
    "full form, amplitude 10, 0.05 fs": _skmd("full", 10, 0.05, steps=200),
    "full form, amplitude 10, 0.1 fs, aligned": _skmd("full", 10, 0.1, alignment="kabsch"),
}


def options_of(setting: Setting, seed: int) -> SampleOptions:
    """What ``selectron sample`` would be told."""
    form = FORM._replace(journey_steps=setting.steps)
    told = run_options(setting.method, form, seed).model_dump(mode="json", exclude_none=True, exclude_unset=True)
    if setting.method.sampler == "skmd":
        told["kernel"]["alignment"] = setting.alignment
    return sample_options(told)


def measured(setting: Setting, bench: Bench, starts: list[Any], seed: int) -> dict[str, Any]:
    """One run: where it got."""
    broken: list[Ended] = []
    shortened = 0

    def told(progress: Progress) -> None:
        nonlocal shortened
        shortened = progress.tally.shortened

    began = time.process_time()
    potential = load_potential(bench.surrogate, device=bench.device)
    frames = run_sampling(potential, starts, options_of(setting, seed), on_step=told, on_ended=broken.append)
    ends = [frame.atoms for frame in frames]
    core_s = time.process_time() - began
    labelled = with_labels(ends, bench.oracle)
    found = angles(ends, bench.backbone)
    above = np.array([atoms.get_potential_energy() for atoms in labelled]) - bench.minimum_eV
    forces = np.array([np.abs(atoms.get_forces()).max() for atoms in labelled])
    return {
        "steps": FORM.journeys * setting.steps,
        "shortened_steps": shortened,
        "broken": [{"step": one.step, "reason": one.reason} for one in broken],
        "coverage": {f"{bins:g} degrees": ramachandran_coverage(*found.T, bin_degrees=bins) for bins in (10.0, 20.0)},
        "energy_above_minimum_eV": above.round(4).tolist(),
        "largest_force_eV_A": forces.round(3).tolist(),
        "phi_psi": found.round(1).tolist(),
        "core_s": round(core_s, 1),
    }


def main() -> None:
    """Runs what is asked for and not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser)
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--folder", type=Path, default=default_cache() / "alanine_dipeptide", help="work files")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    path, of_surrogate = surrogate(arguments.folder, arguments.shared, FORM.surrogate, arguments.device)
    tests, of_tests = make_tests(arguments.folder, arguments.shared, FORM.tests, arguments.device)
    bench = Bench(
        form=FORM,
        surrogate=path,
        oracle=oracle(arguments.shared, arguments.device),
        tests=tests,
        minimum_eV=of_tests["minimum_eV"],
        backbone=find_backbone(molecule(arguments.shared)),
        joint_selector="ipv",
        device=arguments.device,
        threads=arguments.threads,
    )
    output = arguments.output / "alanine_skmd_settings.json"
    content: dict[str, Any] = json.loads(output.read_text()) if output.exists() else {"runs": {}}
    if content.get("surrogate", of_surrogate["fingerprint"]) != of_surrogate["fingerprint"]:
        raise SystemExit(f"{output} has runs of another surrogate: give another --output.")
    content["question"] = "how far SKMD gets on alanine dipeptide, by form, amplitude and timestep"
    content["surrogate"] = of_surrogate["fingerprint"]
    content["machine"] = machine_facts(arguments.device)
    arguments.output.mkdir(parents=True, exist_ok=True)
    for seed in arguments.seeds:
        starts = begun(
            bench, arguments.shared, arguments.folder / f"settings-{of_surrogate['fingerprint']}-{seed}", seed
        )
        for name in arguments.settings:
            runs = content["runs"].setdefault(name, {})
            if str(seed) not in runs:
                runs[str(seed)] = measured(SETTINGS[name], bench, starts, seed)
                write_json(output, content)
            print(_line(name, seed, runs[str(seed)]), flush=True)


def _line(name: str, seed: int, run: dict[str, Any]) -> str:
    energies = run["energy_above_minimum_eV"] or [float("nan")]
    cut = 100 * run["shortened_steps"] / run["steps"]
    return (
        f"{name:42s} seed {seed}: bins {100 * run['coverage']['10 degrees']:5.2f} % of 10°, "
        f"{100 * run['coverage']['20 degrees']:5.2f} % of 20°; energy {np.median(energies):6.2f} eV, greatest "
        f"{np.max(energies):7.2f}; {len(run['broken']):3d} broken; {cut:4.1f} % of steps cut; {run['core_s']:5.0f} s"
    )


if __name__ == "__main__":
    main()
