"""Seconds of an epoch of fine-tuning on selectron's layers and on mace-torch's own, side by side.

    python benchmarks/training_speed.py --threads 1

Each training is a whole ``fine_tune`` with mace-torch's trainer in its own process. An epoch counts from its first batch to
its last step, without validation: wall time of the steps as mace-torch measures it, and CPU time of the process with loading of
data, which other programs on the machine disturb less. Plain and fast take turns; the first epoch, in which TorchScript
compiles, is left out of the medians.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from _common import add_common_arguments, machine_facts, save
from selectron.structures import Pool
from selectron.training.fine_tune import fine_tune
from selectron.training.options import TrainOptions

METHODS = ("full", "lora")


def epochs_of(model: str, count: int, options: TrainOptions) -> dict[str, list[float]]:
    """Wall and CPU seconds of every epoch of one training on the first ``count`` structures of the embedded pool."""
    with Pool.open(["embedded"]) as pool:
        structures = [pool[i] for i in range(count + 5)]
    with tempfile.TemporaryDirectory() as folder:
        fine_tune(model, structures[:count], structures[count:], options, folder)
        (results,) = (Path(folder) / "run" / "results").glob("*.txt")
        records = [json.loads(line) for line in results.read_text().splitlines()]
        used = json.loads((Path(folder) / "run" / "outcome.json").read_text())["layers"]
    if used != options.layers:
        raise RuntimeError(f"{options.layers} layers were asked for, {used} ones used")
    wall: list[float] = []
    core: list[float] = []
    for epoch in range(options.epochs):
        steps = [i for i, one in enumerate(records) if one["mode"] == "opt" and one["epoch"] == epoch]
        wall.append(sum(records[i]["time"] for i in steps))
        core.append(records[steps[-1]]["core_s"] - records[steps[0] - 1]["core_s"])
    return {"wall_s": wall, "core_s": core}


def main() -> None:
    """Measures and writes ``results/training_speed.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_common_arguments(parser)
    parser.add_argument("--rounds", type=int, default=2, help="trainings of each kind, in turn")
    parser.add_argument("--thread-counts", type=int, nargs="*", help="of the trainings; default: --threads")
    args = parser.parse_args()
    cases = [
        ("embedded", "embedded", 100, 4),
        ("MACE-OFF23-small", str(args.shared / "models" / "MACE-OFF23_small.model"), 20, 4),
    ]
    rounds = 1 if args.quick else args.rounds
    runs: list[dict[str, Any]] = []
    for name, model, count, epochs in cases:
        for threads in args.thread_counts or [args.threads]:
            for method in METHODS:
                options = TrainOptions(
                    method=method, epochs=2 if args.quick else epochs, batch_size=10, threads=threads, references="keep",
                    divergence_factor=100.0, device=args.device,
                )  # fmt: skip
                found: dict[str, list[dict[str, list[float]]]] = {"plain": [], "fast": []}
                for _ in range(rounds):
                    for layers, trainings in found.items():
                        using = options.model_copy(update={"layers": layers})
                        trainings.append(epochs_of(model, 10 if args.quick else count, using))
                run: dict[str, Any] = {
                    "model": name,
                    "structures": count,
                    "threads": threads,
                    "method": method,
                    "batch_size": 10,
                }
                for clock in ("wall_s", "core_s"):
                    median = {
                        layers: float(np.median([t for training in trainings for t in training[clock][1:]]))
                        for layers, trainings in found.items()
                    }
                    run[clock] = median | {"plain_over_fast": median["plain"] / median["fast"]}
                runs.append(run | {"trainings": found})
                print(run, flush=True)
    if not args.quick:
        save(args.output, "training_speed", {"machine": machine_facts(args.device), "seed": 0, "runs": runs})


if __name__ == "__main__":
    main()
