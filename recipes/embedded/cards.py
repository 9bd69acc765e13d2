"""The model card and the data card, written from what the stages measured."""

from __future__ import annotations

import json
from pathlib import Path

import reactive
import thermal
from export import PACKAGE, SAMPLE_SEED, SAMPLE_SIZE
from labels import isolated_atom_energies
from measure import DYNAMICS_SEED
from molecules import SPLIT_SEED

import training

TEMPLATES = Path(__file__).parent


def bullets(settings: dict[str, object]) -> str:
    """Settings of the training command, as lines of a list."""
    return "- " + "; ".join(f"`{name}` {value}" for name, value in settings.items()) + "."


def main() -> None:
    """Write ``MODEL_CARD.md`` and ``DATA_CARD.md`` into the package."""
    facts = json.loads((thermal.WORK / "errors.json").read_text())
    molecules, frames, pool = facts["molecules"], facts["frames"], facts["pool"]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    rows = [
        f"| {name} | {row['structures']} | {row['energy_mae']:.1f} | {row['energy_rmse']:.1f} "
        f"| {row['force_mae']:.0f} | {row['force_rmse']:.0f} |"
        for name, row in facts["errors"].items()
    ]
    symbols = {1: "H", 6: "C", 7: "N", 8: "O"}
    minutes = (thermal.WORK / "training-minutes.txt").read_text().strip()
    model_card = (
        (TEMPLATES / "model_card.template.md")
        .read_text()
        .format(
            architecture=bullets(training.ARCHITECTURE),
            optimisation=bullets(training.OPTIMISATION | dict.fromkeys(training.SWITCHES, "on")),
            parameters=facts["parameters"],
            model_kb=facts["bytes"]["embedded.model"] / 1000,
            e0s=", ".join(f"{symbols[z]} {energy:.4f}" for z, energy in isolated_atom_energies().items()),
            **{f"n_{part}": count for part, count in frames.items()},
            **{f"m_{part}": count for part, count in molecules.items()},
            split_seed=SPLIT_SEED,
            seed=training.SEED,
            minutes=f"about {minutes} minutes",
            versions=versions,
            errors="\n".join(rows),
            dynamics_seed=DYNAMICS_SEED,
            temperature=facts["dynamics"]["mean_temperature_K"],
            shortest=facts["dynamics"]["shortest_bond"],
            longest=facts["dynamics"]["longest_bond"],
        )
    )
    data_card = (
        (TEMPLATES / "data_card.template.md")
        .read_text()
        .format(
            versions=versions,
            n_molecules=sum(molecules.values()),
            friction=thermal.FRICTION_PER_FS,
            equilibration=thermal.EQUILIBRATION_STEPS,
            frames=thermal.FRAMES,
            between=thermal.STEPS_BETWEEN,
            thermal_seed=thermal.SEED,
            sample=SAMPLE_SIZE,
            sample_seed=SAMPLE_SEED,
            n_train=frames["train"],
            n_pool=sum(reactive.SHARES.values()),
            pool_molecules=pool["molecules"],
            least=pool["atoms_least"],
            most=pool["atoms_most"],
            pool_seed=reactive.SEED,
            hot=reactive.SHARES["hot-dynamics"],
            scan=reactive.SHARES["bond-scan"],
            proton=reactive.SHARES["proton-transfer"],
            path=reactive.SHARES["path-image"],
            single=pool["single"],
            changed=pool["single_changed"],
            two=pool["two_molecules"],
            min_distance=reactive.MIN_DISTANCE,
            max_force=reactive.MAX_FORCE,
            mean_force=pool["mean_largest_force"],
            top_force=pool["largest_force"],
            losses="\n".join(f"- {line}" for line in (thermal.WORK / "pool-losses.txt").read_text().splitlines()),
        )
    )
    (PACKAGE / "MODEL_CARD.md").write_text(model_card)
    (PACKAGE / "DATA_CARD.md").write_text(data_card)


if __name__ == "__main__":
    main()
