"""Where sampling runs went: over a two-dimensional energy surface, or in a plane of the descriptor space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.ticker import MaxNLocator

from selectron.errors import SelectronError
from selectron.report.landscape import (
    CELLS,
    default_window,
    energy_ceiling,
    energy_grid,
    plane_coverage,
    surface_coverage,
)
from selectron.report.panels import (
    OTHERS,
    STEPS,
    Band,
    Columns,
    Span,
    columns_for,
    head_panel,
    legend_entries,
    make_sheet,
    panel_rows,
    scatter_run,
    step_norm,
    thinned,
    write_sheet,
)
from selectron.report.projection import Projection, as_float64
from selectron.report.samples import Samples

LEVELS = 14
PLANE_FACT = f"cells: the plane around all samples cut into {CELLS} × {CELLS}"
# Light enough for the points on top; energy rises from grey to white.
ENERGIES = LinearSegmentedColormap.from_list("energies", ["#9aa7b4", "#c3ccd5", "#e6eaee", "#ffffff"])


def draw_landscapes(
    runs: Sequence[Samples],
    points_by_run: Sequence[np.ndarray],
    surface: Any,
    path: str | Path,
    *,
    energy_window_eV: float | None = None,
    title: str = "Sampling on a surface",
) -> dict[str, dict[str, float | int]]:
    """Write the PNG ``path``: each run's points (n, 2) in Å over the contours of the surface, a panel a run.

    ``surface`` is (x, y, energy) as in :func:`energy_grid`, or a mapping from the names of the runs to one each, for
    example a model's surface after each iteration. Energies above :func:`landscape.energy_ceiling` are white; without
    ``energy_window_eV`` the window of the coverage is :func:`landscape.default_window`.
    Returns the coverage of each run by name.
    """
    columns = columns_for(len(runs))
    band, numbers = landscape_band(runs, points_by_run, surface, columns, energy_window_eV=energy_window_eV)
    figure = make_sheet(
        columns=columns,
        title=title,
        facts=window_fact(numbers),
        legend=legend_entries(acquired=int(sum(run.acquired.sum() for run in runs))),
        bands=[band],
    )
    write_sheet(path, figure)
    return {run.name: number for run, number in zip(runs, numbers, strict=True)}


def draw_projection(
    runs: Sequence[Samples],
    descriptors: Sequence[Any],
    path: str | Path,
    *,
    title: str = "Sampling in descriptor space",
) -> dict[str, dict[str, float | int]]:
    """Write the PNG ``path``: each run's descriptors (n, D) in one plane, a panel a run, the other runs in grey.

    The plane is that of the largest variance of the descriptors of all runs together. Returns, by name of the run, its
    :func:`plane_coverage` and ``explained``, the fraction of the variance that the plane shows.
    """
    columns = columns_for(len(runs))
    band, numbers = projection_band(runs, descriptors, columns)
    acquired = int(sum(run.acquired.sum() for run in runs))
    figure = make_sheet(
        columns=columns,
        title=title,
        facts=PLANE_FACT if len(runs) > 1 else "",
        legend=legend_entries(acquired=acquired, others=len(runs) > 1),
        bands=[band],
    )
    write_sheet(path, figure)
    return {run.name: number for run, number in zip(runs, numbers, strict=True)}


def window_fact(numbers: Sequence[Mapping[str, float | int]]) -> str:
    """What the coverage of a surface counts, in a few words."""
    windows = sorted({f"{number['energy_window_eV']:.3g}" for number in numbers})
    return f"coverage: visited share of {CELLS} × {CELLS} cells within {' or '.join(windows)} eV of the minimum"


def landscape_band(
    runs: Sequence[Samples],
    points_by_run: Sequence[np.ndarray],
    surface: Any,
    columns: Columns,
    *,
    energy_window_eV: float | None = None,
) -> tuple[Band, list[dict[str, float | int]]]:
    """The band of :func:`draw_landscapes` and the coverage of each run."""
    surfaces = [energy_grid(surface[run.name] if isinstance(surface, Mapping) else surface) for run in runs]
    ceiling = max(energy_ceiling(one, points) for one, points in zip(surfaces, points_by_run, strict=True))
    floor = min(float(np.nanmin(one.energy)) for one in surfaces)
    numbers = [
        surface_coverage(points, one, energy_window_eV=energy_window_eV or default_window(one))
        for one, points in zip(surfaces, points_by_run, strict=True)
    ]
    ticks = np.asarray(MaxNLocator(LEVELS).tick_values(floor, ceiling))
    energies, steps = Normalize(floor, ceiling), step_norm([run.step for run in runs])
    span = surfaces[0]
    ratio = float(np.clip(np.ptp(span.y) / np.ptp(span.x), 0.6, 1.2))
    height = min(columns.panel, 4.4) * ratio

    def panel(axes: Axes, place: int) -> None:
        one, points, number = surfaces[place], points_by_run[place], numbers[place]
        inner = ticks[(ticks > floor) & (ticks < ceiling)]
        filled = np.linspace(floor, ceiling, 40) if ceiling > floor else [floor, floor + 1.0]
        energy = np.ma.masked_invalid(one.energy)
        axes.contourf(one.x, one.y, energy, levels=filled, cmap=ENERGIES, norm=energies, extend="max", zorder=0)
        lines: dict[str, Any] = {"colors": "#6b7784", "linewidths": 0.45, "linestyles": "solid"}
        axes.contour(one.x, one.y, energy, levels=inner, zorder=1, **lines)
        scatter_run(axes, points, runs[place].step, runs[place].acquired, steps)
        axes.set_xlim(one.x[0], one.x[-1])
        axes.set_ylim(one.y[0], one.y[-1])
        note = f"coverage {number['coverage']:.0%}"
        if number["outside"]:
            note += f" · {number['outside']:,} beyond the edge"
        head_panel(axes, runs[place].name, note)

    bars = [Span(energies, ENERGIES, "energy (eV)"), Span(steps, STEPS, "step")]
    return panel_rows(len(runs), columns, height, ("x (Å)", "y (Å)"), panel, bars), numbers


def projection_band(
    runs: Sequence[Samples], descriptors: Sequence[Any], columns: Columns
) -> tuple[Band, list[dict[str, float | int]]]:
    """The band of :func:`draw_projection` and the numbers of each run."""
    rows = [as_float64(values) for values in descriptors]
    for run, values in zip(runs, rows, strict=True):
        if values.ndim != 2 or len(values) != len(run) or not np.isfinite(values).all():
            raise SelectronError(
                f"The descriptors of the run {run.name!r} must be finite and of shape ({len(run)}, D), a row a frame; "
                f"got shape {values.shape}."
            )
    if len({values.shape[1] for values in rows}) > 1:
        raise SelectronError("The descriptors of all runs must have the same length; take them from one model.")
    plane = Projection.of_batches(rows)
    first, second = plane.explained
    labels = (f"principal component 1 ({first:.0%} of variance)", f"principal component 2 ({second:.0%})")
    if columns.panel < 2.6:
        labels = (f"component 1 ({first:.0%} of variance)", f"component 2 ({second:.0%})")
    band, numbers = plane_band(runs, [plane.transform(values) for values in rows], columns, labels)
    return band, [number | {"explained": float(first + second)} for number in numbers]


def plane_band(
    runs: Sequence[Samples], points_by_run: Sequence[np.ndarray], columns: Columns, labels: tuple[str, str]
) -> tuple[Band, list[dict[str, float | int]]]:
    """Points (n, 2) of each run in a panel with the same axes, the other runs in grey; and ``plane_coverage``."""
    numbers = plane_coverage(points_by_run)
    every = np.concatenate(points_by_run)
    low, high = every.min(axis=0), every.max(axis=0)
    margin = 0.05 * np.where(high > low, high - low, 1.0)
    steps = step_norm([run.step for run in runs])

    def panel(axes: Axes, place: int) -> None:
        others = [points for i, points in enumerate(points_by_run) if i != place]
        if others:
            grey = np.concatenate(others)
            grey = grey[thinned(len(grey))]
            axes.scatter(grey[:, 0], grey[:, 1], s=4, color=OTHERS, linewidths=0, zorder=2)
        scatter_run(axes, points_by_run[place], runs[place].step, runs[place].acquired, steps)
        axes.set_xlim(low[0] - margin[0], high[0] + margin[0])
        axes.set_ylim(low[1] - margin[1], high[1] + margin[1])
        head_panel(
            axes, runs[place].name, f"{numbers[place]['coverage']:.0%} of the cells any run visited" if others else ""
        )

    height = 0.9 * min(columns.panel, 4.4)
    return panel_rows(len(runs), columns, height, labels, panel, [Span(steps, STEPS, "step")]), numbers
