"""Ramachandran maps of sampling runs: where the backbone dihedrals φ and ψ of a peptide went, and how evenly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from scipy.ndimage import gaussian_filter

from selectron.errors import SelectronError
from selectron.report.backbone import Backbone, dihedral, find_backbone, frame_dihedrals
from selectron.report.coverage import ENERGIES
from selectron.report.landscape import EnergyGrid, energy_grid
from selectron.report.panels import (
    FRAME,
    STEPS,
    Band,
    Columns,
    Span,
    columns_for,
    head_panel,
    legend_entries,
    make_sheet,
    mark_acquired,
    panel_rows,
    scatter_run,
    step_norm,
    write_sheet,
)
from selectron.report.samples import Samples

__all__ = [
    "Backbone",
    "backbone_of_runs",
    "dihedral",
    "draw_ramachandran",
    "find_backbone",
    "frame_dihedrals",
    "ramachandran_coverage",
    "ramachandran_entropy",
]

BIN_DEGREES = 10.0
SMOOTHING_DEGREES = 10.0
DENSE, DENSITY_DEGREES = 5000, 5.0  # more samples than this are drawn as counts in bins of that width


def ramachandran_coverage(phi: np.ndarray, psi: np.ndarray, *, bin_degrees: float = BIN_DEGREES) -> float:
    """Fraction of the square bins of the torus that hold a sample, 0 to 1.

    φ and ψ in degrees, any branch, of any equal shape; pairs with a NaN are left out. ``bin_degrees`` divides 360. The
    fraction never falls as samples are added, so compare runs of equal length.
    """
    return float((_histogram(phi, psi, bin_degrees) > 0).mean())


def ramachandran_entropy(
    phi: np.ndarray, psi: np.ndarray, *, bin_degrees: float = BIN_DEGREES, smoothing_degrees: float = SMOOTHING_DEGREES
) -> float:
    """Entropy of the distribution of (φ, ψ) over that of the uniform one: 1 is even, lower is more concentrated.

    −Σ p ln p / ln K over the K bins of the torus, p the histogram smoothed by a Gaussian of ``smoothing_degrees`` that
    runs on across ±180°, so that a basin on the seam counts as any other. A single point has 0.40 with the defaults; the
    scale has no meaning beyond comparing runs of like length. NaN without samples.
    """
    counts = _histogram(phi, psi, bin_degrees)
    if counts.sum() == 0:
        return float("nan")
    smooth = gaussian_filter(counts, smoothing_degrees / bin_degrees, mode="wrap", truncate=6.0)
    p = smooth[smooth > 0] / smooth.sum()
    return float(-(p * np.log(p)).sum() / np.log(counts.size))


def backbone_of_runs(frames_by_run: Mapping[str, Sequence[Atoms]]) -> dict[str, Backbone]:
    """The backbone of each run, found in its first frame; runs of the same atoms in the same order share the first one.

    So later frames, and later runs of the molecule, may have stretched bonds. Raises SelectronError when a run's first
    frame is no peptide.
    """
    known: dict[bytes, Backbone] = {}
    found = {}
    for name, frames in frames_by_run.items():
        numbers = np.asarray(frames[0].numbers).tobytes()
        if numbers not in known:
            known[numbers] = find_backbone(frames[0])
        found[name] = known[numbers]
    return found


def draw_ramachandran(
    runs: Sequence[Samples],
    angles: Sequence[tuple[np.ndarray, np.ndarray]],
    path: str | Path,
    *,
    free_energy: Any = None,
    title: str = "Backbone dihedrals",
) -> dict[str, dict[str, Any]]:
    """Write the PNG ``path``: a Ramachandran map of each run, its samples coloured by step, acquired ones ringed.

    Where a run has more than 5000 samples, colour is the number of samples in bins of 5° × 5°, on a logarithmic scale.

    Args:
        runs: one for each panel.
        angles: (φ, ψ) of each run, each (n,) or (n, R) in degrees; all residues share the panel.
        path: where the PNG goes.
        free_energy: optional background (φ, ψ, F): axes in degrees and energies in eV, as ``landscape.energy_grid``.
        title: headline.

    Returns:
        By name of the run: ``coverage`` and ``entropy`` over all residues, and the same two of each residue in lists.
    """
    columns = columns_for(len(runs))
    band, numbers = ramachandran_band(runs, angles, columns, free_energy=free_energy)
    figure = make_sheet(
        columns=columns,
        title=title,
        facts=FACT,
        legend=legend_entries(acquired=int(sum(run.acquired.sum() for run in runs))),
        bands=[band],
    )
    write_sheet(path, figure)
    return {run.name: number for run, number in zip(runs, numbers, strict=True)}


FACT = f"coverage: visited share of {BIN_DEGREES:.0f}° × {BIN_DEGREES:.0f}° bins · entropy: 1 is even over φ and ψ"


def ramachandran_band(
    runs: Sequence[Samples],
    angles: Sequence[tuple[np.ndarray, np.ndarray]],
    columns: Columns,
    *,
    free_energy: Any = None,
) -> tuple[Band, list[dict[str, Any]]]:
    """The band of :func:`draw_ramachandran` and the numbers of each run."""
    pairs = [(_columns(phi, run), _columns(psi, run)) for (phi, psi), run in zip(angles, runs, strict=True)]
    numbers = [_numbers(phi, psi) for phi, psi in pairs]
    background = None if free_energy is None else energy_grid(free_energy)
    steps = step_norm([run.step for run in runs])
    densities = [_histogram(phi, psi, DENSITY_DEGREES) for phi, psi in pairs]
    dense = None
    bars = [Span(steps, STEPS, "step")]
    if max(phi.size for phi, _ in pairs) > DENSE:
        dense = LogNorm(1, max(float(counts.max()) for counts in densities))
        bars = [Span(dense, STEPS, f"samples in {DENSITY_DEGREES:.0f}° × {DENSITY_DEGREES:.0f}°")]
    if background is not None:
        finite = background.energy[np.isfinite(background.energy)]
        energies = Normalize(float(finite.min()), float(finite.max()))
        bars.insert(0, Span(energies, ENERGIES, "free energy (eV)"))

    def panel(axes: Axes, place: int) -> None:
        phi, psi = pairs[place]
        run, residues = runs[place], phi.shape[1]
        if background is not None:
            _draw_background(axes, background, energies, lines_over=dense is not None)
        for line in (axes.axhline, axes.axvline):
            line(0.0, color="#cccccc", linewidth=0.6, zorder=1)
        points = np.stack([_wrapped(phi).ravel(), _wrapped(psi).ravel()], axis=1)
        known = np.isfinite(points).all(axis=1)
        of_frame = np.repeat(np.arange(len(run)), residues)[known]
        if dense is None:
            scatter_run(axes, points[known], run.step[of_frame], run.acquired[of_frame], steps)
        else:
            _draw_density(axes, densities[place], dense)
            mark_acquired(axes, points[known][run.acquired[of_frame]])
        for side in ("top", "right"):
            axes.spines[side].set(visible=True, color=FRAME)
        axes.set_xlim(-180, 180)
        axes.set_ylim(-180, 180)
        # None at ±180, where the labels of two panels would meet.
        ticks = [-120, -60, 0, 60, 120] if columns.panel > 2 else [-90, 0, 90]
        axes.set_xticks(ticks)
        axes.set_yticks(ticks)
        number = numbers[place]
        head_panel(axes, run.name, f"coverage {number['coverage']:.1%} · entropy {number['entropy']:.2f}")

    height = min(columns.panel, 4.4)
    return panel_rows(len(runs), columns, height, ("φ (°)", "ψ (°)"), panel, bars), numbers


def _draw_background(axes: Axes, background: EnergyGrid, energies: Normalize, *, lines_over: bool) -> None:
    levels = np.linspace(energies.vmin or 0.0, energies.vmax or 1.0, 30)
    axes.contourf(*background, levels=levels, cmap=ENERGIES, norm=energies, zorder=0)
    lines: dict[str, Any] = {"colors": "#6b7784", "linewidths": 0.45, "linestyles": "solid"}
    axes.contour(*background, levels=levels[::4], zorder=3.5 if lines_over else 0.5, **lines)


def _draw_density(axes: Axes, counts: np.ndarray, norm: LogNorm) -> None:
    edges = np.linspace(-180.0, 180.0, len(counts) + 1)
    axes.pcolormesh(edges, edges, np.ma.masked_equal(counts.T, 0), cmap=STEPS, norm=norm, zorder=3)


def _numbers(phi: np.ndarray, psi: np.ndarray) -> dict[str, Any]:
    each = [(phi[:, r], psi[:, r]) for r in range(phi.shape[1])]
    return {
        "coverage": ramachandran_coverage(phi, psi),
        "entropy": ramachandran_entropy(phi, psi),
        "coverage_by_residue": [ramachandran_coverage(*pair) for pair in each],
        "entropy_by_residue": [ramachandran_entropy(*pair) for pair in each],
    }


def _columns(values: np.ndarray, run: Samples) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2 or len(array) != len(run):
        raise SelectronError(
            f"The angles of the run {run.name!r} must be of shape ({len(run)},) or ({len(run)}, R), a row a frame; "
            f"got {np.shape(values)}."
        )
    return array


def _wrapped(degrees: np.ndarray) -> np.ndarray:
    return (np.asarray(degrees, dtype=np.float64) + 180.0) % 360.0 - 180.0


def _histogram(phi: np.ndarray, psi: np.ndarray, bin_degrees: float) -> np.ndarray:
    """Counts (K, K) of the samples in the bins of the torus, the first bin starting at −180°."""
    bins = round(360.0 / bin_degrees) if bin_degrees > 0 else 0
    if bins < 1 or not np.isclose(bins * bin_degrees, 360.0):
        raise SelectronError(f"The width of a Ramachandran bin must divide 360°; got {bin_degrees}°.")
    first, second = np.ravel(phi).astype(np.float64), np.ravel(psi).astype(np.float64)
    if first.shape != second.shape:
        raise SelectronError(f"φ and ψ must pair up; got {first.size} and {second.size} angles.")
    known = np.isfinite(first) & np.isfinite(second)
    places = [np.floor((_wrapped(angle[known]) + 180.0) / bin_degrees).astype(int) % bins for angle in (first, second)]
    counts = np.zeros((bins, bins))
    np.add.at(counts, (places[0], places[1]), 1.0)
    return counts
