"""Traces show what the frames hold: lines that break where particles change, and limits that outliers do not set."""

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from numpy.testing import assert_allclose, assert_array_equal

from selectron.errors import SelectronError
from selectron.report.panels import columns_for, make_sheet
from selectron.report.samples import samples_of
from selectron.report.traces import (
    broken_line,
    draw_traces,
    energies_above_lowest,
    running_median,
    step_limits,
    trace_bands,
    trace_numbers,
    value_limits,
)


def frame(**info) -> Atoms:
    atoms = Atoms("H", [[0.0, 0, 0]])
    atoms.info = info
    return atoms


def trajectory(steps: int, particles: int = 2, offset: float = 0.0) -> list[Atoms]:
    rng = np.random.default_rng(steps)
    return [
        frame(step=s, particle=p, ensemble=0, energy_eV=offset + rng.random(), bias_norm=1.0 / (1 + s))
        for p in range(particles)
        for s in range(steps)
    ]


def test_frames_of_a_file_come_back(tmp_path):
    frames = [
        frame(step=0, particle=1, ensemble=2, energy_eV=-1.5, bias_norm=np.nan, temperature_K=300.0, method="skmd"),
        frame(step=5, particle=0, ensemble=2, energy_eV=-1.0, stopping_reason="bias norm below 0.5", acquired=True),
        frame(step=6, particle=0, ensemble=2, energy_eV=-1.0, stopping_reason="exploded", acquired=False),
        frame(step=7, particle=0, ensemble=2, energy_eV=-1.0, stopping_reason="fixed-steps"),
    ]
    write(tmp_path / "run.extxyz", frames)
    run = samples_of("run", read(tmp_path / "run.extxyz", ":"))
    assert_array_equal(run.step, [0, 5, 6, 7])
    assert_array_equal(run.particle, [1, 0, 0, 0])
    assert_array_equal(run.acquired, [False, True, False, True])
    assert_array_equal(np.isnan(run.uncertainty), True)
    assert run.reason == ("", "bias norm below 0.5", "exploded", "fixed-steps")
    assert [(e, p, list(i)) for e, p, i in run.trajectories()] == [(2, 0, [1, 2, 3]), (2, 1, [0])]
    numbers = trace_numbers(run)
    assert numbers["acquired"] == 2
    assert numbers["stopping_reasons"] == {"bias norm below 0.5": 1, "exploded": 1, "fixed-steps": 1}
    assert "mean_bias_norm" not in numbers


def test_an_empty_reason_written_by_ase_is_no_acquisition(tmp_path):
    write(tmp_path / "run.extxyz", [frame(step=1, particle=0, stopping_reason="", method="skmd")])
    run = samples_of("run", [read(tmp_path / "run.extxyz")])
    assert run.reason == ("",)
    assert not run.acquired.any()


def test_bare_frames_and_bad_entries():
    atoms = Atoms("H", [[0.0, 0, 0]])
    atoms.calc = SinglePointCalculator(atoms, energy=-3.0)
    run = samples_of("bare", [atoms, Atoms("H")])
    assert_array_equal(run.step, [0, 1])
    assert_array_equal(run.energy_eV, [-3.0, np.nan])
    with pytest.raises(SelectronError, match="temperature_K"):
        samples_of("bad", [frame(temperature_K="hot")])


def test_lines_break_where_a_particle_starts_anew():
    step = np.array([0.0, 10, 20, 0, 10, 20, 500, 510])
    x, y = broken_line(step, np.arange(8.0))
    assert_array_equal(np.isnan(x), np.isnan(y))
    pieces = [len(piece) for piece in np.split(y, np.flatnonzero(np.isnan(y)))]
    assert pieces == [3, 4, 3]
    assert_array_equal(y[~np.isnan(y)], np.arange(8.0))


def test_limits_hold_the_bulk_and_the_threshold():
    rng = np.random.default_rng(0)
    bulk = rng.normal(5, 1, 2000)
    low, high, logarithmic = value_limits([bulk, np.array([np.nan, 1e9])], threshold=12.0)
    assert not logarithmic
    assert low < bulk.min()
    assert 12.0 < high < 20
    # All values, when the tail is short.
    assert value_limits([bulk])[1] > bulk.max()
    decades = 10 ** rng.uniform(-3, 2, 500)
    assert value_limits([decades])[2]
    assert not value_limits([np.append(decades, 0.0)])[2]
    low, high, _ = value_limits([np.full(5, 300.0)])
    assert low < 300 < high


def test_energies_are_counted_from_the_lowest_where_totals_hide_them():
    near = [samples_of(name, trajectory(50, offset=-13000.0 + shift)) for name, shift in (("a", 0.0), ("b", 2.0))]
    shifted, changed = energies_above_lowest(near)
    assert changed
    assert min(run.energy_eV.min() for run in shifted) == 0
    # One reference for both: their difference stays.
    difference = near[1].energy_eV.mean() - near[0].energy_eV.mean()
    assert_allclose(shifted[1].energy_eV.mean() - shifted[0].energy_eV.mean(), difference, atol=1e-9)
    other = [near[0], samples_of("c", trajectory(50, offset=-2000.0))]
    assert [run.energy_eV.min() for run in energies_above_lowest(other)[0]] == [0, 0]
    surface = [samples_of("s", trajectory(50))]
    assert not energies_above_lowest(surface)[1]


def test_running_median_ignores_gaps_and_a_wild_particle():
    step = np.tile(np.arange(100.0), 5)
    value = np.repeat([1.0, 2.0, 3.0, 4.0, 1e6], 100)
    value[::7] = np.nan
    x, y = running_median(step, value, intervals=10)
    assert len(x) == 10
    assert (np.diff(x) > 0).all()
    assert_allclose(y, 3.0, atol=1.01)


def test_steps_are_shared_unless_one_run_is_far_longer():
    short, middle, long = (samples_of(str(n), trajectory(n)) for n in (20, 60, 400))
    assert step_limits([short, middle]) == (0, 59)
    assert step_limits([short, long]) is None


def test_a_line_a_particle_and_a_ring_an_acquisition(tmp_path):
    frames = trajectory(30, particles=3)
    for i in (10, 45, 80):
        frames[i].info |= {"acquired": True, "stopping_reason": "fixed-steps"}
    run = samples_of("run", frames)
    columns = columns_for(1)
    bands = trace_bands([run], columns, thresholds={"bias_norm": 0.2})
    figure = make_sheet(columns=columns, title="", facts="", legend=[], bands=bands)
    bias = figure.axes[0]
    assert len(bias.lines) == 1 + 3  # threshold and particles
    assert_allclose(bias.lines[0].get_ydata(), 0.2)
    rings = bias.collections[0].get_offsets()
    assert_allclose(rings, np.stack([run.step, run.bias_norm], axis=1)[[10, 45, 80]])
    cumulative = next(axes for axes in figure.axes if axes.get_ylabel() == "acquired up to step")
    assert cumulative.lines[0].get_ydata().max() == 3
    numbers = draw_traces([run], tmp_path / "traces.png", thresholds={"bias_norm": 0.2})
    assert numbers["run"]["stopping_reasons"] == {"fixed-steps": 3}
    assert (tmp_path / "traces.png").stat().st_size > 10_000
