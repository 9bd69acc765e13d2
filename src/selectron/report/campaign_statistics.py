"""How sure the comparison of two arms is, as far as the test set can tell: the bootstrap over its structures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from selectron.campaign.measuring import Predictions
    from selectron.campaign.records import ArmRecord, CampaignRecord, RoundRecord

RESAMPLES, SEED = 400, 20260611
INTERVAL = 0.95
_AT_MOST = 20_000  # structures; more say the same


class Curve(NamedTuple):
    """The learning curve of an arm with what resampling the test set makes of it.

    | field  | shape        | meaning                                                  |
    |--------|--------------|----------------------------------------------------------|
    | labels | (k,)         | labels of the arm at each measurement, 0 for the start   |
    | errors | name → (k,)  | measured errors by quantity, NaN for one not finite      |
    | draws  | name → (B, k) | the same on B resampled test sets, equal ones for all arms |
    """

    labels: np.ndarray
    errors: Mapping[str, np.ndarray]
    draws: Mapping[str, np.ndarray]

    def band(self, quantity: str) -> tuple[np.ndarray, np.ndarray]:
        """(k,) ends of the central interval of the draws."""
        tail = 50 * (1 - INTERVAL)
        low, high = np.percentile(self.draws[quantity], (tail, 100 - tail), axis=0)
        return low, high


class SavedShare(NamedTuple):
    """Share of labels that selection saved at equal error, over resampled test sets.

    ``low`` and ``high`` are the ends of the central interval of 1 − selected/random; where the random twin never reached the
    error, its label count is a lower bound and so is the share. ``open_above`` says that ``high`` is such a bound, and
    ``reached`` is the part of the resamples in which the twin reached the error at all.
    """

    low: float
    high: float
    open_above: bool
    reached: float


class Difference(NamedTuple):
    """Selected minus random at the last number of labels that both arms were measured at."""

    labels: int
    selected: float
    random: float
    low: float
    high: float

    @property
    def word(self) -> str:
        """Which arm has the lower error, where the interval leaves out zero."""
        if self.high < 0:
            return "lower with selection"
        return "lower with random picks" if self.low > 0 else "no difference beyond the spread of the test set"


def curves_of(record: CampaignRecord) -> dict[str, Curve]:
    """A curve for each arm that has been measured, over the same resampled test sets."""
    weights: dict[int, np.ndarray] = {}
    found: dict[str, Curve] = {}
    for arm in record.arms:
        points = _measured(arm)
        if points:
            found[arm.name] = _curve(points, weights)
    return found


def _measured(arm: ArmRecord) -> list[RoundRecord]:
    return [one for one in [*([arm.start] if arm.start else []), *arm.rounds] if one.test is not None]


def _curve(points: Sequence[RoundRecord], weights: dict[int, np.ndarray]) -> Curve:
    errors: dict[str, list[float]] = {}
    draws: dict[str, list[np.ndarray]] = {}
    for point in points:
        assert point.test is not None
        for name, values in resampled_errors(point.test.predictions(), weights).items():
            measured = getattr(point.test, name)
            errors.setdefault(name, []).append(np.nan if measured is None else float(measured))
            draws.setdefault(name, []).append(values)
    return Curve(
        labels=np.array([point.labels for point in points]),
        errors={name: np.array(values) for name, values in errors.items()},
        draws={name: np.stack(values, axis=1) for name, values in draws.items()},
    )


def resampled_errors(predictions: Predictions, weights: dict[int, np.ndarray]) -> dict[str, np.ndarray]:
    """(B,) errors by quantity on test sets drawn with replacement, structure by structure.

    ``weights`` keeps the draws by the size of the test set, so that all models meet the same ones.
    """
    found = predictions.errors()
    count = len(found.atoms)
    drawn = weights.setdefault(count, _draws(count))
    part = slice(0, drawn.shape[1])
    atoms = found.atoms[part].astype(float)
    per_atom = 1e3 * found.energy_errors_eV[part] / atoms
    mass, total = drawn @ atoms, drawn.sum(axis=1)
    return {
        "force_rmse_eV_A": np.sqrt(drawn @ (found.force_rmse_by_structure[part] ** 2 * atoms) / mass),
        "force_mae_eV_A": drawn @ (found.force_mae_by_structure[part] * atoms) / mass,
        "energy_rmse_meV_atom": np.sqrt(drawn @ per_atom**2 / total),
        "energy_mae_meV_atom": drawn @ np.abs(per_atom) / total,
    }


def _draws(count: int) -> np.ndarray:
    """(B, n) how often each structure stands in each resampled set; counts of the structures at most ``_AT_MOST``."""
    n = min(count, _AT_MOST)
    random = np.random.default_rng(SEED)
    return np.stack([np.bincount(random.integers(0, n, n), minlength=n) for _ in range(RESAMPLES)]).astype(float)


def saved_share(curves: Mapping[str, Curve], quantity: str) -> SavedShare | None:
    """The interval of the saved share, read as :func:`selectron.campaign.curves.saving` reads it; None without a twin.

    None too where selection lowered the error in none of the resamples.
    """
    from selectron.campaign.curves import saving

    if len(curves) < 2:
        return None
    selected, random = curves["selected"], curves["random"]
    shares, reached = [], []
    for ours, theirs in zip(selected.draws[quantity], random.draws[quantity], strict=True):
        one = saving(quantity, (selected.labels.tolist(), ours.tolist()), (random.labels.tolist(), theirs.tolist()))
        if one is None:
            continue
        other = one.at_most if one.random is None else one.random
        shares.append(1.0 - one.selected / other if other > 0 else 0.0)
        reached.append(one.random is not None)
    if not shares:
        return None
    order = np.argsort(shares, kind="stable")
    ends = [int(order[round(q * (len(order) - 1))]) for q in ((1 - INTERVAL) / 2, (1 + INTERVAL) / 2)]
    unreached = [share for share, there in zip(shares, reached, strict=True) if not there]
    open_above = bool(unreached) and np.mean([not there for there in reached]) > (1 - INTERVAL) / 2
    return SavedShare(shares[ends[0]], shares[ends[1]], bool(open_above), float(np.mean(reached)))


def difference(curves: Mapping[str, Curve], quantity: str) -> Difference | None:
    """How far apart the arms are where both were measured last with equal labels; None where they never were."""
    if len(curves) < 2:
        return None
    selected, random = curves["selected"], curves["random"]
    shared = np.intersect1d(selected.labels[selected.labels > 0], random.labels[random.labels > 0])
    if not shared.size:
        return None
    labels = int(shared[-1])
    ours, theirs = (int(np.flatnonzero(one.labels == labels)[-1]) for one in (selected, random))
    gaps = selected.draws[quantity][:, ours] - random.draws[quantity][:, theirs]
    tail = 50 * (1 - INTERVAL)
    low, high = np.percentile(gaps, (tail, 100 - tail))
    return Difference(
        labels,
        float(selected.errors[quantity][ours]),
        float(random.errors[quantity][theirs]),
        float(low),
        float(high),
    )
