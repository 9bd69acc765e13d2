"""Energy surfaces of two coordinates on a grid, and how much of one, or of a plane, points visited."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from selectron.errors import SelectronError
from selectron.report.projection import as_float64

CELLS = 40


class EnergyGrid(NamedTuple):
    """An energy surface of two coordinates on a grid.

    | field  | shape    | meaning                                               |
    |--------|----------|-------------------------------------------------------|
    | x      | (n,)     | ascending, Å                                          |
    | y      | (m,)     | ascending, Å                                          |
    | energy | (m, n)   | eV; ``energy[j, i]`` belongs to ``x[i]``, ``y[j]``    |
    """

    x: np.ndarray
    y: np.ndarray
    energy: np.ndarray


def energy_grid(surface: Any) -> EnergyGrid:
    """An ``EnergyGrid`` from (x, y, energy), x and y being axes or the matrices of ``numpy.meshgrid`` of either indexing.

    Raises SelectronError when the shapes disagree, an axis does not ascend, or no energy is finite.
    """
    try:
        x, y, energy = (as_float64(part) for part in surface)
    except (TypeError, ValueError):
        raise SelectronError("A surface is three arrays: x, y and the energies on their grid.") from None
    if x.ndim == 2 and x.shape == y.shape == energy.shape:
        if x.shape[0] > 1 and np.ptp(x[:, 0]) > 0:
            x, y, energy = x.T, y.T, energy.T
        x, y = x[0], y[:, 0]
    if x.ndim != 1 or y.ndim != 1 or energy.shape != (y.size, x.size) or min(x.size, y.size) < 2:
        raise SelectronError(
            f"A surface needs x of shape (n,), y of shape (m,) and energies of shape (m, n), n and m at least 2; got "
            f"{x.shape}, {y.shape} and {energy.shape}."
        )
    if not ((np.diff(x) > 0).all() and (np.diff(y) > 0).all()):
        raise SelectronError("The axes of a surface must ascend.")
    if not np.isfinite(energy).any():
        raise SelectronError("A surface needs at least one finite energy.")
    return EnergyGrid(x, y, energy)


def energy_ceiling(grid: EnergyGrid, points: np.ndarray | None = None) -> float:
    """Energy in eV above which a surface is not worth drawing.

    The median of the grid's energies, or, where the points (k, 2) go higher, the energy that 98 of 100 of them stay
    below, but never more than the 85th percentile of the grid.
    """
    finite = grid.energy[np.isfinite(grid.energy)]
    ceiling = float(np.quantile(finite, 0.5))
    if points is not None and len(points):
        at_points = _at_points(grid, points)
        at_points = at_points[np.isfinite(at_points)]
        if at_points.size:
            ceiling = max(ceiling, float(np.quantile(at_points, 0.98)))
    ceiling = min(ceiling, float(np.quantile(finite, 0.85)))
    return ceiling if ceiling > finite.min() else float(finite.max())


def default_window(grid: EnergyGrid) -> float:
    """Window in eV of the coverage of a surface: from its minimum to the median of its grid, whatever was sampled.

    1 eV where all energies are equal: then every cell counts.
    """
    return energy_ceiling(grid) - float(grid.energy[np.isfinite(grid.energy)].min()) or 1.0


def surface_coverage(
    points: np.ndarray, surface: Any, *, energy_window_eV: float, cells: int = CELLS
) -> dict[str, float | int]:
    """How much of the low-energy region of a surface the points (k, 2) visited.

    The rectangle of the grid is cut into ``cells`` × ``cells`` equal cells. The energy of a cell is the lowest of the
    grid points in it (of the nearest grid point where it holds none). Cells within ``energy_window_eV`` of the surface's
    minimum count, and the coverage is the fraction of them that hold a point: 0 to 1, never falling as points are
    added, so compare runs of equal length and with the same cells and window.

    Returns:
        ``coverage``; ``cells_visited`` and ``cells_in_window``; ``outside``, the number of points beyond the grid;
        ``energy_window_eV``.
    """
    grid = energy_grid(surface)
    if not energy_window_eV > 0 or cells < 1:
        raise SelectronError(f"Coverage needs a positive window and cell count; got {energy_window_eV} and {cells}.")
    energies = _cell_energies(grid, cells)
    low = energies <= energies.min() + energy_window_eV
    points = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    visited = np.zeros((cells, cells), dtype=bool)
    columns = _cell(points[:, 0], grid.x[0], grid.x[-1], cells)
    rows = _cell(points[:, 1], grid.y[0], grid.y[-1], cells)
    inside = (columns >= 0) & (rows >= 0)
    visited[rows[inside], columns[inside]] = True
    return {
        "coverage": float((visited & low).sum() / low.sum()),
        "cells_visited": int((visited & low).sum()),
        "cells_in_window": int(low.sum()),
        "outside": int((~inside).sum()),
        "energy_window_eV": float(energy_window_eV),
    }


def plane_coverage(points_by_run: Sequence[np.ndarray], *, cells: int = CELLS) -> list[dict[str, float | int]]:
    """Share of each run in the cells of the plane that any run visited.

    The rectangle around the points of all runs is cut into ``cells`` × ``cells`` cells. ``coverage`` of a run is the
    number of cells it visited over the number that the runs visited together, so it compares runs of equal length with
    each other and says nothing of what none of them reached. ``cells_visited`` is the first number.
    """
    every = np.concatenate([np.asarray(points, dtype=np.float64).reshape(-1, 2) for points in points_by_run])
    low, high = every.min(axis=0), every.max(axis=0)
    visited = []
    for points in points_by_run:
        place = [_cell(np.asarray(points)[:, k], low[k], high[k], cells) for k in range(2)]
        visited.append(set(zip(*(axis.tolist() for axis in place), strict=True)))
    union = len(set().union(*visited))
    return [{"coverage": len(cells_of_run) / union, "cells_visited": len(cells_of_run)} for cells_of_run in visited]


def _cell(values: np.ndarray, low: float, high: float, cells: int) -> np.ndarray:
    """Cell of each value along one axis; −1 outside, the upper edge in the last cell."""
    width = (high - low) or 1.0
    place = np.floor((values - low) / width * cells)
    inside = (values >= low) & (values <= high)
    return np.where(inside, np.minimum(np.nan_to_num(place), cells - 1), -1).astype(np.int64)


def _cell_energies(grid: EnergyGrid, cells: int) -> np.ndarray:
    """(cells, cells) lowest energy in each cell."""
    energy = np.where(np.isfinite(grid.energy), grid.energy, np.inf)
    x, y = grid.x, grid.y
    lowest = np.full((cells, cells), np.inf)
    rows, columns = _cell(y, y[0], y[-1], cells), _cell(x, x[0], x[-1], cells)
    np.minimum.at(lowest, (rows[:, None], columns[None, :]), energy)
    middle = (np.arange(cells) + 0.5) / cells
    nearest_x = np.abs(x[0] + middle[:, None] * (x[-1] - x[0]) - x).argmin(axis=1)
    nearest_y = np.abs(y[0] + middle[:, None] * (y[-1] - y[0]) - y).argmin(axis=1)
    empty = np.ones((cells, cells), dtype=bool)
    empty[np.ix_(np.unique(rows), np.unique(columns))] = False
    return np.where(empty, energy[np.ix_(nearest_y, nearest_x)], lowest)


def _at_points(grid: EnergyGrid, points: np.ndarray) -> np.ndarray:
    """Energy of the nearest grid point of each point."""
    columns = np.abs(np.asarray(points)[:, :1] - grid.x).argmin(axis=1)
    rows = np.abs(np.asarray(points)[:, 1:2] - grid.y).argmin(axis=1)
    return grid.energy[rows, columns]
