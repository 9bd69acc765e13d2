"""The printed picture of a selection: the map, and the pool's variances in order."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from selectron.report.map_data import FeatureMapData, points_to_show, spread_over_variance, variance_scale
from selectron.structures import atomic_output

PALETTE = "viridis"
PLAIN, RING, HOLLOW = "#8c8c8c", "#c8102e", "#7f7f7f"
UNIT_LABEL = "posterior variance (feature units)"
BACKGROUND_POINTS = 20_000
TRAINING_MARKERS = 600
NUMBERED_PICKS = 30
LONG_CURVE = 2000


def draw_png(data: FeatureMapData, path: str | Path) -> None:
    """Draw the map of ``data`` and its variance curve to the PNG ``path``, 1800 pixels wide.

    Pool points are coloured by variance (logarithmic when it spans more than a decade, grey where it is NaN), training
    structures are hollow grey, picks are ringed and numbered by rank when there are at most 30. More than 20,000
    points are thinned as in ``points_to_show`` and the training set to 600 markers; picks never are. Without any
    finite variance in the pool the curve and the colour bar are left out. The file appears whole or not at all.
    """
    figure = Figure(figsize=(9.0, 4.7), dpi=200, facecolor="white")
    FigureCanvasAgg(figure)
    low, high, logarithmic = variance_scale(data)
    coloured_by_variance = bool(np.isfinite(data.variance[data.kind != "train"]).any())
    norm = _norm(low, high, logarithmic) if coloured_by_variance else None
    if norm is None:
        map_axes = figure.add_axes((0.07, 0.11, 0.91, 0.68))
    else:
        map_axes = figure.add_axes((0.07, 0.11, 0.53, 0.68))
        curve_axes = figure.add_axes((0.76, 0.11, 0.225, 0.68))
    shown = data.take(points_to_show(data, BACKGROUND_POINTS))
    coloured = _draw_map(map_axes, shown, norm)
    if norm is not None:
        bar = figure.colorbar(coloured, cax=figure.add_axes((0.612, 0.11, 0.014, 0.68)))
        bar.set_label(UNIT_LABEL, fontsize=8.5)
        bar.ax.tick_params(labelsize=7.5, color="#888888")
        bar.outline.set_visible(False)
        if logarithmic:
            _log_ticks(bar.ax.yaxis, low, high)
        _draw_curve(curve_axes, data, norm, logarithmic)
    _head(figure, data, coloured=norm is not None)
    _number_picks(map_axes, shown)
    with atomic_output(path, "wb") as stream:
        figure.savefig(stream, format="png")


def _norm(low: float, high: float, logarithmic: bool) -> Normalize:
    """The colour scale, widened when all variances are equal."""
    if logarithmic:
        return LogNorm(low, high)
    margin = 0.5 * abs(low) or 0.5 if high <= low else 0.0
    return Normalize(low - margin, high + margin)


def _head(figure: Figure, data: FeatureMapData, coloured: bool) -> None:
    """Title, the facts of the run, and the legend above the panels."""
    figure.text(
        0.07, 0.955, textwrap.shorten(data.title, 90, placeholder=" …"), fontsize=12, weight="bold", va="center"
    )
    facts = textwrap.shorten(data.subtitle, 160, placeholder=" …")
    figure.text(0.07, 0.905, facts, fontsize=8.5, color="#444444", va="center")
    figure.legend(
        handles=_legend(data, coloured),
        loc="center left",
        bbox_to_anchor=(0.062, 0.845),
        ncols=3,
        frameon=False,
        fontsize=8.5,
        handletextpad=0.2,
        borderaxespad=0.0,
        columnspacing=1.4,
    )


def _legend(data: FeatureMapData, coloured: bool) -> list[Line2D]:
    """One handle for each kind that is there, with the number of its points."""
    styles: dict[str, tuple[str, dict[str, Any]]] = {
        "pool": (
            "pool",
            {"markerfacecolor": "#2a788e" if coloured else PLAIN, "markeredgewidth": 0, "markersize": 5.5},
        ),
        "train": ("training set", {"markerfacecolor": "none", "markeredgecolor": HOLLOW, "markersize": 4.5}),
        "pick": (
            "picks",
            {"markerfacecolor": "none", "markeredgecolor": RING, "markeredgewidth": 1.4, "markersize": 7},
        ),
    }
    counts = {kind: int(np.sum(data.kind == kind)) for kind in styles}
    return [
        Line2D([], [], linestyle="none", marker="o", label=f"{name} ({counts[kind]:,})", **style)
        for kind, (name, style) in styles.items()
        if counts[kind]
    ]


def _log_ticks(axis: Axis, low: float, high: float) -> None:
    """Plain numbers at 1, 2 and 5 over a few decades; powers of ten, thinned, over many."""
    decades = np.log10(high / low)
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
    if decades > 3:
        axis.set_major_locator(LogLocator(numticks=8))
    else:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _tidy(axes: Axes) -> None:
    axes.tick_params(labelsize=7.5, color="#888888")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#888888")


def _draw_map(axes: Axes, data: FeatureMapData, norm: Normalize | None) -> Any:
    """Scatter the three kinds of points; returns what the colour bar is made from."""
    x, y = data.coordinates.T
    pool, train, picks = data.of_kind("pool"), data.of_kind("train"), data.of_kind("pick")
    size = float(np.clip(2500 / max(len(pool), 1) ** 0.75, 2.5, 28))
    pool = pool[np.argsort(np.nan_to_num(data.variance[pool], nan=-np.inf), kind="stable")]

    def scatter(chosen: np.ndarray, **style: Any) -> Any:
        if norm is None:
            return axes.scatter(x[chosen], y[chosen], color=PLAIN, **style)
        values = np.clip(data.variance[chosen], norm.vmin, norm.vmax)
        bare = chosen[np.isnan(values)]
        axes.scatter(x[bare], y[bare], color=PLAIN, **style)
        return axes.scatter(x[chosen], y[chosen], c=values, cmap=PALETTE, norm=norm, **style)

    coloured = scatter(pool, s=size, linewidths=0, zorder=2)
    if len(train) > TRAINING_MARKERS:
        train = train[np.linspace(0, len(train) - 1, TRAINING_MARKERS).round().astype(int)]
    if len(train):
        axes.scatter(
            x[train],
            y[train],
            s=11 if len(train) <= 200 else 6,
            facecolors="none",
            edgecolors=HOLLOW,
            linewidths=0.6 if len(train) <= 200 else 0.45,
            zorder=2.5,
        )
    if len(picks):
        ring = 46 if len(picks) <= NUMBERED_PICKS else float(np.clip(1500 / len(picks), 9, 30))
        axes.scatter(x[picks], y[picks], s=1.9 * ring, color="white", linewidths=0, zorder=3)
        scatter(picks, s=ring, edgecolors=RING, linewidths=1.3 if ring > 20 else 0.8, zorder=4)
    axes.set_xlabel(f"principal component 1 ({data.explained[0]:.0%} of feature variance)", fontsize=8.5)
    axes.set_ylabel(f"principal component 2 ({data.explained[1]:.0%})", fontsize=8.5)
    axes.margins(0.06)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    _tidy(axes)
    return coloured


def _draw_curve(axes: Axes, data: FeatureMapData, norm: Normalize, logarithmic: bool) -> None:
    """Variances of pool and picks from largest to smallest, the picks ringed."""
    chosen = np.flatnonzero((data.kind != "train") & np.isfinite(data.variance))
    if logarithmic:
        chosen = chosen[data.variance[chosen] > 0]
    chosen = chosen[np.argsort(-data.variance[chosen], kind="stable")]
    values, place = data.variance[chosen], np.arange(1, len(chosen) + 1)
    few = np.unique(np.concatenate([np.arange(min(len(values), 300)), spread_over_variance(values, 3000)]))
    axes.plot(place[few], values[few], color="#bbbbbb", linewidth=0.8, zorder=1)
    axes.scatter(place[few], values[few], c=values[few], cmap=PALETTE, norm=norm, s=7, linewidths=0, zorder=2)
    picked = np.flatnonzero(data.kind[chosen] == "pick")
    size, width = (26, 1.1) if len(picked) <= NUMBERED_PICKS else (15, 0.7)
    axes.scatter(place[picked], values[picked], s=size, facecolors="none", edgecolors=RING, linewidths=width, zorder=3)
    if logarithmic:
        axes.set_yscale("log")
        _log_ticks(axes.yaxis, float(values.min()), float(values.max()))
    axes.margins(0.06)
    axes.set_xlabel("pool, largest variance first", fontsize=8.5)
    if len(chosen) > LONG_CURVE:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
    _tidy(axes)


def _number_picks(axes: Axes, data: FeatureMapData) -> None:
    """Write the rank beside each pick, at the nearest of a few places that is free; lower ranks choose first."""
    picks = data.of_kind("pick")
    if not 0 < len(picks) <= NUMBERED_PICKS:
        return
    points = axes.transData.transform(data.coordinates[picks]) * 72.0 / axes.figure.dpi
    angles = np.pi * np.array([1, 3, 5, 7, 0, 2, 4, 6]) / 4
    written: list[np.ndarray] = []
    for point, index in zip(points, picks, strict=True):
        best, fewest = np.zeros(2), np.inf
        for radius in (8.0, 12.0, 17.0, 23.0):
            for angle in angles:
                offset = radius * np.array([np.cos(angle), np.sin(angle)])
                gap_labels = [np.abs(point + offset - other) for other in written]
                gap_points = np.abs(point + offset - points)
                clashes = sum(bool((gap < (10.0, 8.0)).all()) for gap in gap_labels)
                clashes += int((gap_points < (7.5, 6.5)).all(axis=1).sum())
                if clashes < fewest:
                    best, fewest = offset, clashes
            if fewest == 0:
                break
        written.append(point + best)
        far = float(np.hypot(*best)) > 9
        axes.annotate(
            str(data.rank[index]),
            data.coordinates[index],
            xytext=(best[0], best[1]),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=7.5,
            weight="bold",
            color="#111111",
            arrowprops={"arrowstyle": "-", "color": "#555555", "linewidth": 0.5, "shrinkB": 3} if far else None,
            path_effects=[withStroke(linewidth=2.2, foreground="white")],
            zorder=5,
        )
