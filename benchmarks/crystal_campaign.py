"""A campaign in sampling mode on a crystal, through the command line: inputs, run, status, report and export.

Copper with 32 atoms, a small MACE fitted to effective-medium theory at 300 K, candidates by SKMD at 900 K, tests at 1200 K, on
a vacancy and on strained cells, against a twin with random picks among its own samples.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from ase.io import read

from _common import ROOT, add_common_arguments, machine_facts, save
from _crystal import write_inputs, write_random_mace
from selectron.campaign.history import ArmRecord, read_campaign

YAML = Path(__file__).parent / "crystal_campaign" / "campaign.yaml"
QUANTITIES = ("force_rmse_eV_A", "force_mae_eV_A", "energy_rmse_meV_atom", "energy_mae_meV_atom")


def command_line(*words: object, folder: Path) -> float:
    """Runs ``selectron`` with ``words`` in ``folder``; how long it took in seconds."""
    began = time.monotonic()
    subprocess.run([Path(sys.executable).with_name("selectron"), *map(str, words)], cwd=folder, check=True)
    return time.monotonic() - began


def make_inputs(folder: Path, *, quick: bool, threads: int) -> dict[str, float]:
    """Fills ``folder`` with the YAML and all it names; seconds by step; inputs that are there stay."""
    if (folder / "copper.model").exists():
        return {}
    began = time.monotonic()
    write_inputs(folder, train=10 if quick else 20, test=4 if quick else 10)
    write_random_mace(folder / "random.model", read(folder / "train.extxyz", ":"), channels=8 if quick else 16)
    settings = yaml.safe_load(YAML.read_text())
    settings["trainer"]["threads"] = threads
    if quick:
        settings["sampling"].update(particles=4, iterations=8, stopping=[{"kind": "fixed-steps", "steps": 15}])
        settings["sampling"]["initial"] = {"burn_in_steps": 40, "snapshot_every": 10}
        settings["trainer"]["epochs"] = 4
        settings["budget"] = {"labels": 4, "per_round": 2}
    (folder / "campaign.yaml").write_text(yaml.safe_dump(settings, sort_keys=False) if quick else YAML.read_text())
    made = time.monotonic() - began
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
    train += ["--epochs", 10 if quick else 40, "--lr", 0.01, "--batch-size", 5, "--threads", threads]
    return {"inputs": made, "train": command_line(*train, folder=folder)}


def errors_by_kind(arm: ArmRecord, structures: list[Any]) -> dict[str, dict[str, float]]:
    """Force RMSE in eV/Å and energy RMSE in meV an atom of the last round, for each kind of test structure."""
    measured = arm.rounds[-1].test
    assert measured is not None
    predictions = measured.predictions()
    kinds = np.array([atoms.info["kind"] for atoms in structures])
    sizes = np.array([len(atoms) for atoms in structures])
    of_atoms = np.repeat(kinds, sizes)
    energies = (predictions.energy_eV - predictions.energy_label_eV) / sizes * 1000
    forces = predictions.forces - predictions.force_labels
    return {
        kind: {
            "force_rmse_eV_A": float(np.sqrt(np.mean(forces[of_atoms == kind] ** 2))),
            "energy_rmse_meV_atom": float(np.sqrt(np.mean(energies[kinds == kind] ** 2))),
        }
        for kind in dict.fromkeys(kinds.tolist())
    }


def numbers(folder: Path) -> dict[str, Any]:
    """Learning curves, what was sampled and picked, and whether cells and stresses came through."""
    record = read_campaign(folder / "run")
    exported = read(folder / "exported" / "train.extxyz", ":")
    test = read(folder / "test.extxyz", ":")
    arms = {}
    for arm in record.arms:
        arms[arm.name] = {
            **{
                name: dict(zip(("labels", "error"), map(list, arm.curve(name, of="test")), strict=True))
                for name in QUANTITIES
            },
            "rounds": [
                {
                    "candidates": one.sampled.candidates if one.sampled else None,
                    "broken": len(one.sampled.ended) if one.sampled else None,
                    "shift_eV": one.training.references["shift_eV"]
                    if one.training and one.training.references
                    else None,
                    "failure": one.training.failure if one.training else None,
                }
                for one in arm.rounds
            ],
            "stop": arm.stop,
            "by_kind": errors_by_kind(arm, test),
        }
    return {
        "arms": arms,
        "savings": {name: saving.sentence for name, saving in record.savings.items()},
        "exported": {
            "structures": len(exported),
            "periodic": sum(bool(atoms.pbc.all()) for atoms in exported),
            "with_stress": sum("REF_stress" in atoms.info for atoms in exported),
        },
        "test_structures": len(test),
    }


def main() -> None:
    """Runs the campaign and writes its numbers."""
    parser = ArgumentParser(description=__doc__)
    add_common_arguments(parser)
    parser.add_argument("--folder", type=Path, help="where the campaign is kept; by default it is thrown away")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        seconds = make_inputs(folder, quick=given.quick, threads=given.threads)
        for words in (
            ("validate", "campaign.yaml"),
            ("run", "campaign.yaml", "-o", "run"),
            ("status", "run"),
            ("report", "run"),
            ("export", "run", "-o", "exported"),
        ):
            seconds[words[0]] = command_line(*words, folder=folder)
        found = numbers(folder)
    name = "crystal_campaign_quick" if given.quick else "crystal_campaign"
    facts = machine_facts(given.device)
    save(
        given.output,
        name,
        {**facts, "seed": 0, "settings": YAML.relative_to(ROOT).as_posix(), "seconds": seconds, **found},
    )


if __name__ == "__main__":
    main()
