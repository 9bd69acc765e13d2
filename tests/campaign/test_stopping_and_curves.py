"""Stopping rules and the comparison of two learning curves, on numbers that are known."""

import numpy as np
import pytest

from selectron.campaign.curves import labels_to_reach, saving
from selectron.campaign.stopping import calibrate, plateau_reached, target_reached, variance_low
from selectron.config.sections import PlateauRule, TargetRule, VarianceRule


def measured(*values):
    return [None if value is None else {"force_rmse_eV_A": value} for value in values]


def test_target():
    rule = TargetRule(below=0.1)
    assert target_reached(rule, measured(0.11)[0]) is None
    assert target_reached(rule, measured(0.1)[0]).rule == "target"
    assert target_reached(rule, {"force_rmse_eV_A": None}) is None
    assert target_reached(None, measured(0.0)[0]) is None


@pytest.mark.parametrize(
    ("errors", "stops"),
    [
        ([1.0, 0.9, 0.8, 0.7], False),
        ([1.0, 0.5, 0.499, 0.498], True),
        ([1.0, 0.5, 0.6, 0.7], True),
        ([1.0, 0.5, 0.6, 0.4], False),
        ([1.0, 0.5, 0.5], False),  # too early to tell: the best before the last two is that of the pretrained model
        ([1.0, None, None, None], True),
        ([None, 1.0, 0.9], False),
    ],
)
def test_plateau(errors, stops):
    rule = PlateauRule(rounds=2, improvement=0.02)
    assert (plateau_reached(rule, measured(*errors)) is not None) is stops


def test_plateau_needs_more_rounds_than_it_looks_back_on():
    assert plateau_reached(PlateauRule(rounds=3), measured(1.0, 1.0, 1.0)) is None
    assert plateau_reached(PlateauRule(rounds=3), measured(1.0, 1.0, 1.0, 1.0)) is not None


def test_calibrated_variances_expect_the_errors_they_were_made_from():
    random = np.random.default_rng(0)
    variance = random.gamma(2.0, 0.5, 4000)
    error = 0.3 * np.sqrt(variance) * np.abs(random.standard_normal(4000))  # rms of |N(0,1)| is 1
    rule = VarianceRule(below=0.5, quantile=1.0)
    found = calibrate(rule, error, variance, np.array([0.1, 4.0]))
    assert found.factor == pytest.approx(0.3, rel=0.05)
    assert found.expected == pytest.approx(found.factor * 2.0)
    assert variance_low(rule, found) is None
    low = calibrate(rule, error, variance, np.array([0.1, 0.2]))
    assert variance_low(rule, low).rule == "variance"
    # units of the features do not matter
    again = calibrate(rule, error, 7.0 * variance, 7.0 * np.array([0.1, 4.0]))
    assert again.expected == pytest.approx(found.expected)
    assert calibrate(rule, error, np.zeros(4000), np.array([0.1])) is None
    assert calibrate(rule, error, variance, np.array([])) is None


def test_labels_at_equal_error_between_two_measurements():
    # errors fall as exp(−n/100): linear in the logarithm, so that interpolation is exact
    labels = [0, 50, 150, 200]
    errors = [float(np.exp(-n / 100)) for n in labels]
    assert labels_to_reach(labels, errors, np.exp(-1.2)) == pytest.approx(120.0)
    assert labels_to_reach(labels, errors, 1.0) == 0.0
    assert labels_to_reach(labels, errors, np.exp(-2.0)) == pytest.approx(200.0)
    assert labels_to_reach(labels, errors, 0.1) is None
    assert labels_to_reach([0, 10, 20], [1.0, None, 0.5], 0.5) == 20.0
    # an error that rises again does not move where it was first reached, and the way down starts where the rise ends
    assert labels_to_reach([0, 10, 20], [1.0, 0.4, 0.9], 0.5) == pytest.approx(10 * np.log(2) / np.log(2.5))
    assert 20.0 < labels_to_reach([0, 10, 20, 30], [1.0, 0.6, 0.9, 0.5], 0.55) < 30.0


def test_what_was_saved_is_told_as_it_is():
    selected = ([0, 20, 40], [1.0, 0.6, 0.4])
    behind = saving("force_rmse_eV_A", selected, ([0, 20, 40, 80], [1.0, 0.8, 0.6, 0.4]))
    assert (behind.selected, behind.random) == (40.0, 80.0)
    assert "50 % saved" in behind.sentence
    never = saving("force_rmse_eV_A", selected, ([0, 20, 40], [1.0, 0.8, 0.6]))
    assert never.random is None
    assert "did not reach it with 40" in never.sentence
    assert never.random_best == 0.6
    assert never.selected_at_random_best == pytest.approx(20.0)
    assert "had reached with 20" in never.sentence
    ahead = saving("energy_mae_meV_atom", selected, ([0, 20, 40], [1.0, 0.4, 0.3]))
    assert ahead.random == 20.0
    assert "nothing saved" in ahead.sentence
    worse = saving("force_rmse_eV_A", ([0, 20], [1.0, 1.2]), ([0, 20], [1.0, 0.9]))
    assert "pretrained" in worse.sentence
    assert saving("force_rmse_eV_A", ([0], [None]), ([0], [1.0])) is None
