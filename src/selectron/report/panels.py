"""The look of the figures of a sampling run: a sheet of bands under one head, each band a row of panels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.textpath import TextToPath
from matplotlib.ticker import FuncFormatter, MaxNLocator

from selectron.structures import atomic_output

RING, OTHERS, FRAME, FAINT = "#c8102e", "#d0d0d0", "#888888", "#444444"
# Okabe and Ito's colours, told apart with any colour vision; vermilion is left out beside the red of acquisitions.
RUN_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#000000", "#b2a800", "#7f7f7f")
RUN_DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)), (0, (8, 2)), (0, (2, 2)), "-.", "--")
# The yellow end of viridis is left out: it is lost on white.
STEPS = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0.0, 0.9, 256)))
HEAD, FOOT = 1.02, 0.12
HEADING, BELOW = 0.44, 0.36  # inches over and under a row of panels
DRAWN_POINTS = 20_000
LABEL, TICK = 8.5, 7.5
_PATHS = TextToPath()


@dataclass(frozen=True)
class Columns:
    """How panels share the width of a sheet, in inches: ``count`` a row, between two margins."""

    count: int
    width: float
    left: float = 0.82
    right: float = 0.92
    gap: float = 0.24

    @property
    def panel(self) -> float:
        """Width of one panel."""
        return (self.width - self.left - self.right - self.gap * (self.count - 1)) / self.count

    def start(self, column: int) -> float:
        """Left edge of the panels of a column."""
        return self.left + column * (self.panel + self.gap)


class Band(NamedTuple):
    """A band of a sheet: its height in inches, and what draws it below a given distance from the upper edge."""

    height: float
    draw: Callable[[Figure, float], None]


class Span(NamedTuple):
    """A colour scale of the sheet: what it colours, its label, its limits."""

    norm: Normalize
    palette: Colormap
    label: str


def panel_rows(
    count: int,
    columns: Columns,
    height: float,
    labels: tuple[str, str],
    panel: Callable[[Axes, int], None],
    bars: Sequence[Span],
) -> Band:
    """``count`` panels of one height in rows, axis labels at the outer ones only, colour bars beside the first row."""
    rows = -(-count // columns.count)
    each = HEADING + height + BELOW

    def draw(figure: Figure, top: float) -> None:
        for place in range(count):
            row, column = divmod(place, columns.count)
            axes = add_axes(figure, columns.start(column), top + row * each + HEADING, columns.panel, height)
            axes.xaxis.set_major_locator(MaxNLocator(5 if columns.panel > 2 else 4))
            axes.yaxis.set_major_locator(MaxNLocator(5))
            panel(axes, place)
            lowest = place + columns.count >= count
            axes.tick_params(labelleft=column == 0, labelbottom=lowest)
            if column == 0:
                axes.set_ylabel(labels[1], fontsize=LABEL)
            if lowest:
                axes.set_xlabel(labels[0], fontsize=LABEL)
            short_numbers(axes.xaxis)
            short_numbers(axes.yaxis)
        edge = columns.start(columns.count - 1) + columns.panel + 0.14
        colour_bars(figure, bars, left=edge, top=top + HEADING, height=height)

    return Band(rows * each + 0.12, draw)


def columns_for(panels: int) -> Columns:
    """Up to four panels in one row, five and six in rows of three, more in rows of four."""
    count = panels if panels <= 4 else 3 if panels <= 6 else 4
    return Columns(count, {1: 6.2, 4: 11.0}.get(count, 9.0))


def make_sheet(*, columns: Columns, title: str, facts: str, legend: Sequence[Line2D], bands: Sequence[Band]) -> Figure:
    """Title, facts of the run and legend, and below them the bands, one under the other; 200 pixels an inch."""
    height = HEAD + sum(band.height for band in bands) + FOOT
    figure = Figure(figsize=(columns.width, height), dpi=200, facecolor="white")
    FigureCanvasAgg(figure)
    x, room = columns.left / columns.width, columns.width - columns.left - 0.1
    lines: tuple[tuple[float, str, dict[str, Any]], ...] = (
        (0.24, title, {"fontsize": 12, "weight": "bold"}),
        (0.50, facts, {"fontsize": LABEL, "color": FAINT}),
    )
    for y, text, style in lines:
        figure.text(
            x, 1 - y / height, fitted(text, room, style["fontsize"], bold="weight" in style), va="center", **style
        )
    if legend:
        figure.legend(
            handles=list(legend),
            loc="center left",
            bbox_to_anchor=(x - 0.06 / columns.width, 1 - 0.79 / height),
            ncols=len(legend),
            frameon=False,
            fontsize=LABEL,
            handletextpad=0.45,
            borderaxespad=0.0,
            columnspacing=1.4,
        )
    top = HEAD
    for band in bands:
        band.draw(figure, top)
        top += band.height
    return figure


def write_sheet(path: str | Path, figure: Figure) -> None:
    """Write the PNG ``path``, whole or not at all."""
    with atomic_output(path, "wb") as stream:
        figure.savefig(stream, format="png")


def add_axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes whose upper left corner lies ``left`` and ``top`` inches from the sheet's; ticks and frame in grey."""
    across, down = figure.get_size_inches()
    axes = figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))
    axes.tick_params(labelsize=TICK, color=FRAME)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FRAME)
    return axes


def head_panel(axes: Axes, name: str, note: str = "") -> None:
    """Name of a run over its panel, and a line of numbers below the name, each cut to the panel's width."""
    lines: tuple[tuple[str, float, dict[str, Any]], ...] = (
        (name, 16.0 if note else 5.0, {"fontsize": 9, "weight": "bold"}),
        (note, 5.0, {"fontsize": TICK, "color": FAINT}),
    )
    for text, offset, style in lines:
        shown = fitted(text, _inches_across(axes), style["fontsize"], bold="weight" in style)
        place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "bottom"}
        axes.annotate(shown, (0, 1), xytext=(0, offset), **place, **style)


def fitted(text: str, inches: float, fontsize: float, *, bold: bool = False) -> str:
    """The text, cut with an ellipsis where it would be wider than ``inches``."""
    font = FontProperties(size=fontsize, weight="bold" if bold else "normal")

    # Text on the screen of whole pixels comes out a little wider than its outlines.
    def wide(shown: str) -> bool:
        return bool(_PATHS.get_text_width_height_descent(shown, font, ismath=False)[0] > 0.97 * 72 * inches)

    if not wide(text):
        return text
    kept = len(text)
    while kept > 1 and wide(text[:kept].rstrip() + " …"):
        kept -= 1
    return text[:kept].rstrip() + " …"


def colour_bars(figure: Figure, spans: Sequence[Span], *, left: float, top: float, height: float) -> None:
    """Colour bars one above the other in a column ``height`` inches high."""
    gap = 0.22
    each = (height - gap * (len(spans) - 1)) / max(len(spans), 1)
    for place, span in enumerate(spans):
        axes = add_axes(figure, left, top + place * (each + gap), 0.12, each)
        bar = figure.colorbar(ScalarMappable(span.norm, span.palette), cax=axes)
        bar.set_label(span.label, fontsize=LABEL)
        bar.outline.set(edgecolor="#bbbbbb", linewidth=0.5)
        bar.ax.tick_params(labelsize=TICK, color=FRAME)
        if not isinstance(span.norm, LogNorm):
            bar.ax.yaxis.set_major_locator(MaxNLocator(4 if each > 1 else 3))
            short_numbers(bar.ax.yaxis)


def short_numbers(axis: Axis) -> None:
    """Ticks of ten thousand and above as 20k or 1.5M, the others as plain numbers."""

    def text(value: float, _: object = None) -> str:
        for scale, letter in ((1e6, "M"), (1e3, "k")):
            if max(map(abs, axis.get_view_interval())) >= (10 * scale if letter == "k" else scale):
                return f"{value / scale:g}{letter}" if value else "0"
        return f"{value:.6g}".replace("-", "−")

    axis.set_major_formatter(FuncFormatter(text))


def thinned(count: int, limit: int = DRAWN_POINTS) -> np.ndarray:
    """At most ``limit`` indices out of ``count``, evenly spaced, both ends among them."""
    return np.arange(count) if count <= limit else np.linspace(0, count - 1, limit).round().astype(int)


def step_norm(steps: Sequence[np.ndarray]) -> Normalize:
    """One colour scale for the steps of all runs."""
    every = np.concatenate([np.asarray(step, dtype=float) for step in steps] or [np.zeros(1)])
    low, high = (float(every.min()), float(every.max())) if every.size else (0.0, 1.0)
    return Normalize(low, high if high > low else low + 1.0)


def marker_area(points: int, panel: float) -> float:
    """Area of a trajectory point in points squared: smaller where many share a panel ``panel`` inches wide."""
    return float(np.clip(650 * panel / max(points, 1) ** 0.75, 1.4, 12))


def scatter_run(axes: Axes, points: np.ndarray, steps: np.ndarray, acquired: np.ndarray, norm: Normalize) -> None:
    """Samples (n, 2) coloured by step, late ones on top, acquired ones ringed in red on white."""
    width = _inches_across(axes)
    shown = thinned(len(points))
    shown = shown[np.argsort(steps[shown], kind="stable")]
    area = marker_area(len(shown), width)
    x, y = points.T
    colours: dict[str, Any] = {"cmap": STEPS, "norm": norm}
    axes.scatter(x[shown], y[shown], c=steps[shown], s=area, linewidths=0, zorder=3, **colours)
    found = np.flatnonzero(acquired)
    if found.size:
        ring = float(np.clip(140 * width / found.size**0.5, 12, 34))
        axes.scatter(x[found], y[found], s=1.8 * ring, color="white", linewidths=0, zorder=4)
        colours |= {"s": ring, "edgecolors": RING, "linewidths": 1.2 if ring > 20 else 0.8}
        axes.scatter(x[found], y[found], c=steps[found], zorder=5, **colours)


def mark_acquired(axes: Axes, points: np.ndarray) -> None:
    """Red rings on white at the points (k, 2), for panels whose colour is not the step."""
    ring = float(np.clip(140 * _inches_across(axes) / max(len(points), 1) ** 0.5, 12, 34))
    axes.scatter(points[:, 0], points[:, 1], s=ring, facecolors="white", edgecolors=RING, linewidths=1.0, zorder=5)


def legend_entries(
    *, acquired: int, others: bool = False, threshold: bool = False, median: bool = False
) -> list[Line2D]:
    """Handles of what the panels show."""
    dot: dict[str, Any] = {"linestyle": "none", "marker": "o"}
    made = [Line2D([], [], color=STEPS(0.5), markersize=4.5, markeredgewidth=0, label="samples", **dot)]
    if others:
        made.append(Line2D([], [], color=OTHERS, markersize=4.5, markeredgewidth=0, label="the other runs", **dot))
    if acquired:
        ring: dict[str, Any] = {
            "markerfacecolor": "none",
            "markeredgecolor": RING,
            "markeredgewidth": 1.3,
            "markersize": 6.5,
        }
        made.append(Line2D([], [], label=f"acquired ({acquired:,})", **dot, **ring))
    if threshold:
        made.append(Line2D([], [], color="#111111", linestyle=(0, (4, 2)), linewidth=1.0, label="threshold"))
    if median:
        made.append(Line2D([], [], color="#111111", linewidth=1.3, label="median of the particles"))
    return made


def no_data(axes: Axes, text: str = "not recorded") -> None:
    """Say in an empty panel why it is empty."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=TICK, color=FRAME)


def _inches_across(axes: Axes) -> float:
    figure = axes.get_figure(root=True)
    return float(axes.get_position().width * figure.get_size_inches()[0]) if figure is not None else 1.0
