"""Coverage counts what it says, and the figures hold what they are given without text on text."""

import json

import numpy as np
import pytest
from ase import Atoms
from matplotlib.image import imread
from matplotlib.text import Text
from numpy.testing import assert_allclose, assert_array_equal

from selectron.errors import SelectronError
from selectron.report.coverage import draw_landscapes, draw_projection, landscape_band, projection_band
from selectron.report.landscape import (
    default_window,
    energy_ceiling,
    energy_grid,
    plane_coverage,
    surface_coverage,
)
from selectron.report.panels import columns_for, legend_entries, make_sheet
from selectron.report.ramachandran import ramachandran_band
from selectron.report.samples import all_samples
from selectron.report.sampling import draw_sampling
from selectron.report.traces import trace_bands

X, Y = np.linspace(-2, 2, 81), np.linspace(-1, 3, 61)
# Lower at the left, and not the same along x and y.
TILTED = np.add.outer(0.3 * (Y - 1) ** 2, 1.0 * (X + 1) ** 2)


def walk(count: int, seed: int, *, acquire: int = 40) -> list[Atoms]:
    """Frames of four walkers on the surface, with all that a sampler writes."""
    rng = np.random.default_rng(seed)
    frames = []
    for particle in range(4):
        path = np.cumsum(rng.normal(0, 0.12, (count // 4, 2)), axis=0) + np.array([-1.0, 1.0])
        for i, (x, y) in enumerate(np.clip(path, [-1.9, -0.9], [1.9, 2.9])):
            atoms = Atoms("X", [[x, y, 0.0]])
            atoms.info = {
                "step": 10 * i,
                "particle": particle,
                "ensemble": particle // 2,
                "energy_eV": (x + 1) ** 2 + 0.3 * (y - 1) ** 2,
                "bias_norm": float(np.exp(-i / count) + 0.1 * rng.random()),
                "temperature_K": 300.0 + 30 * rng.normal(),
                "method": "skmd",
            }
            if i and i % acquire == 0:
                atoms.info |= {"acquired": True, "stopping_reason": "bias-norm-below" if i % 80 else "fixed-steps"}
            frames.append(atoms)
    return frames


def test_coverage_of_everything_of_nothing_and_of_half():
    grid = np.stack(np.meshgrid(X, Y), axis=-1).reshape(-1, 2)
    low = {"energy_window_eV": 0.5, "cells": 20}
    assert surface_coverage(grid, (X, Y, TILTED), **low)["coverage"] == 1.0
    assert surface_coverage(np.zeros((0, 2)), (X, Y, TILTED), **low)["coverage"] == 0.0
    flat = surface_coverage(grid[grid[:, 0] < 0], (X, Y, np.zeros_like(TILTED)), **low)
    assert_allclose(flat["coverage"], 0.5)
    assert flat["cells_in_window"] == 400


def test_coverage_counts_only_low_cells_on_the_right_axis():
    # Within 0.1 eV: |x + 1| < 0.32 and |y − 1| < 0.58.
    inside = surface_coverage([[-1.0, 1.0]], (X, Y, TILTED), energy_window_eV=0.1)
    assert inside["cells_visited"] == 1
    for high in [[1.0, -0.5], [1.0, 1.0], [-1.0, 2.5]]:
        assert surface_coverage([high], (X, Y, TILTED), energy_window_eV=0.1)["cells_visited"] == 0
    cells = surface_coverage([], (X, Y, TILTED), energy_window_eV=0.1)["cells_in_window"]
    # The ellipse's area over a cell's, give or take the cells that its edge cuts.
    ellipse = np.pi * np.sqrt(0.1) * np.sqrt(0.1 / 0.3)
    assert ellipse / 0.01 * 0.9 < cells < ellipse / 0.01 * 1.5


def test_coverage_never_falls_and_outside_is_counted():
    points = np.random.default_rng(0).normal(0, 1.5, (300, 2))
    seen = [surface_coverage(points[:n], (X, Y, TILTED), energy_window_eV=1.0) for n in (10, 50, 300)]
    assert seen[0]["coverage"] < seen[1]["coverage"] < seen[2]["coverage"] <= 1
    beyond = (points[:, 0] < -2) | (points[:, 0] > 2) | (points[:, 1] < -1) | (points[:, 1] > 3)
    assert seen[2]["outside"] == beyond.sum()


def test_coarse_grids_and_both_kinds_of_mesh():
    coarse = (X[::8], Y[::6], TILTED[::6, ::8])
    points = np.random.default_rng(1).uniform(-1, 1, (500, 2))
    fine = surface_coverage(points, (X, Y, TILTED), energy_window_eV=1.0)["coverage"]
    assert_allclose(surface_coverage(points, coarse, energy_window_eV=1.0)["coverage"], fine, atol=0.08)
    meshes = np.meshgrid(X, Y), np.meshgrid(X, Y, indexing="ij")
    for (x, y), energy in zip(meshes, (TILTED, TILTED.T), strict=True):
        grid = energy_grid((x, y, energy))
        for part, expected in zip(grid, (X, Y, TILTED), strict=True):
            assert_array_equal(part, expected)


@pytest.mark.parametrize(
    "surface",
    [(X, Y, TILTED.T), (X[::-1], Y, TILTED), (X, Y), (X, Y, np.full_like(TILTED, np.nan)), 3.0],
)
def test_surfaces_that_do_not_fit_are_refused(surface):
    with pytest.raises(SelectronError):
        energy_grid(surface)


def test_ceiling_hides_walls_but_not_samples():
    wall = TILTED.copy()
    wall[:, -20:] = 1e6
    wall[:, -3:] = np.inf
    grid = energy_grid((X, Y, wall))
    assert energy_ceiling(grid) < 10
    high = np.array([[0.9, 2.9]] * 10)
    assert energy_ceiling(grid, high) >= min(TILTED[-3, 58], 4) - 1e-9
    assert default_window(grid) == energy_ceiling(grid) - TILTED.min()


def test_plane_coverage_is_a_share_of_the_union():
    grid = np.stack(np.meshgrid(np.arange(40.0), np.arange(40.0)), axis=-1).reshape(-1, 2)
    whole, half = plane_coverage([grid, grid[:800]])
    assert whole == {"coverage": 1.0, "cells_visited": 1600}
    assert half == {"coverage": 0.5, "cells_visited": 800}


def test_window_of_a_figure_does_not_depend_on_its_runs(tmp_path):
    runs = {"near": walk(80, 0), "far": walk(400, 1)}
    both = draw_sampling(runs, tmp_path / "both.png", surface=(X, Y, TILTED))
    alone = draw_sampling({"near": runs["near"]}, tmp_path / "alone.png", surface=(X, Y, TILTED))
    assert both["runs"]["near"]["surface"] == alone["runs"]["near"]["surface"]


def test_projection_shares_its_axes_and_its_plane():
    rng = np.random.default_rng(2)
    runs = all_samples({"a": walk(40, 0), "b": walk(80, 1)})
    flat = [rng.normal(size=(len(run), 2)) @ rng.normal(size=(2, 2)) for run in runs]
    basis = np.linalg.qr(rng.normal(size=(12, 2)))[0]
    descriptors = [points @ basis.T + 7.0 for points in flat]
    columns = columns_for(2)
    band, numbers = projection_band(runs, descriptors, columns)
    assert_allclose([number["explained"] for number in numbers], 1.0)
    figure = make_sheet(columns=columns, title="", facts="", legend=[], bands=[band])
    panels = figure.axes[:2]
    assert panels[0].get_xlim() == panels[1].get_xlim()
    assert panels[0].get_ylim() == panels[1].get_ylim()
    with pytest.raises(SelectronError, match="a row a frame"):
        projection_band(runs, [descriptors[0], descriptors[1][:-1]], columns)
    with pytest.raises(SelectronError, match="same length"):
        projection_band(runs, [descriptors[0], flat[1]], columns)


@pytest.mark.parametrize("count", [1, 2, 3, 4, *(pytest.param(n, marks=pytest.mark.slow) for n in (5, 6, 8))])
def test_no_text_overlaps_another_or_leaves_the_sheet(count):
    names = ["Langevin", "SKMD", "a-SKMD, two ensembles", "uncertainty-driven dynamics at 1200 K with a long name"]
    runs = all_samples({f"{names[i % 4]}{' ' * (i > 3)}": walk(160, i) for i in range(count)})
    columns = columns_for(len(runs))
    points = [np.random.default_rng(i).uniform(-1, 1, (len(run), 2)) for i, run in enumerate(runs)]
    descriptors = [np.concatenate([each, each**2], axis=1) for each in points]
    bands = [
        landscape_band(runs, points, (X, Y, TILTED), columns)[0],
        projection_band(runs, descriptors, columns)[0],
        ramachandran_band(runs, [(90 * each[:, 0], 90 * each[:, 1]) for each in points], columns)[0],
        *trace_bands(runs, columns, thresholds={"bias_norm": 0.4}),
    ]
    legend = legend_entries(acquired=12_345, others=count > 1, threshold=True, median=True)
    figure = make_sheet(columns=columns, title="Sampling " * 30, facts="facts " * 60, legend=legend, bands=bands)
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    # Ticks beyond the limits of an axis are kept by matplotlib and not drawn.
    shown = {id(text) for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for text in _shown(axis)}
    ticks = {id(text) for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for text in _all_ticks(axis)}
    kept = [(t.get_text(), t.get_window_extent(renderer)) for t in texts if id(t) not in ticks or id(t) in shown]
    edge = figure.bbox
    for text, box in kept:
        assert box.x0 >= -1 and box.x1 <= edge.x1 + 1 and box.y0 >= -1 and box.y1 <= edge.y1 + 1, text  # noqa: PT018
    for i, (text, box) in enumerate(kept):
        for other, place in kept[i + 1 :]:
            assert min(box.x1, place.x1) - max(box.x0, place.x0) < -4 or (
                min(box.y1, place.y1) - max(box.y0, place.y0) < 2
            ), (text, other)


def _all_ticks(axis):
    return [label for tick in (*axis.majorTicks, *axis.minorTicks) for label in (tick.label1, tick.label2)]


def _shown(axis):
    return [label for tick in axis._update_ticks() for label in (tick.label1, tick.label2) if label.get_visible()]


def test_pictures_are_written_whole_and_the_same_twice(tmp_path):
    runs = all_samples({"a": walk(80, 0), "b": walk(120, 1)})
    points = [np.random.default_rng(i).uniform(-1, 1, (len(run), 2)) for i, run in enumerate(runs)]
    for name in ("one.png", "two.png"):
        numbers = draw_landscapes(runs, points, {"a": (X, Y, TILTED), "b": (X, Y, TILTED + 1)}, tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert_allclose(numbers["a"]["energy_window_eV"], numbers["b"]["energy_window_eV"])
    draw_projection(runs, points, tmp_path / "plane.png")
    assert imread(tmp_path / "plane.png").shape[1] == 1800
    with pytest.raises(SelectronError, match="does not exist"):
        draw_projection(runs, points, tmp_path / "nowhere" / "plane.png")


def test_draw_sampling_of_points(tmp_path):
    runs = {"a": walk(160, 0), "b": walk(160, 1)}
    plain = draw_sampling(runs, tmp_path / "plain.png")
    assert plain["kind"] == "points"
    assert max(run["plane"]["coverage"] for run in plain["runs"].values()) <= 1
    given = draw_sampling(runs, tmp_path / "surface.png", surface=(X, Y, TILTED), energy_window_eV=0.7)
    for name, frames in runs.items():
        points = [atoms.positions[0, :2] for atoms in frames]
        expected = surface_coverage(points, (X, Y, TILTED), energy_window_eV=0.7)
        assert given["runs"][name]["surface"] == expected
    json.dumps(given, allow_nan=False)


def test_draw_sampling_of_a_peptide_and_of_others(tmp_path, shared_data):
    from ase.io import read

    alanine = read(shared_data / "alanine_dipeptide_vacuum.xyz")
    rng = np.random.default_rng(3)
    frames = [alanine.copy() for _ in range(30)]
    for i, atoms in enumerate(frames):
        atoms.rotate_dihedral(0, 6, 7, 8, 12.0 * i, indices=[8, 9, *range(16, 22)])
        atoms.info["step"] = i
    numbers = draw_sampling({"turn": frames}, tmp_path / "peptide.png", descriptors={"turn": rng.normal(size=(30, 5))})
    assert numbers["kind"] == "peptide"
    # 30 angles 12° apart hit 30 of the 36 bins of φ, in the one bin of ψ.
    assert_allclose(numbers["runs"]["turn"]["ramachandran"]["coverage"], 30 / 36**2)
    assert "plane" in numbers["runs"]["turn"]
    water = [Atoms("OH2", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]]) for _ in range(4)]
    others = draw_sampling({"w": water}, tmp_path / "water.png", descriptors={"w": rng.normal(size=(4, 3))})
    assert others["kind"] == "structures"
    assert draw_sampling({"w": water}, tmp_path / "bare.png")["runs"]["w"]["frames"] == 4
    with pytest.raises(SelectronError, match="do not share"):
        draw_sampling({"w": water, "points": walk(8, 0)}, tmp_path / "mixed.png")
    with pytest.raises(SelectronError, match="lack the run"):
        draw_sampling({"w": water}, tmp_path / "lack.png", descriptors={"v": rng.normal(size=(4, 3))})
    with pytest.raises(SelectronError, match="no frames"):
        draw_sampling({"w": []}, tmp_path / "none.png")
