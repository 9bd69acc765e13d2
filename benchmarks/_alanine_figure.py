"""The figure of alanine_dipeptide.py: errors against labels on both test sets, and where the picks lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

COLOURS = {
    "langevin-300 fps": "#0072B2",
    "langevin-700 fps": "#E69F00",
    "skmd fps": "#009E73",
    "skmd joint-ntk": "#CC79A7",
    "skmd-mean fps": "#56B4E9",
    "skmd-mean joint-ntk": "#D55E00",
}
NAMES = {
    "langevin-300 fps": "Langevin 300 K, farthest points",
    "langevin-700 fps": "Langevin 700 K, farthest points",
    "skmd fps": "SKMD, farthest points",
    "skmd joint-ntk": "SKMD, joint NTK",
    "skmd-mean fps": "SKMD, mean form, farthest points",
    "skmd-mean joint-ntk": "SKMD, mean form, joint NTK",
}
TESTS = {"skmd": "the oracle's SKMD", "md": "the oracle's dynamics at 500 K"}
MEASURES = {"energy_rmse_meV_atom": "energy RMSE (meV/atom)", "force_rmse": "force RMSE (eV/Å)"}


def draw(content: dict[str, Any], path: Path) -> None:
    """Writes the PNG ``path``: two rows of errors, one row of Ramachandran maps."""
    methods = [method for method in COLOURS if content["runs"].get(method)]
    rows = -(-len(methods) // _columns(methods))
    figure = plt.figure(figsize=(12.5, 6.5 + 3.7 * rows), constrained_layout=True)
    upper, lower = figure.subfigures(2, 1, height_ratios=[2, 1.15 * rows])
    axes = upper.subplots(len(MEASURES), len(TESTS) + 1, sharex=True)
    for row, (measure, label) in enumerate(MEASURES.items()):
        for column, (test, of_test) in enumerate(TESTS.items()):
            axis = axes[row, column]
            for method in methods:
                before = content["surrogate"]["test_errors"][test][measure]
                _band(axis, method, _series(content, method, lambda e, t=test, m=measure: e["errors"][t][m], before))
            axis.set(yscale="log", ylabel=label if column == 0 else None)
            if row == 0:
                axis.set_title(f"test: {of_test}", fontsize=10)
            _plain_ticks(axis)
    for row, (who, label) in enumerate((("picks", "labelled"), ("candidates", "sampled"))):
        axis = axes[row, -1]
        for method in methods:
            _band(axis, method, _series(content, method, lambda e, w=who: 100 * e["coverage"]["10 degrees"][w], 0.0))
        axis.set(ylabel=f"Ramachandran bins {label} (%)", ylim=(0, None))
    for axis in axes[-1]:
        axis.set_xlabel("labels")
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0, -1].get_legend_handles_labels()
    upper.legend(handles, labels, loc="outside upper center", ncols=_columns(methods), fontsize=9, frameon=False)
    _maps(lower, content, methods)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    print(f"wrote {path}")


def _columns(methods: list[str]) -> int:
    """How many maps stand side by side: four, or three where there are more than fit a row."""
    return len(methods) if len(methods) <= 4 else 3


def _series(content: dict[str, Any], method: str, value: Any, before: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """Labels and values of each seed, ``before`` where there is no label yet."""
    return [
        (np.array([0, *(entry["labels"] for entry in entries)]), np.array([before, *(value(e) for e in entries)]))
        for entries in content["runs"][method].values()
        if entries
    ]


def _band(axis: Axes, method: str, series: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Mean over seeds, and their range; of seeds that are not as far as others nothing is drawn."""
    length = max(len(values) for _, values in series)
    labels = np.mean([x for x, _ in series if len(x) == length], axis=0)
    values = np.array([y for _, y in series if len(y) == length])
    axis.fill_between(labels, values.min(0), values.max(0), color=COLOURS[method], alpha=0.16, lw=0)
    axis.plot(labels, values.mean(0), "o-", ms=3.5, lw=1.6, color=COLOURS[method], label=NAMES[method])


def _plain_ticks(axis: Axes) -> None:
    low, high = axis.get_ylim()
    places = [
        m * 10.0**p for p in range(-4, 5) for m in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9) if low <= m * 10.0**p <= high
    ]
    axis.set_yticks(places, [f"{place:g}" for place in places])
    axis.minorticks_off()


def _maps(figure: Any, content: dict[str, Any], methods: list[str]) -> None:
    columns = _columns(methods)
    grid = figure.subplots(-(-len(methods) // columns), columns, sharex=True, sharey=True, squeeze=False)
    axes = list(grid.flat)
    for axis in axes[len(methods) :]:
        axis.set_visible(False)
    last = max(entry["iteration"] for method in methods for runs in content["runs"][method].values() for entry in runs)
    background = np.array(content["tests"]["md"]["phi_psi"])
    shared = set.intersection(*({s for s, e in content["runs"][m].items() if e} for m in methods))
    seed = min(shared, key=int) if shared else None
    for axis, method in zip(axes, methods, strict=False):
        entries = content["runs"][method].get(seed, []) if seed else []
        axis.plot(*background.T, ".", ms=5, color="#d5d9de", zorder=1)
        points = np.concatenate([np.array(e["phi_psi"]).reshape(-1, 2) for e in entries] or [np.zeros((0, 2))])
        when = np.repeat([e["iteration"] for e in entries], [len(e["phi_psi"]) for e in entries])
        drawn = axis.scatter(*points.T, c=when, s=11, cmap="viridis_r", lw=0, zorder=2, vmin=1, vmax=last)
        axis.set(xlim=(-180, 180), ylim=(-180, 180), aspect="equal")
        axis.set_xticks([-120, -60, 0, 60, 120])
        axis.set_yticks([-120, -60, 0, 60, 120])
        axis.set_title(NAMES[method], fontsize=10, color=COLOURS[method])
    for row in grid:
        row[0].set_ylabel("ψ (°)")
    for axis in axes[max(0, len(methods) - columns) :]:
        axis.set_xlabel("φ (°)")
    bar = figure.colorbar(drawn, ax=axes, label="iteration", shrink=0.8, aspect=16)
    bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(
        f"Above: mean and range over seeds. Below: picks of seed {seed}; grey: test structures of the oracle's dynamics",
        fontsize=10,
    )
