"""A campaign in sampling mode on a crystal, through the command line: inputs, run, status, report and export.

Copper with 32 atoms, a small MACE fitted to effective-medium theory at 300 K, candidates by SKMD at 900 K, tests at 1200 K, on
a vacancy and on strained cells, against a twin with random picks among its own samples.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from ase import Atoms
from ase.io import read
from scipy.stats import t

from _common import ROOT, add_common_arguments, machine_facts, save
from _crystal import write_inputs, write_random_mace
from _crystal_figure import at_labels, draw
from selectron.campaign.history import read_campaign
from selectron.campaign.records import Measured, RoundRecord
from selectron.campaign.state import CampaignState

YAML = Path(__file__).parent / "crystal_campaign" / "campaign.yaml"
RECIPES: dict[str, dict[str, Any]] = {
    "default": {},
    # squared errors, which a few structures of very high energy rule
    "squares": {
        "loss": "squares",
        "final_rate": None,
        "ema": None,
        "energy_weight": 1000.0,
        "forces_weight": 100.0,
        "epochs": 12,
        "learning_rate": 0.002,
    },
}
"""What of the trainer's settings differs from those in the YAML."""
QUANTITIES = ("force_rmse_eV_A", "force_mae_eV_A", "energy_rmse_meV_atom", "energy_mae_meV_atom")


def command_line(*words: object, folder: Path) -> None:
    """Runs ``selectron`` with ``words`` in ``folder``."""
    subprocess.run([Path(sys.executable).with_name("selectron"), *map(str, words)], cwd=folder, check=True)


def make_inputs(folder: Path, *, seed: int, quick: bool, threads: int, recipe: str) -> None:
    """Fills ``folder`` with the YAML and all it names; inputs that are there stay."""
    if (folder / "copper.model").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    # a crystal's dynamics take five seeds of their own
    write_inputs(folder, train=10 if quick else 20, test=4 if quick else 10, seed=10 * seed)
    known = read(folder / "train.extxyz", ":")
    write_random_mace(folder / "random.model", known, channels=8 if quick else 16, seed=seed)
    settings = yaml.safe_load(YAML.read_text())
    settings["seed"] = seed
    settings["trainer"] |= {"threads": threads, **RECIPES[recipe]}
    if quick:
        settings["sampling"].update(particles=4, iterations=8, stopping=[{"kind": "fixed-steps", "steps": 15}])
        settings["sampling"]["initial"] = {"burn_in_steps": 40, "snapshot_every": 10}
        settings["trainer"]["epochs"] = 4
        settings["budget"] = {"labels": 4, "per_round": 2}
    (folder / "campaign.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    train = [
        "train",
        "--model",
        "random.model",
        "--train",
        "train.extxyz",
        "--references",
        "keep",
        "-o",
        "copper.model",
    ]
    # in so few steps absolute errors barely leave random parameters
    train += ["--loss", "squares", "--energy-weight", 1000, "--forces-weight", 100]
    train += ["--epochs", 40, "--lr", 0.01, "--batch-size", 5, "--threads", threads, "--seed", seed]
    command_line(*train, folder=folder)


def errors_by_kind(measured: Sequence[Measured], structures: list[Atoms]) -> dict[str, dict[str, list[float]]]:
    """Errors of each of the models ``measured`` on each kind of test structure: force RMSE, eV/Å, energy RMSE, meV an atom."""
    kinds = np.array([atoms.info["kind"] for atoms in structures])
    sizes = np.array([len(atoms) for atoms in structures])
    of_atoms = np.repeat(kinds, sizes)
    found: dict[str, dict[str, list[float]]] = {
        kind: {"force_rmse_eV_A": [], "energy_rmse_meV_atom": []} for kind in dict.fromkeys(kinds.tolist())
    }
    for one in measured:
        said = one.predictions()
        energies = (said.energy_eV - said.energy_label_eV) / sizes * 1000
        forces = said.forces - said.force_labels
        for kind, lists in found.items():
            lists["force_rmse_eV_A"].append(float(np.sqrt(np.mean(forces[of_atoms == kind] ** 2))))
            lists["energy_rmse_meV_atom"].append(float(np.sqrt(np.mean(energies[kinds == kind] ** 2))))
    return found


def of_round(one: RoundRecord) -> dict[str, Any]:
    """What was sampled and picked in a round, and how the training went."""
    sampled, training = one.sampled, one.training
    assert sampled is not None
    labels = [pick.structure.get_potential_energy() / pick.atoms for pick in one.picks if pick.labelled]
    return {
        "candidates": sampled.candidates,
        "broken": dict(Counter(reason for *_, reason in sampled.ended)),
        "label_eV_atom": labels,
        "failed_labels": sum(pick.labelled is False for pick in one.picks),
        "failed_training": training.failure if training else None,
        "shift_eV": training.references["shift_eV"] if training and training.references else None,
    }


def numbers(folder: Path) -> dict[str, Any]:
    """Learning curves, what was sampled and picked, and whether cells and stresses came through."""
    record = read_campaign(folder / "run")
    exported = read(folder / "exported" / "train.extxyz", ":")
    test = read(folder / "test.extxyz", ":")
    assert record.start is not None
    assert record.start.test is not None
    arms = {}
    for arm in record.arms:
        measured = [record.start.test] + [one.test for one in arm.rounds if one.test is not None]
        arms[arm.name] = {
            "labels": arm.curve(QUANTITIES[0])[0],
            **{name: arm.curve(name)[1] for name in QUANTITIES},
            "by_kind": errors_by_kind(measured, test),
            "rounds": [of_round(one) for one in arm.rounds],
            "stop": arm.stop,
        }
    with closing(CampaignState(folder / "run", read_only=True)) as state:
        trainer = state.fact("config")["trainer"]  # as it was run, whatever the defaults are by now
    return {
        "arms": arms,
        "trainer": {key: value for key, value in trainer.items() if key != "interpreter"},
        "savings": {name: saving.sentence for name, saving in record.savings.items()},
        "core_s": {name: cost.core_s for name, cost in record.costs.items()},
        "exported": {
            "structures": len(exported),
            "periodic": sum(bool(atoms.pbc.all()) for atoms in exported),
            "with_stress": sum("REF_stress" in atoms.info for atoms in exported),
        },
        "test_structures": len(test),
    }


def compare(campaigns: list[dict[str, Any]]) -> dict[str, Any]:
    """Selected over random errors as a geometric mean over seeds and rounds, and how far seeds scatter.

    A ratio below 1 is in favour of selection; ``low`` and ``high`` are its 95 % interval from the seeds' scatter (Student's t).
    """
    found = {}
    for quantity in QUANTITIES:
        logs = [
            float(np.mean(np.log(one["selected"][quantity][1:]) - np.log(_as_selected(one, quantity))))
            for one in (campaign["arms"] for campaign in campaigns)
        ]
        entry = {"by_seed": np.exp(logs).tolist(), "ratio": float(np.exp(np.mean(logs)))}
        if len(logs) > 1:
            half = float(t.ppf(0.975, len(logs) - 1) * np.std(logs, ddof=1) / len(logs) ** 0.5)
            entry |= {"low": entry["ratio"] * np.exp(-half), "high": entry["ratio"] * np.exp(half)}
        found[quantity] = entry
    return found


def _as_selected(arms: dict[str, Any], quantity: str) -> np.ndarray:
    """Errors of the random arm where the selected one was measured; a round may give fewer labels in one of them."""
    return at_labels(arms["random"], arms["selected"]["labels"][1:], quantity)


def play(folder: Path, *, seed: int, quick: bool, threads: int, recipe: str) -> dict[str, Any]:
    """One campaign in ``folder``, by the commands that a user would give, and its numbers."""
    make_inputs(folder, seed=seed, quick=quick, threads=threads, recipe=recipe)
    for words in (
        ("validate", "campaign.yaml"),
        ("run", "campaign.yaml", "-o", "run"),
        ("status", "run"),
        ("report", "run"),
        ("export", "run", "-o", "exported"),
    ):
        command_line(*words, folder=folder)
    return {"seed": seed, **numbers(folder)}


def main() -> None:
    """Runs a campaign a seed and writes their numbers."""
    parser = ArgumentParser(description=__doc__)
    add_common_arguments(parser)
    parser.add_argument("--seeds", type=int, help="how many campaigns, 3 by default (1 with --quick)")
    parser.add_argument("--recipe", choices=RECIPES, default="default", help="how the models are fine-tuned")
    parser.add_argument("--folder", type=Path, help="where the campaigns are kept; by default they are thrown away")
    given = parser.parse_args()
    seeds = given.seeds or (1 if given.quick else 3)
    name = "crystal_campaign" + "_quick" * given.quick + f"_{given.recipe}" * (given.recipe != "default")
    facts = {**machine_facts(given.device), "settings": YAML.relative_to(ROOT).as_posix(), "recipe": given.recipe}
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.folder or Path(temporary)).absolute()
        campaigns = []
        for seed in range(seeds):
            place = folder / f"seed{seed}"
            options = {"quick": given.quick, "threads": given.threads, "recipe": given.recipe}
            campaigns.append(play(place, seed=seed, **options))
            save(given.output, name, {**facts, "compared": compare(campaigns), "campaigns": campaigns})
        draw(campaigns, given.output / f"{name}.png")


if __name__ == "__main__":
    main()
