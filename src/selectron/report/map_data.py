"""What the two pictures of a selection are drawn from, and which points a large pool may show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from ase import Atoms

from selectron.errors import SelectronError

KINDS = ("pool", "train", "pick")


@dataclass
class FeatureMapData:
    """Pool, training set and picks in the plane of a projection, with what each point is.

    | field         | shape            | meaning                                                                     |
    |---------------|------------------|-----------------------------------------------------------------------------|
    | coordinates   | (n, 2)           | position in the plane, ``Projection.transform``                             |
    | kind          | (n,)             | "pool", "train" or "pick"; a structure picked from the pool is "pick" only  |
    | variance      | (n,)             | posterior variance in feature units squared; NaN where none was computed    |
    | rank          | (n,)             | order of the pick, as written to the picks file; −1 if not a pick           |
    | structures    | n ``Atoms``      | shown in 3-D; may be empty when only the PNG is drawn                       |
    | labels        | n strings        | where each structure comes from, for example ``pool.extxyz 17``             |
    | explained     | (2,)             | fraction of the feature variance along each axis                            |
    | title         | string           | headline of both pictures                                                   |
    | subtitle      | string           | the facts of the run: features, selector, model, budget                     |
    | extra         | name → (n,)      | further properties a structure, numbers or strings                          |
    | atom_variance | n arrays (N_i,)  | share of the variance that each atom carries; colours the atoms in 3-D      |
    | pool_name     | string           | what the HTML page calls the structures of kind "pool"                      |

    Raises ``SelectronError`` when the lengths disagree or a kind is unknown.
    """

    coordinates: np.ndarray
    kind: np.ndarray
    variance: np.ndarray
    rank: np.ndarray
    structures: Sequence[Atoms]
    labels: Sequence[str]
    explained: np.ndarray
    title: str = "selectron select"
    subtitle: str = ""
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)
    atom_variance: Sequence[np.ndarray] | None = None
    pool_name: str = "pool"

    def __post_init__(self) -> None:
        """Bring the arrays to NumPy and check that they describe the same points."""
        self.coordinates = np.asarray(self.coordinates, dtype=np.float64).reshape(-1, 2)
        self.kind = np.asarray(self.kind, dtype=str)
        self.variance = np.asarray(self.variance, dtype=np.float64)
        self.rank = np.asarray(self.rank, dtype=np.int64)
        self.explained = np.asarray(self.explained, dtype=np.float64)
        self.extra = {name: np.asarray(values) for name, values in (self.extra or {}).items()}
        n = len(self)
        if n == 0:
            raise SelectronError("A feature map needs at least one structure.")
        lengths = {"kind": len(self.kind), "variance": len(self.variance), "rank": len(self.rank)}
        lengths |= {"labels": len(self.labels)} | {name: len(values) for name, values in self.extra.items()}
        if len(self.structures):
            lengths["structures"] = len(self.structures)
        if self.atom_variance is not None:
            lengths["atom_variance"] = len(self.atom_variance)
        wrong = [f"{name} has {length}" for name, length in lengths.items() if length != n]
        if wrong:
            raise SelectronError(f"A feature map of {n} points needs {n} entries everywhere; {', '.join(wrong)}.")
        unknown = sorted(set(self.kind) - set(KINDS))
        if unknown:
            raise SelectronError(f"Kinds of points are pool, train and pick; got {', '.join(unknown)}.")

    def __len__(self) -> int:
        return len(self.coordinates)

    def of_kind(self, kind: str) -> np.ndarray:
        """Indices of the points of one kind; picks in the order of their rank."""
        found = np.flatnonzero(self.kind == kind)
        return found[np.argsort(self.rank[found], kind="stable")] if kind == "pick" else found

    def take(self, indices: np.ndarray) -> FeatureMapData:
        """The points ``indices``, in that order."""
        chosen = [int(i) for i in indices]
        return FeatureMapData(
            coordinates=self.coordinates[chosen],
            kind=self.kind[chosen],
            variance=self.variance[chosen],
            rank=self.rank[chosen],
            structures=[self.structures[i] for i in chosen] if len(self.structures) else [],
            labels=[self.labels[i] for i in chosen],
            explained=self.explained,
            title=self.title,
            subtitle=self.subtitle,
            extra={name: values[chosen] for name, values in self.extra.items()},
            atom_variance=None if self.atom_variance is None else [self.atom_variance[i] for i in chosen],
            pool_name=self.pool_name,
        )


def variance_scale(data: FeatureMapData) -> tuple[float, float, bool]:
    """Smallest and largest variance to colour by, and whether to colour by its logarithm.

    Pool and picks set the range; the training set does so only where they have no variance. The scale is logarithmic
    when the range spans more than a decade. Without any finite variance the range is (nan, nan).
    """
    for chosen in (data.kind != "train", np.ones(len(data), dtype=bool)):
        values = data.variance[chosen & np.isfinite(data.variance)]
        if values.size:
            positive = values[values > 0]
            if positive.size and positive.max() > 10 * positive.min():
                return float(positive.min()), float(positive.max()), True
            return float(values.min()), float(values.max()), False
    return float("nan"), float("nan"), False


def spread_over_variance(variance: np.ndarray, count: int) -> np.ndarray:
    """Indices of at most ``count`` entries, evenly spaced in the order of their variance (NaN counts as largest).

    Every quantile of the variance keeps its share of points, the smallest and the largest value included.
    """
    n = len(variance)
    if n <= count:
        return np.arange(n)
    order = np.argsort(variance, kind="stable")
    places = np.unique(np.linspace(0, n - 1, count).round().astype(int)) if count > 1 else np.full(count, n - 1)
    return np.sort(order[places])


def points_to_show(data: FeatureMapData, limit: int = 2000) -> np.ndarray:
    """Indices of at most ``limit`` points, drawn in this order: pool, training set, picks on top.

    All picks stay, whatever their number. Of what is left, the training set takes up to a third, evenly spaced in the
    order given, and the pool the rest, evenly spaced over its variance.
    """
    pool, train, picks = (data.of_kind(kind) for kind in KINDS)
    room = max(limit - len(picks), 0)
    room_train = min(len(train), max(room // 3, room - len(pool)))
    if room_train < len(train):
        train = train[np.unique(np.linspace(0, len(train) - 1, room_train).round().astype(int))]
    pool = pool[spread_over_variance(data.variance[pool], room - len(train))]
    return np.concatenate([pool, train, picks])
