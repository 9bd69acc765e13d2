"""The look of the pictures in a campaign's report: vector graphics in the page, in the colours of its theme."""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

# Stand-ins that no other part of a picture uses; the page's style sheet gives them their colours, light or dark.
INK, RULE, SELECTED, RANDOM, ACCENT, PAPER = "#010203", "#040506", "#070809", "#0a0b0c", "#0d0e0f", "#101112"
_THEME = {
    INK: "var(--ink)",
    RULE: "var(--rule)",
    SELECTED: "var(--selected)",
    RANDOM: "var(--random)",
    ACCENT: "var(--accent)",
    PAPER: "var(--paper)",
}
ARM_COLOURS = {"selected": SELECTED, "random": RANDOM}
ARM_MARKERS = {"selected": "o", "random": "s"}
ARM_DASHES: dict[str, Any] = {"selected": "-", "random": (0, (4, 1.6))}
ARM_NAMES = {"selected": "selected", "random": "random picks"}
# Both ends of viridis are left out: the dark one is lost on dark paper, the yellow one on white.
ROUNDS = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0.18, 0.9, 256)))
QUANTITY_NAMES = {
    "force_rmse_eV_A": "force RMSE",
    "force_mae_eV_A": "force MAE",
    "energy_rmse_meV_atom": "energy RMSE",
    "energy_mae_meV_atom": "energy MAE",
}


def unit_of(quantity: str) -> str:
    """Unit of a quantity, for a person."""
    return "eV/Å" if quantity.endswith("eV_A") else "meV/atom"


def sheet(width: float, height: float) -> Figure:
    """An empty figure, inches, without a background."""
    figure = Figure(figsize=(width, height), dpi=150, facecolor="none", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def dress(axes: Axes, *, grid: bool = True) -> None:
    """Axes in the page's ink: two sides, small ticks, faint rules, plain numbers."""
    axes.set_facecolor("none")
    axes.tick_params(labelsize=8, color=RULE, labelcolor=INK, which="both", length=3)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(RULE)
    if grid:
        axes.grid(True, color=RULE, linewidth=0.5, alpha=0.7)
        axes.set_axisbelow(True)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(color=INK, fontsize=8.5)
    axes.title.set(color=INK, fontsize=9)


def log_if_wide(axes: Axes, values: Sequence[float] | np.ndarray) -> None:
    """A logarithmic y axis with plain numbers where positive ``values`` span more than a factor of eight."""
    given = np.asarray(values, dtype=float)
    given = given[np.isfinite(given)]
    if given.size and given.min() > 0 and given.max() > 8 * given.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
        wide = given.max() > 80 * given.min()
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: "" if wide else _first_digits(value)))
        axes.tick_params(axis="y", which="minor", labelsize=7)


def _first_digits(value: float) -> str:
    digit = round(value / 10 ** math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:.4g}" if digit in (2, 5) else ""


def svg(figure: Figure, alt: str, *, caption: str = "") -> str:
    """``figure`` as a ``<figure>`` element: its text is text, its colours those of the page, ``alt`` for who cannot see it.

    ``alt`` is escaped; ``caption`` is HTML. Equal figures give equal text.
    """
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": alt, "font.family": "sans-serif"}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    for stand_in, colour in _THEME.items():
        text = re.sub(re.escape(stand_in), colour, text, flags=re.IGNORECASE)
    text = re.sub(r"font: ([^;\"]*?)px [^;\"]*", r"font: \1px var(--sans)", text)
    label = html.escape(alt, quote=True)
    text = re.sub(r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>", rf'<svg \1 role="img" aria-label="{label}"', text, count=1)
    width = f"{figure.get_size_inches()[0] * 1.12:.2f}in"
    text = text.replace(
        f'aria-label="{label}"',
        f'aria-label="{label}" style="width:{width}" xmlns:xlink="http://www.w3.org/1999/xlink">',
        1,
    )
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f"<figure>{text}{below}</figure>"
