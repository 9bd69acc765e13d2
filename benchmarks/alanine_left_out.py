"""What torn picks cost in alanine_dipeptide.py: the last fine-tuning of each run again, without the picks of high energy.

    python benchmarks/alanine_left_out.py --size night [--limit 4.0] [--seeds 0 1 2] [--methods NAME ...]

Needs the runs of ``alanine_dipeptide.py`` with the same ``--size`` and ``--folder``. Of each run that picked structures
whose oracle energy is more than ``--limit`` eV above the oracle's minimum, the surrogate is fine-tuned on all other picks
with the same recipe and seed, and tested on the same structures. Writes ``alanine_left_out.json`` after each training,
goes on where a killed one ended, and prints a table.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from ase.io import read

from _alanine_round import METHODS, fitted, tested
from _common import add_common_arguments, machine_facts, write_json
from alanine_dipeptide import COMPARED, FORMS, form_named, prepared, run_folder, settings_of
from selectron.features import default_cache


def main() -> None:
    """Trains what is not there yet and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser)
    parser.add_argument("--size", choices=list(FORMS), default="night")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=COMPARED)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--limit", type=float, default=4.0, help="eV above the oracle's minimum")
    parser.add_argument("--joint-selector", default="ipv", help="of the runs")
    parser.add_argument("--folder", type=Path, default=default_cache() / "alanine_dipeptide", help="work files")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    name, form = form_named(arguments)
    bench, of_surrogate, _ = prepared(arguments, form)
    settings = settings_of(arguments, form, of_surrogate)
    path = arguments.output / "alanine_left_out.json"
    common = {"size": name, "limit_eV": arguments.limit, "surrogate": of_surrogate["fingerprint"]}
    content: dict[str, Any] = {
        "question": "errors on alanine dipeptide after the last iteration, without the picks above an energy limit",
        **common,
        "machine": machine_facts(arguments.device),
        "runs": {},
    }
    if path.exists():
        before = json.loads(path.read_text())
        if any(before.get(key) != value for key, value in common.items()):
            raise SystemExit(f"{path} has runs of other settings: give another --output.")
        content["runs"] = before["runs"]
    for seed in arguments.seeds:
        for method in arguments.methods:
            folder = run_folder(arguments, name, settings, seed) / method.replace(" ", "-")
            last = folder / f"iteration{form.iterations}" / "entry.json"
            if not last.exists() or str(seed) in content["runs"].get(method, {}):
                continue
            entry = json.loads(last.read_text())
            picks = _picks(folder, form.iterations)
            kept = [one for one in picks if one.get_potential_energy() - bench.minimum_eV <= arguments.limit]
            found: dict[str, Any] = {"labels": len(picks), "kept": len(kept), "all": entry["errors"], "left_out": None}
            if len(kept) < len(picks):
                draw = 1000 * seed + form.iterations
                model, found["training"] = fitted(folder / f"below-{arguments.limit:g}", kept, bench, draw)
                found["left_out"] = tested(model, bench) if model is not None else None
            content["runs"].setdefault(method, {})[str(seed)] = found
            arguments.output.mkdir(parents=True, exist_ok=True)
            write_json(path, content)
            print(_row(method, seed, found), flush=True)


def _picks(folder: Path, iterations: int) -> list[Atoms]:
    """All labelled picks of a run, in the order in which they were made."""
    found: list[Atoms] = []
    for iteration in range(1, iterations + 1):
        path = folder / f"iteration{iteration}" / "picks.extxyz"
        if json.loads((path.parent / "entry.json").read_text())["picks"]:
            found += read(path, ":")
    return found


def _row(method: str, seed: int, found: dict[str, Any]) -> str:
    def errors(of: dict[str, dict[str, float]] | None) -> str:
        if of is None:
            return "same"
        parts = [f"{of[test]['energy_rmse_meV_atom']:.1f}, {of[test]['force_rmse']:.3f}" for test in ("skmd", "md")]
        return "; ".join(parts)

    cells = [method, seed, f"{found['kept']} of {found['labels']}", errors(found["all"]), errors(found["left_out"])]
    return "| " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    main()
