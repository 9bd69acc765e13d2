"""Learning curves of the copper campaigns: all test structures and each kind of them, selected picks and random ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLOURS = {"selected": "#0068a8", "random": "#b85c00"}
MARKERS = {"selected": "o", "random": "s"}
ROWS = {"force_rmse_eV_A": "force RMSE (eV/Å)", "energy_rmse_meV_atom": "energy RMSE (meV/atom)"}


def draw(campaigns: list[dict[str, Any]], path: Path) -> None:
    """Writes the PNG ``path``: thin lines are campaigns, thick ones their mean with its standard error."""
    kinds = [None, *campaigns[0]["arms"]["selected"]["by_kind"]]
    figure = Figure(figsize=(2.9 * len(kinds), 5.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(ROWS), len(kinds), sharex=True)
    for row, (quantity, name) in enumerate(ROWS.items()):
        for column, kind in enumerate(kinds):
            axes = grid[row, column]
            for arm in COLOURS:
                _curves(axes, [one["arms"][arm] for one in campaigns], kind, quantity, arm)
            axes.set_yscale("log")
            axes.minorticks_off()
            low, high = axes.get_ylim()
            ticks = np.geomspace(low, high, 6)[1:-1]
            axes.set_yticks(ticks, [f"{tick:.2g}" for tick in ticks])
            axes.spines[["top", "right"]].set_visible(False)
            if row == 0:
                axes.set_title("all test structures" if kind is None else kind, fontsize=10)
            else:
                axes.set_xlabel("labels")
        grid[row, 0].set_ylabel(name)
    grid[0, 0].legend(frameon=False, fontsize=9)
    count = len(campaigns)
    figure.suptitle(
        f"Copper, 32 atoms, candidates by SKMD at 900 K; {count} seed{'s' if count > 1 else ''}: mean and standard error",
        fontsize=11,
    )
    figure.savefig(path)
    print(f"wrote {path}")


def at_labels(
    arm: dict[str, Any], labels: Sequence[float] | np.ndarray, quantity: str, kind: str | None = None
) -> np.ndarray:
    """The error ``quantity`` of an arm at ``labels``, linear in its logarithm between measurements."""
    values = (arm if kind is None else arm["by_kind"][kind])[quantity]
    return np.exp(np.interp(labels, arm["labels"], np.log(values)))


def _curves(axes: Axes, arms: list[dict[str, Any]], kind: str | None, quantity: str, name: str) -> None:
    labels = np.linspace(0, min(arm["labels"][-1] for arm in arms), 5)
    for arm in arms:
        own = (arm if kind is None else arm["by_kind"][kind])[quantity]
        axes.plot(arm["labels"], own, color=COLOURS[name], linewidth=0.6, alpha=0.45)
    values = np.array([at_labels(arm, labels, quantity, kind) for arm in arms])
    error = values.std(axis=0, ddof=1) / len(values) ** 0.5 if len(values) > 1 else None
    axes.errorbar(
        labels,
        values.mean(axis=0),
        yerr=error,
        color=COLOURS[name],
        marker=MARKERS[name],
        markersize=4,
        linewidth=1.8,
        capsize=2.5,
        label="selected" if name == "selected" else "random picks",
    )
