"""Exact independent samples of a Boltzmann distribution in the plane, and the surface on a grid."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from selectron.errors import SelectronError
from selectron.potentials.planar import PlanarPotential, finite_array, finite_number

Bounds = tuple[tuple[float, float], tuple[float, float]]

_LEAST_ACCEPTANCE = 0.1
_MOST_CELLS = 4_000_000


class Landscape(NamedTuple):
    """Energies on a grid, as contour plots want them: x (nx,) and y (ny,) in Å, energies (ny, nx) in eV."""

    x: np.ndarray
    y: np.ndarray
    energies: np.ndarray


def landscape(surface: PlanarPotential, bounds: Bounds, grid: int | tuple[int, int] = 200) -> Landscape:
    """Energies at ``grid`` points (one number, or one for x and one for y) spread evenly over ``bounds``.

    ``bounds`` are ((x_min, x_max), (y_min, y_max)) in Å; raises SelectronError where they are empty.
    """
    nx, ny = _grid(grid, least=2)
    (x_low, x_high), (y_low, y_high) = _bounds(bounds)
    x = torch.linspace(x_low, x_high, nx, dtype=torch.float64)
    y = torch.linspace(y_low, y_high, ny, dtype=torch.float64)
    points = torch.cartesian_prod(y, x).flip(1).to(surface.device, surface.dtype)
    energies = surface.energies_and_forces(points)[0].view(ny, nx)
    return Landscape(x.numpy(), y.numpy(), energies.cpu().numpy())


def boltzmann_samples(
    surface: PlanarPotential,
    *,
    kT_eV: float,
    bounds: Bounds,
    count: int,
    seed: int,
    grid: int | tuple[int, int] = 400,
) -> Tensor:
    """``count`` independent points (count, 2) in Å with density ∝ exp(−V/kT) inside ``bounds``, float64 on the CPU.

    Rejection under a step function. The box has ``grid`` cells a side; a cell is drawn with the weight exp(−L/kT) of a
    lower bound L of the energy in it, a point evenly inside the cell, and the point stays with probability
    exp(−(V − L)/kT): what stays is exact, however coarse the grid, as long as L is a bound. L is the least corner less
    (h_x² |∂²V/∂x²| + h_y² |∂²V/∂y²|)/8, which bounds how far V leaves the bilinear interpolant of the corners, with
    twice the largest curvatures found among the cell and its neighbours by differences of forces. Cells are halved while
    fewer than one point in ten would stay. A point that is drawn below its L shows a bound that was none: curvatures are
    then taken four times larger, and all starts anew.

    Raises SelectronError for empty bounds and where four million cells do not follow the energy.
    """
    temperature = finite_number("kT_eV", kT_eV, positive=True)
    limits = torch.tensor(_bounds(bounds), dtype=torch.float64)
    cells = _grid(grid, least=1)
    safety = 2.0
    while cells[0] * cells[1] <= _MOST_CELLS:
        steps = (limits[:, 1] - limits[:, 0]) / torch.tensor(cells, dtype=torch.float64)
        middle, least, sag = _cell_energies(surface, limits[:, 0], steps, cells)
        lower = least - safety * sag
        finite = lower.isfinite()
        if not bool(finite.any()):
            raise SelectronError(f"{surface.name} has no finite energy within these bounds.")
        lower = torch.where(finite, lower, torch.inf)
        weights = torch.exp(-(lower - lower.min()) / temperature)
        stays = torch.where(finite, weights * torch.exp(-(middle - lower) / temperature), 0.0).sum() / weights.sum()
        if stays < _LEAST_ACCEPTANCE:
            cells = (2 * cells[0], 2 * cells[1])
            continue
        samples = _rejection(surface, lower, weights, temperature, (limits[:, 0], steps), count, seed)
        if samples is not None:
            return samples
        safety *= 4.0
    raise SelectronError(f"{surface.name} varies too much within these bounds for kT = {kT_eV} eV: give closer bounds.")


def _cell_energies(
    surface: PlanarPotential, origin: Tensor, steps: Tensor, cells: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and least corner energy, and the sag (h_x² |V_xx| + h_y² |V_yy|)/8 that V may have below, of cells (nx, ny)."""
    nx, ny = cells
    x = origin[0] + steps[0] * torch.arange(nx + 1, dtype=torch.float64)
    y = origin[1] + steps[1] * torch.arange(ny + 1, dtype=torch.float64)
    energies, forces = surface.energies_and_forces(torch.cartesian_prod(x, y).to(surface.device, surface.dtype))
    nodes = energies.to("cpu", torch.float64).view(nx + 1, ny + 1)
    field = forces.to("cpu", torch.float64).view(nx + 1, ny + 1, 2)
    corners = torch.stack([nodes[1:, 1:], nodes[1:, :-1], nodes[:-1, 1:], nodes[:-1, :-1]])
    bend_x = steps[0] * field[..., 0].diff(dim=0).abs()
    bend_y = steps[1] * field[..., 1].diff(dim=1).abs()
    sags = [torch.maximum(bend_x[:, 1:], bend_x[:, :-1]), torch.maximum(bend_y[1:], bend_y[:-1])]
    pooled = torch.nn.functional.max_pool2d(torch.stack(sags).unsqueeze(0), 3, stride=1, padding=1)
    return corners.mean(0), corners.amin(0), pooled[0].sum(0) / 8


def _rejection(
    surface: PlanarPotential,
    lower: Tensor,
    weights: Tensor,
    kT_eV: float,
    box: tuple[Tensor, Tensor],
    count: int,
    seed: int,
) -> Tensor | None:
    """Points under the envelope of the cells' ``lower`` energies (nx, ny); None where a point falls below it."""
    origin, steps = box
    ny = lower.shape[1]
    flat, cumulative = lower.reshape(-1), torch.cumsum(weights.reshape(-1), 0)
    generator = torch.Generator().manual_seed(seed)
    kept: list[Tensor] = []
    found = 0
    while found < count:
        draws = torch.rand(max(1024, 2 * (count - found)), 4, dtype=torch.float64, generator=generator)
        cell = torch.searchsorted(cumulative, draws[:, 0] * cumulative[-1], right=True).clamp_(max=len(flat) - 1)
        corner = torch.stack([cell.div(ny, rounding_mode="floor"), cell % ny], dim=1)
        points = origin + steps * (corner + draws[:, 1:3])
        energies = surface.energies_and_forces(points.to(surface.device, surface.dtype))[0].to("cpu", torch.float64)
        excess = energies - flat[cell]
        # a bound may be met exactly (a straight slope), so that rounding is no violation
        if bool((excess < -1e4 * torch.finfo(surface.dtype).eps * (1.0 + energies.abs())).any()):
            return None
        kept.append(points[draws[:, 3] < torch.exp(-excess / kT_eV)])
        found += len(kept[-1])
    return torch.cat(kept)[:count] if kept else torch.zeros(0, 2, dtype=torch.float64)


def _bounds(bounds: Bounds) -> Bounds:
    limits = finite_array("bounds", bounds)
    if limits.shape != (2, 2) or not bool((limits[:, 0] < limits[:, 1]).all()):
        raise SelectronError(f"Bounds must be ((x_min, x_max), (y_min, y_max)) with min below max, not {bounds}.")
    (x_low, x_high), (y_low, y_high) = limits.tolist()
    return (x_low, x_high), (y_low, y_high)


def _grid(grid: int | tuple[int, int], *, least: int) -> tuple[int, int]:
    nx, ny = (grid, grid) if isinstance(grid, int) else grid
    if min(nx, ny) < least:
        raise SelectronError(f"A grid needs at least {least} points a side, not {grid}.")
    return nx, ny
