"""The figure and the table of one_shot.py: errors of each method against random picks."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np

MEASURES = {
    "force_mae": "force MAE (eV/Å)",
    "force_rmse": "force RMSE (eV/Å)",
    "energy_mae_meV_atom": "energy MAE (meV/atom)",
    "energy_rmse_meV_atom": "energy RMSE (meV/atom)",
}


class Against(NamedTuple):
    """A method against random, in per cent of random's mean over all its seeds.

    ``error`` is the standard error of the difference of the two means, by the spreads of both. Errors of a
    method and of random picks with the same seed hardly correlate, so pairing them would only add noise.
    """

    method: str
    seeds: int
    difference: float
    error: float
    each: list[float]


def against_random(content: dict[str, Any], measure: str) -> list[Against]:
    """Every method but random, in the order of the file."""
    values: dict[str, list[float]] = {}
    for row in content["rows"]:
        values.setdefault(row["method"], []).append(row[measure])
    reference = np.array(values.pop("random", []))
    if not len(reference):
        return []
    found = []
    for method, own in values.items():
        each = 100 * (np.array(own) / reference.mean() - 1)
        spread = 100 * reference / reference.mean()
        error = float("nan")
        if min(len(each), len(reference)) > 1:
            error = float(np.sqrt(each.var(ddof=1) / len(each) + spread.var(ddof=1) / len(spread)))
        found.append(Against(method, len(each), float(each.mean()), error, each.tolist()))
    return found


def summary_lines(content: dict[str, Any]) -> list[str]:
    """Mean and standard deviation of random, then the differences of means, as rows of a Markdown table."""
    random = [row for row in content["rows"] if row["method"] == "random"]
    spread = []
    for measure in MEASURES:
        values = np.array([row[measure] for row in random])
        deviation = f" ± {values.std(ddof=1):.2g}" if len(values) > 1 else ""
        spread.append(f"{values.mean():.4g}{deviation}" if len(values) else "–")
    lines = ["| picks | seeds | " + " | ".join(MEASURES.values()) + " |", "|---|---|" + "---|" * len(MEASURES)]
    lines.append("| before | | " + " | ".join(f"{content['before'][m]:.4g}" for m in MEASURES) + " |")
    lines.append(f"| random | {len(random)} | " + " | ".join(spread) + " |")
    columns = {measure: {p.method: p for p in against_random(content, measure)} for measure in MEASURES}
    for method, first in columns["force_mae"].items():
        cells = [_cell(columns[m][method]) for m in MEASURES]
        lines.append(f"| {method} | {first.seeds} | " + " | ".join(cells) + " |")
    return lines


def _cell(one: Against) -> str:
    return f"{one.difference:+.1f} ± {one.error:.1f} %" if np.isfinite(one.error) else f"{one.difference:+.1f} %"


def draw(content: dict[str, Any], path: Path) -> None:
    """A panel a measure; a point a seed, and mean with standard error; left of zero is better than random."""
    shown = {measure: against_random(content, measure) for measure in MEASURES}
    order = [p.method for p in sorted(shown["force_mae"], key=lambda p: -p.difference)]
    if not order:
        return
    figure, panels = plt.subplots(
        1,
        len(MEASURES),
        figsize=(13, 1.6 + (0.3 if len(order) < 40 else 0.18) * len(order)),
        layout="constrained",
        sharey=True,
    )
    random = [row for row in content["rows"] if row["method"] == "random"]
    for axes, (measure, label) in zip(panels, MEASURES.items(), strict=True):
        for one in shown[measure]:
            height = order.index(one.method)
            axes.plot(one.each, [height] * len(one.each), "o", ms=3, color="0.65")
            axes.errorbar(one.difference, height, xerr=one.error, fmt="o", ms=5, capsize=3, color="tab:blue")
        values = np.array([row[measure] for row in random])
        if len(values) > 1:
            spread = 100 * values.std(ddof=1) / values.mean()
            axes.axvspan(-spread, spread, color="tab:orange", alpha=0.15, lw=0)
        axes.axvline(0, color="tab:orange", lw=1)
        axes.set_title(f"{label}\nrandom {values.mean():.4g}, before {content['before'][measure]:.4g}", fontsize=9)
        axes.set_xlabel("against random, %")
    panels[0].set_yticks(range(len(order)), order, fontsize=10 if len(order) < 40 else 8)
    panels[0].set_ylim(-0.7, len(order) - 0.3)
    sizes = content["sizes"]
    figure.suptitle(
        f"{content['model']}: {sizes['picks']} picks of {sizes['pool']}, case {content['case']}. "
        "Grey: seeds; blue: mean and standard error of the difference; band: spread of random",
        fontsize=10,
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)
