"""Which recipe of fine-tuning does one batch of random labels the most good?

    python benchmarks/one_shot_recipes.py --case same|level [--quick] [--recipes SUBSTRING ...] [--seeds 3]

The cases, pools and training of one_shot.py with random picks alone: one recipe of ``RECIPES`` against another, each with the
same picks for the same seed. Besides errors on other reactions it measures errors on structures that the model knew
before (forgetting) and of barriers, E(TS) − E(R). Every finished training is written at once, and the same command goes on
where a killed one ended. Writes one_shot_recipes_CASE.json.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
import torch

from _common import add_common_arguments, machine_facts
from _one_shot_cases import FULL, QUICK, Case, Sizes, load_case
from _one_shot_training import Recipe
from one_shot import Results, numbers, start_model, trained_on
from selectron.potentials.mace import MacePotential
from selectron.training.evaluate import Errors, errors
from selectron.training.labels import Labelled

FALLING = {"learning_rate": 0.01, "gamma": 0.02 ** (1 / 20), "ema": 0.99, "epochs": 20}
ABSOLUTE = Recipe(loss="l1", energy_weight=100.0, forces_weight=10.0, **FALLING)
SQUARES = Recipe(**FALLING)
RECIPES = {
    "squares 1000:100, rate 0.001 constant": Recipe(epochs=20),
    "absolute 100:10": ABSOLUTE,
    "absolute 100:10, replay 100": ABSOLUTE._replace(replay=100),
    "absolute 100:10, replay 200": ABSOLUTE._replace(replay=200),
    "absolute 30:10, replay 100": ABSOLUTE._replace(energy_weight=30.0, replay=100),
    "absolute 100:10, rate 0.003, replay 100": ABSOLUTE._replace(learning_rate=3e-3, replay=100),
    "squares 1000:100, replay 100": SQUARES._replace(replay=100),
    "squares 30000:100, replay 100": SQUARES._replace(energy_weight=3e4, replay=100),
    "squares 30000:100": SQUARES._replace(energy_weight=3e4),
}
"""Rates fall to 2 % over the run and parameters are averaged, where no constant rate is said."""

HELD = 60


def barriers(found: Errors, structures: list[Labelled]) -> float | None:
    """Mean absolute error of E(TS) − E(R) in eV over reactions that have both."""
    places: dict[str, dict[str, int]] = {}
    for i, one in enumerate(structures):
        places.setdefault(str(one.atoms.info["group"]), {})[str(one.atoms.info["tag"])] = i
    pairs = [(p["TS"], p["R"]) for p in places.values() if {"TS", "R"} <= set(p)]
    if not pairs:
        return None
    return float(np.mean([abs(found.energy_errors_eV[ts] - found.energy_errors_eV[r]) for ts, r in pairs]))


def measured(potential: MacePotential, case: Case, held: list[Labelled]) -> dict[str, Any]:
    """Errors on other reactions, their barriers, and on known structures that were not replayed."""
    found = errors(potential, case.test)
    barrier = barriers(found, case.test)
    result = {
        **numbers(found, [str(one.atoms.info["tag"]) for one in case.test]),
        "barrier_mae_eV": None if barrier is None else round(barrier, 4),
    }
    if held:
        of_known = errors(potential, held)
        result["known_energy_mae_meV_atom"] = round(of_known.energy_mae_meV_atom, 3)
        result["known_force_mae"] = round(of_known.force_mae, 5)
    return result


def one(case: Case, held: list[Labelled], recipe: Recipe, seed: int, sizes: Sizes) -> dict[str, Any]:
    """Trains on the random batch of ``seed`` and measures."""
    began = time.monotonic()
    pool = np.sort(np.random.default_rng([seed, 0]).permutation(len(case.candidates))[: sizes.pool])
    picks = np.random.default_rng([seed, 1]).permutation(pool)[: sizes.picks]
    found = trained_on(case, [case.candidates[i] for i in picks], recipe, seed)
    return {
        "seed": seed,
        **measured(found.potential, case, held),
        "kept_epoch": found.kept_epoch,
        "train_s": round(time.monotonic() - began, 1),
    }


def table(content: dict[str, Any]) -> list[str]:
    """Mean and standard deviation over seeds, as rows of a Markdown table."""
    columns = ("energy_mae_meV_atom", "energy_rmse_meV_atom", "force_mae", "force_rmse", "barrier_mae_eV")
    columns += ("known_energy_mae_meV_atom", "known_force_mae")
    lines = ["| recipe | seeds | " + " | ".join(columns) + " |", "|---|---|" + "---|" * len(columns)]
    before = [f"{content['before'][c]:.4g}" if content["before"].get(c) is not None else "–" for c in columns]
    lines.append("| before | | " + " | ".join(before) + " |")
    for name in dict.fromkeys(row["method"] for row in content["rows"]):
        rows = [row for row in content["rows"] if row["method"] == name]
        cells = []
        for column in columns:
            values = np.array([row[column] for row in rows if row.get(column) is not None])
            spread = f" ± {values.std(ddof=1):.2g}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.4g}{spread}" if len(values) else "–")
        lines.append(f"| {name} | {len(rows)} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """Runs what is missing, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser)
    parser.add_argument("--case", choices=["same", "level"], default="same")
    parser.add_argument("--recipes", nargs="+", help="only recipes whose name holds one of these")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sizes = QUICK if arguments.quick else FULL
    case = load_case(arguments.case, arguments.shared, sizes)
    held: list[Labelled] = []
    if not case.replay_by_model:
        order = np.random.default_rng(0).permutation(len(case.replay))
        held = [case.replay[i] for i in order[:HELD]]
        case = case._replace(replay=[case.replay[i] for i in order[HELD:]])
    facts = {
        "what": __doc__.split("\n")[0],
        "case": arguments.case,
        "model": case.model.name,
        "recipe": {name: recipe._asdict() for name, recipe in RECIPES.items()},
        "sizes": {**sizes._asdict(), "test": len(case.test), "valid": len(case.valid), "held": len(held)},
        "machine": machine_facts(arguments.device),
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    name = f"one_shot_recipes_{arguments.case}{'_quick' if arguments.quick else ''}"
    results = Results(arguments.output / f"{name}.json", facts)
    if "before" not in results.content:
        model, _ = start_model(case, case.known)
        results.keep(before=measured(MacePotential(model, dtype=torch.float32), case, held))
    wanted = [n for n in RECIPES if not arguments.recipes or any(part in n for part in arguments.recipes)]
    for seed in range(arguments.seeds):
        for name in wanted:
            if results.has(name, seed) or (RECIPES[name].replay and not case.replay):
                continue
            recipe = RECIPES[name]._replace(**({"epochs": 3} if arguments.quick else {}))
            row = one(case, held, recipe, seed, sizes)
            results.add({"method": name, **row})
            print(json.dumps({"method": name, **row}), flush=True)
    print("\n".join(table(results.content)))


if __name__ == "__main__":
    main()
