"""Which features and which selector choose the best batch of labels at one go?

    python benchmarks/one_shot.py --case same|pool|level|off [--quick] [--first-tier] [--methods SUBSTRING ...]

A pool is drawn with each seed, every method picks 100 structures of it at once, a pretrained MACE is fine-tuned on
them, and its errors on other reactions are compared with those after as many random picks from the same pool, trained with the
same seed. Case "same": the embedded model, RDB7 reactants, transition states and products, GFN2-xTB labels, so that model and
labels share a level of theory. Case "pool": the same model and 60 of 240 structures of the embedded pool. Case "level": a small
MACE of SPICE, T1x-like labels, and 30 minima that are always trained on. Case "off": the same with MACE-OFF23-small.

Training is in this process (``_one_shot_training.py``); ``--check`` trains one random batch with ``fine_tune``
too and keeps both results. Every finished training is written at once: the same command goes on where a killed one ended.
Writes one_shot_CASE.json and .png. ``--draw`` only draws.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import torch

from _common import add_common_arguments, machine_facts, write_json
from _one_shot_cases import FULL, LEVEL_MODELS, POOL, QUICK, Case, load_case
from _one_shot_figure import draw, summary_lines
from _one_shot_picks import FIRST_TIER, Kept, Method, methods, pick, weights
from _one_shot_training import Recipe, train
from selectron.campaign.measuring import predict
from selectron.features import default_cache
from selectron.potentials.mace import MacePotential
from selectron.potentials.mace_files import load_mace
from selectron.training.evaluate import Errors, errors
from selectron.training.fine_tune import fine_tune
from selectron.training.labels import Labelled
from selectron.training.options import TrainOptions
from selectron.training.references import shift_of_level

mpl.use("Agg")


class Results:
    """The result file, rewritten as a whole after every finished training."""

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        self.path = path
        self.content: dict[str, Any] = {**facts, "rows": []}
        if path.exists():
            old = json.loads(path.read_text())
            if any(old.get(key) != facts[key] for key in ("model", "recipe", "sizes")):
                raise SystemExit(f"{path} was made with another model, recipe or size: move it away.")
            self.content = old

    def has(self, method: str, seed: int) -> bool:
        """Whether this training is done."""
        return any((row["method"], row["seed"]) == (method, seed) for row in self.content["rows"])

    def keep(self, **entries: Any) -> None:
        """Sets entries, and writes."""
        self.content.update(entries)
        write_json(self.path, self.content)

    def add(self, row: dict[str, Any]) -> None:
        """Adds a finished training."""
        self.keep(rows=[*self.content["rows"], row])


def numbers(found: Errors, tags: list[str]) -> dict[str, Any]:
    """Errors in all and of each kind of structure."""
    result: dict[str, Any] = {
        "energy_mae_meV_atom": round(found.energy_mae_meV_atom, 3),
        "energy_rmse_meV_atom": round(found.energy_rmse_meV_atom, 3),
        "force_mae": round(found.force_mae, 5),
        "force_rmse": round(found.force_rmse, 5),
        "mean_energy_error_meV_atom": round(float((1e3 * found.energy_errors_eV / found.atoms).mean()), 3),
    }
    for tag in sorted(set(tags)):
        of_kind = np.array([t == tag for t in tags])
        energy, weight = found.energy_errors_eV[of_kind] / found.atoms[of_kind], found.atoms[of_kind]
        result[f"energy_mae_meV_atom {tag}"] = round(float(1e3 * np.abs(energy).mean()), 3)
        result[f"force_mae {tag}"] = round(float(np.average(found.force_mae_by_structure[of_kind], weights=weight)), 5)
    return result


def start_model(case: Case, training: list[Labelled]) -> tuple[torch.nn.Module, bool]:
    """The model with its atomic references moved as ``fine_tune`` moves them, and whether it does."""
    model: Any = load_mace(case.model)
    shift = shift_of_level(MacePotential(copy.deepcopy(model), dtype=torch.float64), training, TrainOptions())
    assert shift is not None
    if shift.applied:
        energies = model.atomic_energies_fn.atomic_energies
        energies += torch.as_tensor(shift.shift_eV, dtype=energies.dtype)
    return model, shift.applied


def old_data(case: Case, model: torch.nn.Module, count: int, seed: int) -> list[Labelled]:
    """``count`` structures of the case's old data, drawn with the seed; labelled by ``model`` where the case says so."""
    drawn = [case.replay[i] for i in np.random.default_rng([seed, 2]).permutation(len(case.replay))[:count]]
    if not (case.replay_by_model and drawn):
        return drawn
    found = predict(MacePotential(copy.deepcopy(model), dtype=torch.float64), drawn)
    forces = np.split(found.forces, np.cumsum(found.atoms)[:-1])
    return [
        Labelled(entry.atoms, float(energy), rows)
        for entry, energy, rows in zip(drawn, found.energy_eV, forces, strict=True)
    ]


class Trained(NamedTuple):
    """A trained model, the epoch that it is of, and whether its atomic references were moved first."""

    potential: MacePotential
    kept_epoch: int
    shift_applied: bool


def trained_on(case: Case, chosen: list[Labelled], recipe: Recipe, seed: int) -> Trained:
    """The case's model after training on ``chosen``, with what the case and the recipe add."""
    training = _with_known(case, chosen)
    model, shifted = start_model(case, training)
    replay = old_data(case, model, recipe.replay, seed)
    return Trained(*train(model, training, case.valid, recipe, seed, replay=replay), shifted)


def _with_known(case: Case, chosen: list[Labelled]) -> list[Labelled]:
    return [*chosen, *case.known] if case.train_known else chosen


def one(case: Case, kept: Kept, method: Method, seed: int, recipe: Recipe, sizes: Any) -> dict[str, Any]:
    """Picks, trains and measures."""
    began = time.monotonic()
    pool = np.sort(np.random.default_rng([seed, 0]).permutation(len(case.candidates))[: sizes.pool])
    picks = pick(method, kept, pool, sizes.picks, seed)
    weighed = weights(method, kept, pool, picks)
    chosen = [case.candidates[i]._replace(weight=float(w)) for i, w in zip(picks, weighed, strict=True)]
    picked = time.monotonic()
    found = trained_on(case, chosen, recipe, seed)
    tags = [str(entry.atoms.info["tag"]) for entry in chosen]
    return {
        "method": method.label,
        "seed": seed,
        **numbers(errors(found.potential, case.test), [str(entry.atoms.info["tag"]) for entry in case.test]),
        "kept_epoch": found.kept_epoch,
        "shift_applied": found.shift_applied,
        "mean_atoms_of_picks": round(float(np.mean([len(entry.atoms) for entry in chosen])), 2),
        "picks_by_kind": {tag: tags.count(tag) for tag in sorted(set(tags))},
        "picks": [int(i) for i in picks],
        **({"weights": [round(float(w), 4) for w in weighed]} if method.weighed else {}),
        "select_s": round(picked - began, 1),
        "train_s": round(time.monotonic() - picked, 1),
    }


def options_of(recipe: Recipe, seed: int) -> TrainOptions:
    """The same recipe for ``fine_tune``."""
    fields = {k: v for k, v in recipe._asdict().items() if k not in {"gamma", "loss", "replay", "keep_last"}}
    loss = {"l1": "absolute", "weighted": "squares"}[recipe.loss]
    final_rate = recipe.gamma**recipe.epochs
    return TrainOptions(
        **fields,
        loss=loss,
        final_rate=final_rate,
        seed=seed,
        threads=torch.get_num_threads(),
        keep="last" if recipe.keep_last else "best",
    )


def check(case: Case, recipe: Recipe, sizes: Any) -> dict[str, Any]:
    """One random batch, trained in this process and by ``fine_tune``; the two draw batches in another order."""
    chosen = [case.candidates[i] for i in np.random.default_rng(0).permutation(len(case.candidates))[: sizes.picks]]
    tags = [str(entry.atoms.info["tag"]) for entry in case.test]
    found: dict[str, Any] = {}
    for seed in (0, 1):
        potential = trained_on(case, chosen, recipe, seed).potential
        found[f"in process, seed {seed}"] = numbers(errors(potential, case.test), tags)
    training = _with_known(case, chosen)
    old = old_data(case, start_model(case, training)[0], recipe.replay, 0)
    plain, valid = ([_with_results(entry) for entry in part] for part in ([*training, *old], case.valid))
    with tempfile.TemporaryDirectory() as folder:
        result = fine_tune(case.model, plain, valid, options_of(recipe, 0), folder)
        found["fine_tune"] = numbers(errors(result.model_path, case.test, dtype="float32"), tags)
    return found


def _with_results(entry: Labelled) -> Any:
    atoms = entry.atoms.copy()
    atoms.info["REF_energy"], atoms.arrays["REF_forces"] = entry.energy_eV, entry.forces
    return atoms


def main() -> None:
    """Runs what is missing, and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser)
    parser.add_argument("--case", choices=["same", "pool", *LEVEL_MODELS], default="same")
    parser.add_argument("--methods", nargs="+", help="only these; 'ipv*' is all that have ipv in their name")
    parser.add_argument("--first-tier", action="store_true", help="only the methods that matter most")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--random-seeds", type=int, default=10)
    parser.add_argument("--epochs", type=int, help="of training; the result file then has them in its name")
    parser.add_argument("--picks", type=int, help="size of the batch; the result file then has it in its name")
    parser.add_argument(
        "--keep",
        choices=["last", "best"],
        default="last",
        help="the model of the last epoch or of the lowest validation loss; the result file then has that in its name",
    )
    parser.add_argument("--check", action="store_true", help="train one batch with fine_tune too")
    parser.add_argument("--draw", action="store_true", help="only draw what there is")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.quick:
        arguments.first_tier, arguments.seeds, arguments.random_seeds = True, 1, 2
    sizes = QUICK if arguments.quick else POOL if arguments.case == "pool" else FULL
    sizes = sizes._replace(picks=arguments.picks or sizes.picks)
    epochs = arguments.epochs or (3 if arguments.quick else EPOCHS)
    replay = 0 if arguments.case in LEVEL_MODELS else RECIPE.replay
    recipe = RECIPE._replace(
        epochs=epochs, gamma=0.02 ** (1 / epochs), replay=replay, keep_last=arguments.keep == "last"
    )
    name = f"one_shot_{arguments.case}{'_quick' if arguments.quick else ''}"
    name += f"_{epochs}_epochs" if arguments.epochs else ""
    name += f"_{sizes.picks}_picks" if arguments.picks else ""
    name += "_lowest_loss" if arguments.keep == "best" else ""
    path = arguments.output / f"{name}.json"
    if arguments.draw:
        draw(json.loads(path.read_text()), path.with_suffix(".png"))
        return
    arguments.output.mkdir(parents=True, exist_ok=True)
    case = load_case(arguments.case, arguments.shared, sizes)
    facts = {
        "what": __doc__.split("\n")[0],
        "case": arguments.case,
        "model": case.model.name,
        "recipe": recipe._asdict(),
        "sizes": {
            **sizes._asdict(),
            "candidates": len(case.candidates),
            "test": len(case.test),
            "valid": len(case.valid),
        },
        "machine": machine_facts(arguments.device),
    }
    results = Results(path, facts)
    if "before" not in results.content:
        model, _ = start_model(case, case.known)
        before = errors(MacePotential(model, dtype=torch.float32), case.test)
        results.keep(before=numbers(before, [str(entry.atoms.info["tag"]) for entry in case.test]))
    if arguments.check and "check" not in results.content:
        results.keep(check=check(case, recipe, sizes))
        print(json.dumps(results.content["check"], indent=1), flush=True)
    kept = Kept(default_cache() / "one_shot", case.model, case.known, case.candidates)
    every = methods()[:FIRST_TIER] if arguments.first_tier else methods()
    wanted = [m for m in every if not arguments.methods or _asked(m.label, arguments.methods)]
    for seed in range(max(arguments.seeds, arguments.random_seeds)):
        for method in wanted:
            last = arguments.random_seeds if method.is_baseline else arguments.seeds
            if seed >= last or results.has(method.label, seed):
                continue
            row = one(case, kept, method, seed, recipe, sizes)
            results.add(row)
            print(
                f"{seed} {method.label:28} {row['energy_mae_meV_atom']:7.2f} meV/atom {row['force_mae']:.4f} eV/Å "
                f"{row['select_s']:.0f} + {row['train_s']:.0f} s",
                flush=True,
            )
    for line in summary_lines(results.content):
        print(line)
    draw(results.content, path.with_suffix(".png"))


def _asked(label: str, parts: list[str]) -> bool:
    """Whether a label is one of ``parts``, or holds one that ends in a star."""
    return label in parts or any(part.endswith("*") and part[:-1] in label for part in parts)


EPOCHS = 20
RECIPE = Recipe(
    learning_rate=0.01, loss="l1", energy_weight=100.0, forces_weight=10.0, ema=0.99, replay=100, keep_last=True
)

if __name__ == "__main__":
    main()
