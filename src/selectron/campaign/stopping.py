"""Rules by which a campaign ends, as functions of what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from selectron.config.sections import PlateauRule, TargetRule, VarianceRule
from selectron.training.evaluate import Errors

Measured = Mapping[str, float | None]


class Stop(NamedTuple):
    """Why an arm ended: the rule (budget, exhausted, oracle, target, plateau, variance, twin) and a sentence."""

    rule: str
    sentence: str


class Calibration(NamedTuple):
    """Posterior variances turned into errors.

    ``factor`` c: an error is expected to be c·s, with s² the posterior variance per component (force) or of an atom's mean
    (energy). ``expected`` is the chosen quantile of c·s over what is left to pick, in the rule's unit; ``left`` how many.
    """

    factor: float
    expected: float
    left: int


def target_reached(rule: TargetRule | None, measured: Measured | None) -> Stop | None:
    """Whether the last error on the validation set is at or below the target."""
    if rule is None or measured is None:
        return None
    value = measured[rule.quantity]
    if value is None or value > rule.below:
        return None
    return Stop(
        "target",
        f"The target is reached: {rule.quantity} is {value:.4g} on the validation set, at most {rule.below:g}.",
    )


def plateau_reached(rule: PlateauRule | None, history: Sequence[Measured | None]) -> Stop | None:
    """Whether the best error of the last rounds improved on the best before them by less than the rule asks for.

    ``history`` holds the validation errors before the first round and after each.
    """
    if rule is None or len(history) <= rule.rounds:
        return None
    values = [np.inf if one is None or one[rule.quantity] is None else float(one[rule.quantity]) for one in history]  # type: ignore[arg-type]
    before, last = min(values[: -rule.rounds]), min(values[-rule.rounds :])
    if not np.isfinite(before) or last < (1.0 - rule.improvement) * before:
        return None
    return Stop(
        "plateau",
        f"{rule.quantity} has stopped falling: {last:.4g} at best in the last {rule.rounds} rounds, {before:.4g} before them.",
    )


def structure_errors(rule: VarianceRule, errors: Errors) -> np.ndarray:
    """(n,) error of each structure in the rule's unit."""
    if rule.quantity == "force_rmse_eV_A":
        return errors.force_rmse_by_structure
    return 1e3 * np.abs(errors.energy_errors_eV) / errors.atoms


def calibrate(rule: VarianceRule, error: np.ndarray, variance: np.ndarray, left: np.ndarray) -> Calibration | None:
    """Expected errors of what is ``left`` (variances per component), from known errors and variances of a validation set.

    c² = Σ e² / Σ s²: the factor with which variances and squared errors agree on average. None where there is nothing to
    calibrate with, or nothing left.
    """
    usable = np.isfinite(error) & np.isfinite(variance) & (variance >= 0.0)
    total = float(variance[usable].sum())
    if total <= 0.0 or not len(left):
        return None
    factor = float(np.sqrt((error[usable] ** 2).sum() / total))
    expected = factor * float(np.sqrt(np.quantile(np.maximum(left, 0.0), rule.quantile)))
    return Calibration(factor, expected, len(left))


def variance_low(rule: VarianceRule | None, calibration: Calibration | None) -> Stop | None:
    """Whether the expected error of what is left to pick is below the rule's level."""
    if rule is None or calibration is None or calibration.expected > rule.below:
        return None
    return Stop(
        "variance",
        f"Nothing uncertain is left: {rule.quantity} is expected to be at most {calibration.expected:.4g} for "
        f"{100 * rule.quantile:g} % of the {calibration.left:,} structures left, below {rule.below:g}.",
    )
