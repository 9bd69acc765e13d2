"""The SKMD paper's fine-tuning study (section 5.2, appendix E.2): whose structures improve a small MACE on alanine dipeptide?

    python benchmarks/alanine_dipeptide.py --size reduced [--methods NAME ...] [--seeds 0 1 2] [--join OTHER.json] [--draw]

Oracle: MACE-OFF23-small. Surrogate: a MACE of 32 invariant channels, fitted to a thousand oracle-labelled organic molecules. In
each iteration a sampler that runs on the surrogate as fine-tuned so far proposes the ends of short paths, a selector picks a
part of them, the oracle labels these, and the initial surrogate is fine-tuned on all picks so far. Samplers: Langevin
dynamics at 300 K and 700 K, and SKMD in the full form (``skmd-mean``: as the paper's equation 5a is written). Selectors:
farthest points of unit descriptors, as in the paper, and with SKMD also the joint energy-force NTK. Every method has the same
starts, evaluations, candidates and labels.

Writes ``alanine_dipeptide.json`` (forms other than the full one have their name behind it) after each iteration; the same
command goes on where a killed one ended. Models and structures stay in ``--folder``. ``--quick`` takes a few minutes.
Seeds that another process or machine ran with ``--output`` elsewhere come in with ``--join``: another machine's surrogate and
test sets are the same recipe rounded differently, and the file says which seeds have them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from ase.io import read

from _alanine_models import ORACLE, Surrogate, TestSets, make_tests, molecule, oracle, snapshots, surrogate
from _alanine_round import COMPARED, METHODS, Bench, Form, learned, run_options, tested
from _common import add_common_arguments, machine_facts, write_json
from selectron.acquisition import SELECTORS
from selectron.errors import SelectronError
from selectron.features import default_cache
from selectron.potentials import load_potential
from selectron.potentials.mace import MacePotential
from selectron.report.ramachandran import find_backbone
from selectron.structures.writing import write_extxyz

FITTED = Surrogate(structures=1000, first_epochs=40, second_epochs=15)
TESTS = TestSets(300, 90, 150, 10, 1500, 50, 500, 1900, directions=64)
FORMS = {
    "quick": Form(
        surrogate=Surrogate(structures=240, first_epochs=24, second_epochs=6, batch_size=5),
        tests=TestSets(24, 12, 20, 5, 60, 10, 20, 48, particles=6, basins=2, directions=16),
        iterations=2,
        journeys=12,
        journey_steps=20,
        picks=6,
        epochs=6,
        burn_in_steps=60,
        snapshot_every=10,
        seeds=1,
        particles=6,
    ),
    "reduced": Form(
        surrogate=FITTED,
        tests=TESTS,
        iterations=3,
        journeys=40,
        journey_steps=100,
        picks=15,
        epochs=40,
        burn_in_steps=500,
        snapshot_every=50,
        seeds=3,
        particles=10,
        directions=32,
    ),
    "night": Form(
        surrogate=FITTED,
        tests=TESTS,
        iterations=6,
        journeys=120,
        journey_steps=200,
        picks=40,
        epochs=80,
        burn_in_steps=2000,
        snapshot_every=100,
        seeds=3,
        particles=20,
        directions=32,
    ),
    "full": Form(
        surrogate=FITTED,
        tests=TestSets(300, 300, 500, 50, 4000, 200, 2000, 7600),
        iterations=10,
        journeys=300,
        journey_steps=500,
        picks=100,
        epochs=100,
        burn_in_steps=4000,
        snapshot_every=200,
        seeds=3,
    ),
}
ASSUMED = {
    "kernel amplitude": "10, by alanine_skmd_settings.py; the paper's number is not in the text that we have",
    "equation 5a": "the full form: own force in full, the kernel's bias a mean; with 1/M of the force SKMD hardly moves",
    "LoRA scaling and batch size": "1 and 10, as in the preset paper-lora; not in the text that we have",
    "burn-in": "300 K, 1 fs, damping time 0.1 ps, the same particles for all methods of a seed",
    "validation": "a tenth of the picks, which chooses the epoch",
    "descriptor normalisation": "unit Euclidean length; the norm's letter is not in the text that we have",
}


def form_named(arguments: argparse.Namespace) -> tuple[str, Form]:
    """The form that the command line asks for."""
    name = "quick" if arguments.quick else arguments.size
    return name, FORMS[name]


def prepared(arguments: argparse.Namespace, form: Form) -> tuple[Bench, dict[str, Any], dict[str, Any]]:
    """Models and test sets, and what is known of them."""
    shared, device, folder = arguments.shared, arguments.device, arguments.folder
    path, of_surrogate = surrogate(folder, shared, form.surrogate, device)
    tests, of_tests = make_tests(folder, shared, form.tests, device)
    bench = Bench(
        form=form,
        surrogate=path,
        oracle=oracle(shared, device),
        tests=tests,
        minimum_eV=of_tests["minimum_eV"],
        backbone=find_backbone(molecule(shared)),
        joint_selector=arguments.joint_selector,
        device=device,
        threads=arguments.threads,
    )
    return bench, {**of_surrogate, "test_errors": tested(path, bench)}, of_tests


def begun(bench: Bench, shared: Path, folder: Path, seed: int) -> list[Any]:
    """The particles that every method of a seed begins with: dynamics of the surrogate at 300 K."""
    path = folder / "start.extxyz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        potential = load_potential(bench.surrogate, device=bench.device)
        assert isinstance(potential, MacePotential)
        write_extxyz(path, snapshots(potential, molecule(shared), bench.form, seed))
    return read(path, ":")


def known(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What the result file has already; refuses a file of other settings, which may have cost a night."""
    if not path.exists():
        return {"runs": {}}
    before: dict[str, Any] = json.loads(path.read_text())
    differing = _differing(before["settings"], json.loads(json.dumps(settings)))
    if differing:
        raise SystemExit(f"{path} has runs of other settings ({', '.join(differing)}): give another --output.")
    return before


def _differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return [key for key in other if one.get(key) != other[key]]


def join(path: Path, other: Path) -> None:
    """Takes the runs of ``other`` into the result file ``path``.

    All settings have to agree but the surrogate, which another processor rounds differently: there the recipe has to agree,
    and its errors to one per cent.
    """
    content, more = json.loads(path.read_text()), json.loads(other.read_text())
    differing = set(_differing(content["settings"], more["settings"])) - {"surrogate"}
    mine, its = content["surrogate"], more["surrogate"]
    errors = [
        (mine["held_out_errors"][key], its["held_out_errors"][key]) for key in ("energy_rmse_meV_atom", "force_rmse")
    ]
    if differing or mine["recipe"] != its["recipe"] or any(abs(a / b - 1) > 0.01 for a, b in errors):
        raise SystemExit(f"{other} has runs of other settings ({', '.join(sorted(differing)) or 'surrogate'}).")
    taken: dict[str, list[str]] = {}
    for method, seeds in more["runs"].items():
        for seed, entries in seeds.items():
            there = content["runs"].setdefault(method, {})
            if len(entries) > len(there.get(seed, [])):
                there[seed] = entries
                taken.setdefault(seed, []).append(method)
        content["runs"][method] = dict(sorted(content["runs"][method].items(), key=lambda item: int(item[0])))
    if its["fingerprint"] != mine["fingerprint"]:
        origin = {key: more[key] for key in ("machine", "surrogate", "tests")}
        content.setdefault("joined", []).append({"runs": taken, **origin})
    write_json(path, content)
    print("; ".join(f"seed {seed}: {', '.join(methods)}" for seed, methods in sorted(taken.items())))


def main() -> None:
    """Runs what is asked for and not there yet; draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser)
    parser.add_argument("--size", choices=list(FORMS), default="full")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=COMPARED)
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--joint-selector", choices=list(SELECTORS), default="ipv", help="on joint-NTK rows")
    parser.add_argument("--folder", type=Path, default=default_cache() / "alanine_dipeptide", help="work files")
    parser.add_argument(
        "--join", type=Path, nargs="+", default=[], help="result files of the same form to take in; then draw"
    )
    parser.add_argument("--draw", action="store_true", help="only draw what the result file holds")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    name, form = form_named(arguments)
    label = "alanine_dipeptide" + ("" if name == "full" else f"_{name}")
    path = arguments.output / f"{label}.json"
    for other in arguments.join:
        join(path, other)
    if not (arguments.draw or arguments.join):
        ran(arguments, name, form, path)
    from _alanine_figure import draw

    draw(json.loads(path.read_text()), arguments.output / f"{label}.png")


def settings_of(arguments: argparse.Namespace, form: Form, of_surrogate: dict[str, Any]) -> dict[str, Any]:
    """All that the runs of a result file have in common."""
    return {
        "form": {key: value for key, value in form._asdict().items() if key != "seeds"},
        "joint_selector": arguments.joint_selector,
        "oracle_sha256": hashlib.sha256((arguments.shared / "models" / ORACLE).read_bytes()).hexdigest(),
        "surrogate": of_surrogate["fingerprint"],
        "samplers": {
            method.sampling: run_options(method, form, 0).model_dump(
                mode="json", exclude_none=True, exclude={"seed", "udd", "hal", "metad", "pilot", "initial"}
            )
            for method in METHODS.values()
        },
    }


def run_folder(arguments: argparse.Namespace, name: str, settings: dict[str, Any], seed: int) -> Path:
    """Where the structures and models of a seed stay."""
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=4).hexdigest()
    return Path(arguments.folder) / f"{name}-{digest}" / f"seed{seed}"


def ran(arguments: argparse.Namespace, name: str, form: Form, path: Path) -> None:
    """Every method of every seed, seeds one after the other, so that a run that is cut short is balanced."""
    bench, of_surrogate, of_tests = prepared(arguments, form)
    settings = settings_of(arguments, form, of_surrogate)
    content: dict[str, Any] = {
        "question": "errors of a fine-tuned surrogate on alanine dipeptide against iterations of active learning",
        "size": name,
        "assumed": ASSUMED,
        "settings": settings,
        "machine": machine_facts(arguments.device),
        "surrogate": of_surrogate,
        "tests": of_tests,
    }
    content = known(path, settings) | content
    arguments.output.mkdir(parents=True, exist_ok=True)
    for seed in range(form.seeds) if arguments.seeds is None else arguments.seeds:
        work = run_folder(arguments, name, settings, seed)
        starts = begun(bench, arguments.shared, work, seed)
        for method in arguments.methods:
            if len(content["runs"].get(method, {}).get(str(seed), [])) == form.iterations:
                continue

            def written(entries: list[dict[str, Any]], method: str = method, seed: int = seed) -> None:
                content["runs"] = known(path, settings)["runs"]
                content["runs"].setdefault(method, {})[str(seed)] = list(entries)
                write_json(path, content)
                print(_line(method, seed, entries[-1]), flush=True)

            try:
                learned(work, method, seed, starts, bench, written)
            except SelectronError as error:
                print(f"{method}, seed {seed} ended: {error}", flush=True)
            _trim(work / method.replace(" ", "-"))


def _line(method: str, seed: int, entry: dict[str, Any]) -> str:
    first, second = entry["errors"]["skmd"], entry["errors"]["md"]
    seconds = [round(entry[part]["cost"]["seconds"]) for part in ("sampling", "selection", "training")]
    return (
        f"{method:17s} seed {seed} iteration {entry['iteration']:2d}: {entry['labels']:4d} labels, energy "
        f"{first['energy_rmse_meV_atom']:6.2f} {second['energy_rmse_meV_atom']:6.2f} meV/atom, force "
        f"{first['force_rmse']:.3f} {second['force_rmse']:.3f} eV/Å, coverage {entry['coverage']['10 degrees']['picks']:.3f}, "
        f"{len(entry['sampling']['broken'])} broken; {seconds} s"
    )


def _trim(folder: Path) -> None:
    """Removes what trainings read and wrote besides their models."""
    for leftover in folder.glob("iteration*/training/run/*.xyz"):
        os.unlink(leftover)


if __name__ == "__main__":
    main()
