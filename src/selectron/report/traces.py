"""Sampling runs against their steps: bias, energy, temperature, uncertainty, and what was acquired when and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from selectron.report.panels import (
    FAINT,
    HEADING,
    LABEL,
    RING,
    RUN_COLOURS,
    RUN_DASHES,
    STEPS,
    TICK,
    Band,
    Columns,
    add_axes,
    columns_for,
    fitted,
    head_panel,
    legend_entries,
    make_sheet,
    no_data,
    short_numbers,
    thinned,
    write_sheet,
)
from selectron.report.samples import Samples

QUANTITIES = {
    "bias_norm": "bias norm\n(eV/Å)",
    "uncertainty": "uncertainty",
    "energy_eV": "energy\n(eV)",
    "temperature_K": "temperature\n(K)",
}
PANEL, BETWEEN, BELOW = 0.95, 0.17, 0.52
REASONS = 7
MANY = 4  # particles; above it their median is drawn as well
REASON_COLOURS = ("#332288", "#88ccee", "#44aa99", "#ddcc77", "#cc6677", "#aa4499", "#999933", "#bbbbbb")


def draw_traces(
    runs: Sequence[Samples],
    path: str | Path,
    *,
    thresholds: Mapping[str, float] | None = None,
    title: str = "Course of sampling",
) -> dict[str, dict[str, Any]]:
    """Write the PNG ``path``: a column for each run, a row for each quantity that any run recorded.

    A line is a particle of an ensemble, broken where its steps jump or start anew; colour runs over the ensembles, or
    over the particles of a single one, from dark to light. Acquired frames are ringed in red; ``thresholds`` (by
    ``"bias_norm"``, ``"uncertainty"`` …, in the quantity's unit) are dashed. Where total energies would hide what changes,
    energies are counted from the lowest (``energies_above_lowest``). Where a run has more than four particles, their
    median is drawn in black. Below: acquisitions over steps, and
    how often each reason stopped the sampler.

    Returns by name of the run what :func:`trace_numbers` counts.
    """
    columns = columns_for(len(runs))
    acquired = int(sum(run.acquired.sum() for run in runs))
    figure = make_sheet(
        columns=columns,
        title=title,
        facts="a line is a particle",
        legend=legend_entries(acquired=acquired, threshold=bool(thresholds), median=crowded(runs)),
        bands=trace_bands(runs, columns, thresholds=thresholds),
    )
    write_sheet(path, figure)
    return {run.name: trace_numbers(run) for run in runs}


def trace_numbers(run: Samples) -> dict[str, Any]:
    """Frames, particles, ensembles, acquisitions, stopping reasons with counts, and the mean of each recorded quantity."""
    means = {}
    for quantity in QUANTITIES:
        values = getattr(run, quantity)
        values = values[np.isfinite(values)]
        if values.size:
            means[f"mean_{quantity}"] = float(values.mean())
    return {
        "frames": len(run),
        "last_step": int(run.step.max()),
        "ensembles": len(np.unique(run.ensemble)),
        "particles": len(run.trajectories()),
        "acquired": int(run.acquired.sum()),
        "stopping_reasons": run.stopping_reasons(),
        **means,
    }


def trace_bands(
    runs: Sequence[Samples], columns: Columns, *, thresholds: Mapping[str, float] | None = None
) -> list[Band]:
    """The bands of :func:`draw_traces`: traces of as many runs as a row holds, then acquisitions and reasons."""
    thresholds = dict(thresholds or {})
    runs, shifted = energies_above_lowest(runs)
    labels = QUANTITIES | ({"energy_eV": "energy above\nlowest (eV)"} if shifted else {})
    recorded = [name for name in QUANTITIES if any(np.isfinite(getattr(run, name)).any() for run in runs)]
    limits = {name: value_limits([getattr(run, name) for run in runs], thresholds.get(name)) for name in recorded}
    bands = []
    steps = step_limits(runs)
    for start in range(0, len(runs), columns.count) if recorded else ():
        chunk = runs[start : start + columns.count]
        bands.append(
            _traces(chunk, columns, {labels[name]: (name, *limits[name]) for name in recorded}, thresholds, steps)
        )
    if any(run.acquired.any() or run.stopping_reasons() for run in runs):
        bands.append(_acquisitions(runs, columns))
    return bands


def crowded(runs: Sequence[Samples]) -> bool:
    """Whether a run has so many particles that its traces are drawn with their median."""
    return any(len(run.trajectories()) > MANY for run in runs)


def energies_above_lowest(runs: Sequence[Samples]) -> tuple[list[Samples], bool]:
    """The runs with energies counted from the lowest, where total energies would hide what changes; and whether so.

    That is when the lowest energy is more than twenty times the range of a run. Where the runs lie more than ten such
    ranges apart, as different molecules do, each is counted from its own lowest energy.
    """
    known = [run.energy_eV[np.isfinite(run.energy_eV)] for run in runs]
    lowest = [float(values.min()) if values.size else np.inf for values in known]
    span = max((float(np.ptp(values)) for values in known if values.size), default=0.0)
    finite = [value for value in lowest if np.isfinite(value)]
    if not finite or max(map(abs, finite)) <= 20 * span:
        return list(runs), False
    if max(finite) - min(finite) <= 10 * span:
        lowest = [min(finite)] * len(runs)
    return [
        replace(run, energy_eV=run.energy_eV - zero if np.isfinite(zero) else run.energy_eV)
        for run, zero in zip(runs, lowest, strict=True)
    ], True


def step_limits(runs: Sequence[Samples]) -> tuple[float, float] | None:
    """First and last step of all runs; None where the longest run has more than five times the steps of another."""
    lengths = [float(np.ptp(run.step)) for run in runs]
    if max(lengths) > 5 * max(min(lengths), 1.0):
        return None
    return float(min(run.step.min() for run in runs)), float(max(run.step.max() for run in runs))


def value_limits(values: Sequence[np.ndarray], threshold: float | None = None) -> tuple[float, float, bool]:
    """Limits of an axis that a few wild values do not stretch, and whether it is logarithmic.

    The range holds all but 1 of 200 values at either end, and all of them where that at most doubles it; a threshold
    always. It is logarithmic for positive values over more than two and a half decades.
    """
    every = np.concatenate([array[np.isfinite(array)] for array in values])
    low, high = (float(value) for value in np.quantile(every, [0.005, 0.995]))
    with_threshold = every if threshold is None else np.append(every, threshold)
    logarithmic = bool(every.min() > 0 and high > 300 * np.quantile(every, 0.05))
    if threshold is not None:
        low, high = min(low, threshold), max(high, threshold)
    if logarithmic and low > 0:
        return low / 1.6, high * 1.6, True
    width = (high - low) or abs(high) * 0.1 or 1.0
    low = float(with_threshold.min()) if low - with_threshold.min() < 0.5 * width else low
    high = float(with_threshold.max()) if with_threshold.max() - high < 0.5 * width else high
    margin = 0.07 * ((high - low) or width)
    return low - margin, high + margin, False


def broken_line(step: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The line with a NaN wherever the step falls, stands still, or jumps by more than five usual intervals."""
    if len(step) < 2:
        return step, value
    gaps = np.diff(step)
    usual = np.median(gaps[gaps > 0]) if (gaps > 0).any() else 1.0
    breaks = np.flatnonzero((gaps <= 0) | (gaps > 5 * usual)) + 1
    return np.insert(step, breaks, np.nan), np.insert(value, breaks, np.nan)


def running_median(step: np.ndarray, value: np.ndarray, intervals: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Mean step and median value in up to ``intervals`` equal intervals of the steps; empty ones are left out."""
    known = np.isfinite(value)
    step, value = step[known], value[known]
    if not step.size:
        return step, value
    edges = np.linspace(step.min(), step.max(), intervals + 1)
    place = np.clip(np.searchsorted(edges, step, side="right") - 1, 0, intervals - 1)
    filled = np.unique(place)
    return (
        np.array([step[place == i].mean() for i in filled]),
        np.array([np.median(value[place == i]) for i in filled]),
    )


def _traces(
    runs: Sequence[Samples],
    columns: Columns,
    rows: Mapping[str, tuple[str, float, float, bool]],
    thresholds: Mapping[str, float],
    steps: tuple[float, float] | None,
) -> Band:
    def draw(figure: Figure, top: float) -> None:
        for column, run in enumerate(runs):
            for row, (label, (quantity, low, high, logarithmic)) in enumerate(rows.items()):
                upper = top + HEADING + row * (PANEL + BETWEEN)
                axes = add_axes(figure, columns.start(column), upper, columns.panel, PANEL)
                if logarithmic:
                    axes.set_yscale("log")
                    axes.yaxis.set_major_locator(LogLocator(numticks=5))
                    axes.yaxis.set_minor_formatter(NullFormatter())
                else:
                    axes.yaxis.set_major_locator(MaxNLocator(4))
                axes.set_ylim(low, high)
                if steps is not None:
                    axes.set_xlim(*_widened(*steps))
                axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
                _draw_trace(axes, run, quantity, thresholds.get(quantity))
                if not logarithmic:
                    short_numbers(axes.yaxis)
                short_numbers(axes.xaxis)
                last = row == len(rows) - 1
                axes.tick_params(labelleft=column == 0, labelbottom=last)
                if column == 0:
                    axes.set_ylabel(label, fontsize=LABEL)
                    axes.yaxis.set_label_coords(-0.43 / columns.panel, 0.5)
                if last:
                    axes.set_xlabel("step", fontsize=LABEL)
                if row == 0:
                    head_panel(axes, run.name, _crowd(run))

    return Band(HEADING + len(rows) * (PANEL + BETWEEN) - BETWEEN + BELOW, draw)


def _draw_trace(axes: Axes, run: Samples, quantity: str, threshold: float | None) -> None:
    values = getattr(run, quantity)
    low, high = axes.get_ylim()
    if threshold is not None:
        axes.axhline(threshold, color="#111111", linestyle=(0, (4, 2)), linewidth=0.9, zorder=3)
    if not np.isfinite(values).any():
        no_data(axes)
        return
    crowd = run.trajectories()
    several = len({ensemble for ensemble, _, _ in crowd}) > 1
    groups = sorted({ensemble if several else particle for ensemble, particle, _ in crowd})
    many = len(crowd) > MANY
    if many:
        axes.plot(*running_median(run.step, values), color="#111111", linewidth=1.2, zorder=3.5)
    for ensemble, particle, indices in crowd:
        group = groups.index(ensemble if several else particle)
        shown = indices[thinned(len(indices), 4000)]
        style: dict[str, Any] = {
            "color": STEPS(group / max(len(groups) - 1, 1)),
            "alpha": 0.9 if len(crowd) <= 4 else 0.55,
        }
        known = shown[np.isfinite(values[shown])]
        if len(known) == 1:
            axes.plot(run.step[known], values[known], linestyle="none", marker="o", markersize=2.2, zorder=2, **style)
        axes.plot(*broken_line(run.step[known], values[known]), linewidth=0.75, zorder=2, **style)
    found = np.flatnonzero(run.acquired & np.isfinite(values))
    size = 20 if found.size <= 30 else 11
    axes.scatter(
        run.step[found],
        np.clip(values[found], low, high),
        s=size,
        facecolors="white",
        edgecolors=RING,
        linewidths=1.0 if size == 20 else 0.7,
        zorder=4,
        clip_on=False,
    )
    beyond = int(((values > high) | (values < low)).sum())
    if beyond:
        note = f"{beyond:,} beyond"
        paper = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1.0}
        place: dict[str, Any] = {"transform": axes.transAxes, "ha": "right", "va": "top", "zorder": 5}
        axes.text(0.99, 0.97, note, fontsize=6.5, color=FAINT, bbox=paper, **place)


def _acquisitions(runs: Sequence[Samples], columns: Columns) -> Band:
    """Acquisitions up to each step, a line a run, beside the stopping reasons, a bar a run."""
    usable = columns.width - columns.left - 0.2
    left_width = 0.36 * usable if columns.count > 1 else 0.4 * usable
    totals: dict[str, int] = {}
    for run in runs:
        for reason, count in run.stopping_reasons().items():
            totals[reason] = totals.get(reason, 0) + count
    reasons = sorted(totals, key=lambda reason: (-totals[reason], reason))
    listed = reasons[:REASONS]
    bars = 0.24 * len(runs)
    lines = len(listed) + (len(reasons) > REASONS)
    height = max(1.5 + 0.12 * max(len(runs) - 3, 0), bars + 0.3 + 0.19 * lines)

    def draw(figure: Figure, top: float) -> None:
        axes = add_axes(figure, columns.left, top + 0.28, left_width, height)
        _draw_cumulative(axes, runs)
        if not reasons:
            return
        names = [fitted(run.name, 1.4, TICK) for run in runs]
        inset = 0.35 + 0.066 * max(map(len, names))
        start = columns.left + left_width + inset
        width = columns.width - start - 0.35
        chart = add_axes(figure, start, top + 0.28, width, bars)
        _draw_reasons(chart, runs, listed, names)
        for place in range(lines):
            reason = listed[place] if place < len(listed) else None
            count = totals[reason] if reason else sum(totals[other] for other in reasons[REASONS:])
            text = f"{count:,} × {reason or 'other reasons'}"
            # From the names on, so that long reasons have room.
            left = columns.left + left_width + 0.35
            lower = top + 0.28 + bars + 0.2 + 0.19 * place
            _reason_line(figure, left, lower, text, REASON_COLOURS[place], columns.width - left - 0.1)

    return Band(0.28 + height + BELOW, draw)


def _draw_cumulative(axes: Axes, runs: Sequence[Samples]) -> None:
    last = max(float(run.step.max()) for run in runs)
    for place, run in enumerate(runs):
        steps = np.sort(run.step[run.acquired])
        across = np.concatenate([[run.step.min()], steps, [max(run.step.max(), *steps, 0.0)]])
        up = np.concatenate([[0], np.arange(1, len(steps) + 1), [len(steps)]])
        style: dict[str, Any] = {"color": RUN_COLOURS[place % 8], "linestyle": RUN_DASHES[place % 8], "linewidth": 1.5}
        axes.plot(across, up, drawstyle="steps-post", label=fitted(run.name, 1.7, TICK), **style)
    axes.set_xlim(*_widened(min(float(run.step.min()) for run in runs), last))
    top = max(int(run.acquired.sum()) for run in runs)
    axes.set_ylim(0, max((1.05 + 0.06 * len(runs)) * top, 1))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    short_numbers(axes.xaxis)
    axes.set_xlabel("step", fontsize=LABEL)
    axes.set_ylabel("acquired up to step", fontsize=LABEL)
    if len(runs) > 1:
        axes.legend(fontsize=TICK, frameon=False, handlelength=2.2, loc="upper left", borderaxespad=0.2)


def _draw_reasons(axes: Axes, runs: Sequence[Samples], listed: Sequence[str], names: Sequence[str]) -> None:
    most = max(sum(run.stopping_reasons().values()) for run in runs)
    for place, run in enumerate(runs):
        counts = run.stopping_reasons()
        widths = [counts.get(reason, 0) for reason in listed]
        widths.append(sum(counts.values()) - sum(widths))
        across = 0
        for width, colour in zip(widths, REASON_COLOURS, strict=False):
            axes.barh(place, width, left=across, height=0.68, color=colour, edgecolor="white", linewidth=0.6)
            if width > 0.06 * most:
                ink = "white" if colour in ("#332288", "#aa4499", "#44aa99", "#cc6677", "#999933") else "#111111"
                axes.text(across + width / 2, place, f"{width:,}", fontsize=6.8, color=ink, ha="center", va="center")
            across += width
    axes.set_ylim(len(runs) - 0.4, -0.6)
    axes.set_xlim(0, most)
    axes.set_yticks(range(len(runs)), names)
    axes.tick_params(axis="y", length=0)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.annotate(
        "stopping reasons",
        (0, 1),
        xycoords="axes fraction",
        xytext=(0, 5),
        textcoords="offset points",
        fontsize=LABEL,
        va="bottom",
    )


def _reason_line(figure: Figure, left: float, top: float, text: str, colour: str, width: float) -> None:
    across, down = figure.get_size_inches()
    shown = fitted(text, width - 0.17, TICK)
    figure.text(left / across, 1 - top / down, "■", color=colour, fontsize=9, va="center")
    figure.text((left + 0.17) / across, 1 - top / down, shown, fontsize=TICK, color="#111111", va="center")


def _widened(low: float, high: float) -> tuple[float, float]:
    margin = 0.02 * (high - low) or 0.5
    return low - margin, high + margin


def _crowd(run: Samples) -> str:
    crowd = run.trajectories()
    ensembles = len({ensemble for ensemble, _, _ in crowd})
    text = f"{len(crowd)} particle{'s' * (len(crowd) > 1)}"
    return text if ensembles == 1 else f"{text} in {ensembles} ensembles"
