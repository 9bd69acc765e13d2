"""Pictures of a campaign: learning curves, losses, costs."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from selectron.report.campaign_statistics import Curve
from selectron.report.campaign_style import (
    ACCENT,
    ARM_COLOURS,
    ARM_DASHES,
    ARM_MARKERS,
    ARM_NAMES,
    INK,
    QUANTITY_NAMES,
    RANDOM,
    RULE,
    SELECTED,
    dress,
    log_if_wide,
    sheet,
    svg,
    unit_of,
)
from selectron.report.campaign_summary import number

if TYPE_CHECKING:
    from selectron.campaign.records import ArmRecord, CampaignRecord

PANELS = 12  # small multiples of trainings an arm


def learning_curves(record: CampaignRecord, curves: Mapping[str, Curve]) -> str:
    """Errors on the test set against labels, all arms, with the spread over the test structures.

    "" where no model but the first has been measured.
    """
    if all(len(curve.labels) < 2 for curve in curves.values()):
        return ""
    figure = sheet(8.6, 5.4)
    all_axes = figure.subplots(2, 2, sharex=True)
    near = False
    rule = record.config.stop.target
    for axes, quantity in zip(all_axes.T.ravel(), QUANTITY_NAMES, strict=True):
        seen: list[float] = []
        bands: list[tuple[np.ndarray, np.ndarray]] = []
        for name, curve in curves.items():
            low, high = curve.band(quantity)
            values = curve.errors[quantity]
            colour = ARM_COLOURS[name]
            if len(values) > 1:
                bands.append((low, high))
                axes.fill_between(curve.labels, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(
                curve.labels,
                values,
                color=colour,
                linestyle=ARM_DASHES[name],
                marker=ARM_MARKERS[name],
                markersize=4.5,
                linewidth=1.6,
            )
            seen += values[np.isfinite(values)].tolist()
        if rule is not None and rule.quantity == quantity:
            labels, errors = record.selected.curve(quantity, of="validation")
            known = [value if value is not None else np.nan for value in errors]
            axes.plot(labels, known, color=ACCENT, linewidth=0.9, marker=".", markersize=4)
            seen += [value for value in known if np.isfinite(value)]
            near = bool(seen) and rule.below > 0.4 * min(seen)  # one far below would flatten the curves
            if near:
                axes.axhline(rule.below, color=ACCENT, linewidth=1.0, linestyle=(0, (1, 1.5)))
                seen.append(rule.below)
        dress(axes)
        log_if_wide(axes, seen)
        _frame(axes, seen)
        _drop_bands_beyond(axes, bands)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_title(f"{QUANTITY_NAMES[quantity]} ({unit_of(quantity)})", loc="left", color=INK, fontsize=9)
    for axes in all_axes[-1]:
        axes.set_xlabel("labels")
    handles = [
        Line2D([], [], color=ARM_COLOURS[one], linestyle=ARM_DASHES[one], marker=ARM_MARKERS[one], markersize=4.5)
        for one in curves
    ]
    names = [ARM_NAMES[one] for one in curves]
    if rule is not None:
        handles.append(Line2D([], [], color=ACCENT, linestyle=(0, (1, 1.5))))
        handles.append(Line2D([], [], color=ACCENT, linewidth=0.9, marker=".", markersize=4))
        names += [
            f"target {rule.below:g} {unit_of(rule.quantity)}{'' if near else ' (below the frame)'}",
            "selected, validation set",
        ]
    figure.legend(
        handles, names, loc="outside upper left", ncols=len(names), frameon=False, fontsize=8.5, labelcolor=INK
    )
    words = "; ".join(_curve_words(name, curve) for name, curve in curves.items())
    count = record.start.test.structures if record.start and record.start.test else 0
    caption = (
        f"Errors on the {count:,} test structures; the first point is the model before fine-tuning. Bands: 95 % of "
        "bootstrap resamples of the test structures, the same ones for both arms: overlapping bands do not make two arms "
        "equal, the table of differences tells. Where they would fill the frame their ends stand there as numbers. They say "
        "nothing of other seeds of training and selection."
    )
    return svg(figure, f"Learning curves. {words}.", caption=caption)


def _frame(axes: Axes, seen: Sequence[float]) -> None:
    """Limits that show every curve, and of the bands what lies near: one bad structure can make a band very wide."""
    if not seen:
        return
    scale = (np.log, np.exp) if axes.get_yscale() == "log" else (np.asarray, np.asarray)
    low, high = scale[0](min(seen)), scale[0](max(seen))
    room = 0.6 * (high - low) or 0.1 * abs(high) or 1.0
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(bottom, float(scale[1](low - room))), min(top, float(scale[1](high + room))))


def _drop_bands_beyond(axes: Axes, bands: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """Bands that would fill nearly all of the frame say more in numbers."""
    bottom, top = axes.get_ylim()
    inside = [np.clip(high, bottom, top) - np.clip(low, bottom, top) for low, high in bands]
    if not bands or min(float(width.mean()) for width in inside) < 0.75 * (top - bottom):
        return
    for band in list(axes.collections):
        band.remove()
    low, high = min(float(low[-1]) for low, _ in bands), max(float(high[-1]) for _, high in bands)
    axes.text(
        0.98,
        0.96,
        f"95 %: {number(low)} to {number(high)} at the end",
        transform=axes.transAxes,
        ha="right",
        va="top",
        fontsize=7.5,
        color=INK,
    )


def _curve_words(name: str, curve: Curve) -> str:
    values = curve.errors["force_rmse_eV_A"]
    return (
        f"{ARM_NAMES[name]}: force RMSE {values[0]:.4g} eV/Å at {curve.labels[0]} labels, "
        f"{values[-1]:.4g} at {curve.labels[-1]}"
    )


def losses(arm: ArmRecord) -> str:
    """A panel for each training: validation loss by epoch, the kept epoch marked; "" without any."""
    trained = [one for one in arm.rounds if one.training is not None and len(one.training.history) > 0]
    if not trained:
        return ""
    shown = trained
    if len(trained) > PANELS:
        shown = [trained[i] for i in np.unique(np.linspace(0, len(trained) - 1, PANELS).round().astype(int))]
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    figure = sheet(max(2.15 * columns + 0.3, 4.2), 1.55 * rows + 0.45)  # the legend needs some width
    grid = figure.subplots(rows, columns, squeeze=False)
    for place, axes in enumerate(grid.ravel()):
        if place >= len(shown):
            axes.set_visible(False)
            continue
        one = shown[place]
        assert one.training is not None
        history = [entry for entry in one.training.history if entry["epoch"] is not None]
        epochs = np.array([entry["epoch"] + 1 for entry in history])
        every = []
        for key, colour, style in (("train_loss", RULE, "-"), ("valid_loss", ARM_COLOURS[arm.name], "-")):
            values = np.array([np.nan if entry.get(key) is None else entry[key] for entry in history], dtype=float)
            shade = INK if key == "train_loss" else colour
            axes.plot(
                epochs,
                values,
                color=shade,
                linewidth=0.8 if key == "train_loss" else 1.4,
                linestyle=(0, (1, 1)) if key == "train_loss" else style,
            )
            every += values.tolist()
            if key == "valid_loss" and one.training.kept_epoch is not None:
                kept = np.flatnonzero(epochs == one.training.kept_epoch + 1)
                axes.plot(epochs[kept], values[kept], marker="o", markersize=4.5, color=colour, linestyle="none")
        stages = {entry["stage"] for entry in history}
        if len(stages) > 1:
            turn = next(entry["epoch"] for entry in history if entry["stage"] == 2)
            axes.axvline(turn + 0.5, color=RULE, linewidth=0.8)
        dress(axes)
        log_if_wide(axes, every)
        axes.tick_params(labelsize=7)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.set_title(f"round {one.round}, {one.training.structures:,} structures", loc="left", color=INK, fontsize=8)
        if place // columns == rows - 1:
            axes.set_xlabel("epochs", fontsize=8)
    handles = [
        Line2D([], [], color=ARM_COLOURS[arm.name], linewidth=1.4),
        Line2D([], [], color=INK, linewidth=0.8, linestyle=(0, (1, 1))),
        Line2D([], [], color=ARM_COLOURS[arm.name], marker="o", linestyle="none", markersize=4.5),
    ]
    figure.legend(
        handles,
        ["validation loss", "training loss", "kept epoch"],
        loc="outside upper left",
        ncols=3,
        frameon=False,
        fontsize=8,
        labelcolor=INK,
    )
    left_out = f" {len(shown)} of {len(trained)} trainings are shown." if len(shown) < len(trained) else ""
    return svg(
        figure,
        f"Losses of the trainings of the {ARM_NAMES[arm.name]} arm, {len(shown)} panels, by epoch.",
        caption=f"{html.escape(ARM_NAMES[arm.name]).capitalize()}: weighted losses as the trainer counts them.{left_out}",
    )


def cost_bars(costs: Mapping[str, Mapping[str, float]]) -> str:
    """Stacked bars of processor hours by kind of work; ``costs`` by arm, then by kind, in core seconds; "" without any."""
    every = ("labelling", "training", "screening", "measuring", "sampling")
    kinds = [kind for kind in every if any(parts.get(kind) for parts in costs.values())]
    arms = [arm for arm, parts in costs.items() if sum(parts.values()) > 0]
    if not arms:
        return ""
    largest = max(sum(costs[arm].values()) for arm in arms)
    scale, unit = (
        (3600.0, "core hours") if largest >= 3600 else (60.0, "core minutes") if largest > 120 else (1.0, "core s")
    )
    figure = sheet(7.4, 0.42 * len(arms) + 0.85)
    axes = figure.subplots()
    shades = {"labelling": SELECTED, "training": RANDOM, "screening": ACCENT, "measuring": INK, "sampling": RULE}
    for place, arm in enumerate(arms):
        start = 0.0
        for kind in kinds:
            width = costs[arm].get(kind, 0.0) / scale
            alpha = 0.35 if kind == "measuring" else 0.9
            axes.barh(place, width, left=start, color=shades[kind], alpha=alpha, height=0.62, linewidth=0)
            start += width
    axes.set_yticks(range(len(arms)), [ARM_NAMES.get(arm, arm) for arm in arms])
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    dress(axes)
    axes.grid(False, axis="y")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    handles = [Patch(color=shades[kind], alpha=0.35 if kind == "measuring" else 0.9) for kind in kinds]
    figure.legend(handles, kinds, loc="outside upper left", ncols=5, frameon=False, fontsize=8, labelcolor=INK)
    words = "; ".join(
        f"{ARM_NAMES.get(arm, arm)}: " + ", ".join(f"{kind} {costs[arm].get(kind, 0.0) / scale:.3g}" for kind in kinds)
        for arm in arms
    )
    return svg(figure, f"Costs in {unit}. {words}.")
