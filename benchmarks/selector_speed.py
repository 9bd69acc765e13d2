"""Every batch selector against bmdal_reg 3.0.2 (patched for NumPy 2), interleaved in one run.

    python benchmarks/selector_speed.py [--quick] [--threads 1] [--repeats 3] [--output benchmarks/results]

20,000 x 512 float64 features, 500 training structures, 200 picks; `--quick` takes a tenth of each. Times are wall clock and
include all that either side does from feature matrices to picks: posterior, checks, detection of duplicates. Writes
`selector_speed.json` (machine, versions, seeds, every timing, whether the picks are equal) and `selector_speed.png`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from torch import Tensor

from selectron.acquisition import select_batch
from selectron.rows import Rows, one_row_each

mpl.use("Agg")
import matplotlib.pyplot as plt

# bmdal_reg 3.0.2 uses a name that NumPy 2 has removed.
np.Inf = np.inf  # type: ignore[attr-defined]  # noqa: NPY201
from bmdal_reg.bmdal import selection as bmdal  # noqa: E402

NOISE_VARIANCE = 1e-3
SEED = 0
OURS = ("lcmd", "fps", "kmeans++", "maxdet", "bait", "isd", "irv", "ipv", "herding", "top-k", "random")
# Its own choice for this shape is the kernel-space MaxDet; the feature-space one is given for comparison.
REFERENCES = {
    "lcmd": ("lcmd",),
    "fps": ("fps",),
    "kmeans++": ("kmeans++",),
    "maxdet": ("maxdet", "maxdet, feature space"),
    "bait": ("bait",),
}


def features(n: int, dim: int, seed: int) -> Tensor:
    """(n, dim) Gaussian features whose standard deviations fall as i^(-1/2), mean squared norm 1."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n, dim, generator=generator, dtype=torch.float64)
    values *= torch.arange(1, dim + 1, dtype=torch.float64) ** -0.5
    return values / values.square().sum(1).mean().sqrt()


def reference(name: str, pool: Tensor, train: Tensor, budget: int) -> Tensor:
    """Picks of bmdal_reg."""
    identity = bmdal.IdentityFeatureMap(n_features=pool.shape[1])
    both = [bmdal.Features(identity, bmdal.TensorFeatureData(values)) for values in (pool, train)]
    sigma = NOISE_VARIANCE**0.5
    if name.startswith(("maxdet", "bait")):
        transform = both[1].posterior_tfm(sigma, allow_kernel_space_posterior=False)
        both = [transform(each) for each in both]
    both = [each.precompute() for each in both]
    torch.manual_seed(SEED)
    methods: dict[str, tuple[Any, dict[str, Any]]] = {
        "lcmd": (bmdal.LargestClusterMaxDistSelectionMethod, {"sel_with_train": True}),
        "fps": (bmdal.MaxDistSelectionMethod, {"sel_with_train": True}),
        "kmeans++": (bmdal.KmeansppSelectionMethod, {"sel_with_train": True}),
        "maxdet": (bmdal.MaxDetSelectionMethod, {"noise_sigma": sigma}),
        "maxdet, feature space": (bmdal.MaxDetFeatureSpaceSelectionMethod, {"noise_sigma": sigma}),
        "bait": (bmdal.BaitFeatureSpaceSelectionMethod, {"noise_sigma": sigma, "overselection_factor": 2.0}),
    }
    method, options = methods[name]
    return method(*both, verbosity=0, **options).select(budget)


def ours(name: str, pool: Rows, train: Rows, budget: int) -> Tensor:
    """Picks of selectron."""
    options = {"noise_variance": NOISE_VARIANCE, "seed": SEED}
    return select_batch(name, pool, train=train, budget=budget, **options).indices  # type: ignore[arg-type]


def timed(function: Callable[[], Tensor]) -> tuple[float, list[int]]:
    """Wall time in seconds, and the picks."""
    start = time.perf_counter()
    picks = function()
    return time.perf_counter() - start, picks.tolist()


def machine() -> dict[str, Any]:
    """Facts that the timings depend on."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "load_average_at_start": list(os.getloadavg()),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy", "bmdal_reg", "selectron")},
    }


def measure(n: int, dim: int, n_train: int, budget: int, repeats: int) -> dict[str, Any]:
    """Timings in seconds of every selector, each repeat going once through all of them, ours and theirs in turn."""
    values = features(n + n_train, dim, SEED)
    pool, train = values[:n].contiguous(), values[n:].contiguous()
    pool_rows, train_rows = one_row_each(pool), one_row_each(train)
    results: dict[str, Any] = {name: {"selectron_s": [], "bmdal_reg_s": {}, "equal_picks": {}} for name in OURS}
    for repeat in range(repeats):
        for name, result in results.items():
            seconds, picks = timed(lambda name=name: ours(name, pool_rows, train_rows, budget))  # type: ignore[misc]
            result["selectron_s"].append(seconds)
            for other in REFERENCES.get(name, ()):
                other_seconds, other_picks = timed(lambda other=other: reference(other, pool, train, budget))  # type: ignore[misc]
                result["bmdal_reg_s"].setdefault(other, []).append(other_seconds)
                equal = sum(a == b for a, b in zip(picks, other_picks, strict=True))
                result["equal_picks"].setdefault(other, []).append(equal)
                print(
                    f"{repeat} {name}: {seconds:.2f} s, {other} of bmdal_reg {other_seconds:.2f} s, {equal} of {budget} equal",
                    flush=True,
                )
            if name not in REFERENCES:
                print(f"{repeat} {name}: {seconds:.2f} s", flush=True)
    for result in results.values():
        result["speedup"] = {
            other: median(seconds) / median(result["selectron_s"]) for other, seconds in result["bmdal_reg_s"].items()
        }
    return results


def draw(results: dict[str, Any], title: str, path: Path) -> None:
    """Median times as bars, with the ratio written on the reference's."""
    figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    ticks, labels = [], []
    position = 0.0
    for name, result in results.items():
        start = position
        axes.barh(position, median(result["selectron_s"]), color="tab:blue", height=0.8)
        for other, seconds in result["bmdal_reg_s"].items():
            position += 1.0
            axes.barh(position, median(seconds), color="tab:gray", height=0.8)
            note = f" {result['speedup'][other]:.1f}×" + (" (feature space)" if "," in other else "")
            axes.text(median(seconds), position, note, va="center", fontsize=8)
        ticks.append((start + position) / 2)
        labels.append(name)
        position += 1.6
    axes.set_yticks(ticks, labels)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.set_xlabel("wall time (s)")
    axes.set_title(title, fontsize=10)
    handles = [plt.Rectangle((0, 0), 1, 1, color=color) for color in ("tab:blue", "tab:gray")]
    axes.legend(handles, ["selectron", "bmdal_reg 3.0.2, patched"], loc="lower right", fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure, write the result file, draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of torch; the default is torch's own")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    n, dim, n_train, budget = (2000, 51, 50, 20) if arguments.quick else (20000, 512, 500, 200)
    settings = {"n_pool": n, "n_features": dim, "n_train": n_train, "budget": budget, "seed": SEED}
    settings |= {
        "noise_variance": NOISE_VARIANCE,
        "prior_precision": 1.0,
        "dtype": "float64",
        "repeats": arguments.repeats,
    }
    facts = machine()
    results = measure(n, dim, n_train, budget, arguments.repeats)
    arguments.output.mkdir(parents=True, exist_ok=True)
    stem = "selector_speed" + ("_quick" if arguments.quick else "")
    stem += f"_{arguments.threads}_thread" if arguments.threads else ""
    content = {"settings": settings, "machine": facts, "results": results}
    (arguments.output / f"{stem}.json").write_text(json.dumps(content, indent=1) + "\n")
    title = f"{budget} picks from {n:,} × {dim} features, {n_train} training structures, median of {arguments.repeats}"
    draw(results, title, arguments.output / f"{stem}.png")


if __name__ == "__main__":
    main()
