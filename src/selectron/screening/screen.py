"""Screen a pool: variances of all its structures, and the batch that is worth a label."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from ase import Atoms

from selectron.acquisition import (
    SELECTORS,
    Posterior,
    Scale,
    SecondMoment,
    Shortlist,
    committee_disagreement,
    select_batch,
)
from selectron.errors import SelectronError
from selectron.features import FeatureMap, FeatureStore, default_cache
from selectron.potentials import Committee
from selectron.rows import Rows
from selectron.screening.catalogue import Catalogue, catalogue
from selectron.screening.progress import Progress, Silent
from selectron.structures import Checks, Pool, Quarantine, Source

ALL_CANDIDATES_UP_TO = 20_000
"""Pools up to this size are not shortlisted unless that is asked for."""

RELATIVE_NOISE = 1e-3


class Pick(NamedTuple):
    """One structure worth a label, rank 1 first.

    ``score`` is the selector's own criterion when it was picked (NaN for random), ``variance`` the posterior variance given
    the training set alone, ``nearest_training`` the source of the training structure nearest in feature space.
    """

    rank: int
    atoms: Atoms
    source: Source
    place: int
    score: float
    variance: float
    nearest_training: Source | None
    nearest_distance: float | None


@dataclass
class Screening:
    """What came out of a screening.

    | field     | meaning                                                                               |
    |-----------|---------------------------------------------------------------------------------------|
    | catalogue | the usable structures of the pool                                                     |
    | training  | those of the training set, or None                                                    |
    | variance  | (n,) posterior variance s²(x) of each, feature units squared (mean of the scale: 1)    |
    | known     | (n,) bool, the structure is in the training set too                                   |
    | picks     | the batch, best first; may be shorter than the budget (see ``notes``)                 |
    | notes     | sentences that a user should read                                                     |
    """

    catalogue: Catalogue
    training: Catalogue | None
    scale: Scale
    variance: np.ndarray
    known: np.ndarray
    picks: list[Pick]
    notes: list[str]
    features: FeatureMap
    selector: str | None = None


def screen(
    pool: Pool,
    features: FeatureMap,
    *,
    train: Pool | None = None,
    selector: str | None = None,
    budget: int = 0,
    shortlist: int | None = None,
    committee: Committee | None = None,
    checks: Checks | None = None,
    quarantine: Quarantine | None = None,
    store: FeatureStore | None = None,
    batch_size: int | None = None,
    noise: float = RELATIVE_NOISE,
    seed: int = 0,
    progress: Progress | None = None,
) -> Screening:
    """Scores every structure of ``pool`` and, where ``selector`` is named, picks ``budget`` of them.

    Two passes: the first checks the structures and computes feature rows into the store (what is there already is not
    computed again), the second streams the rows through the posterior. Memory does not grow with D times the size of the pool.

    Args:
        pool: the candidates.
        features: the feature map.
        train: structures that are labelled already.
        selector: a name of ``SELECTORS``, or None to score only.
        budget: how many to pick.
        shortlist: how many of the largest variances the selector sees; None: all, up to 20,000.
        committee: for the committee selectors.
        checks: what a structure must satisfy; None: the defaults and the elements of the model.
        quarantine: where what fails is noted; None: ``quarantine.csv`` in a temporary folder (the reasons are lost).
        store: where feature rows are kept; None: in the user's cache folder.
        batch_size: structures in a batch; None: automatic.
        noise: σ² of a row relative to the mean squared norm of a training row.
        seed: of the selector.
        progress: who is told.
    """
    if selector is not None:
        _check_selection(selector, budget, committee, shortlist)
    progress = progress or Silent()
    with ExitStack() as stack:
        if quarantine is None:
            folder = stack.enter_context(TemporaryDirectory(prefix="selectron-"))
            quarantine = stack.enter_context(Quarantine(Path(folder) / "quarantine.csv"))
        checks = checks or default_checks(features, committee)
        store = store or FeatureStore(default_cache() / "features", features.fingerprint, features.dim)
        how = {"checks": checks, "quarantine": quarantine, "progress": progress, "batch_size": batch_size}
        training = None
        if train is not None:
            training = catalogue(train, features, store, label="training set", **how)  # type: ignore[arg-type]
        asked = _Disagreement(committee, selector) if committee is not None and selector is not None else None
        watch = asked.watch if asked else None
        candidates = catalogue(pool, features, store, label="pool", watch=watch, **how)  # type: ignore[arg-type]
        return _score_and_pick(
            candidates,
            training,
            features,
            selector=selector,
            budget=budget,
            shortlist=shortlist,
            disagreement=asked.scores() if asked else None,
            noise=noise,
            seed=seed,
            progress=progress,
        )


def default_checks(
    features: FeatureMap, committee: Committee | None = None, min_distance_A: float | None = None
) -> Checks:
    """The checks of :class:`Checks` with the elements that the model (and every member of the committee) knows."""
    potential = getattr(features, "potential", None)
    elements = None if potential is None else potential.elements
    if committee is not None and committee.elements is not None:
        elements = committee.elements if elements is None else elements & committee.elements
    return Checks(elements=elements) if min_distance_A is None else Checks(elements, min_distance_A=min_distance_A)


def _check_selection(selector: str, budget: int, committee: Committee | None, shortlist: int | None) -> None:
    if selector not in SELECTORS:
        raise SelectronError(f"There is no selector {selector!r}; choose one of {', '.join(SELECTORS)}.")
    if budget < 1:
        raise SelectronError(f"The budget is the number of structures to pick, at least 1, not {budget}.")
    if shortlist is not None and shortlist < budget:
        raise SelectronError(f"A shortlist of {shortlist} is too short for a budget of {budget}.")
    if selector.startswith("committee") and committee is None:
        raise SelectronError(f"{selector} needs a committee: give --model at least twice.")


def _score_and_pick(
    candidates: Catalogue,
    training: Catalogue | None,
    features: FeatureMap,
    *,
    selector: str | None,
    budget: int,
    shortlist: int | None,
    disagreement: np.ndarray | None,
    noise: float,
    seed: int,
    progress: Progress,
) -> Screening:
    notes = []
    if training is not None and not len(training):
        notes.append("None of the training set is usable, so variances are those of the prior.")
        training = None
    reference = candidates if training is None else training
    scale = _scale(reference.moment, noise)
    train_rows = None
    if training is not None:
        train_rows = scale.apply(training.rows(slice(None)))
    posterior = Posterior(features.dim, prior_precision=scale.prior_precision, noise_variance=scale.noise_variance)
    if train_rows is not None:
        posterior.update(train_rows)
    in_training = set() if training is None else {bytes(key) for key in training.hashes}
    known = np.array([bytes(key) in in_training for key in candidates.hashes], dtype=bool)
    result = Screening(candidates, training, scale, np.zeros(len(candidates)), known, [], notes, features, selector)
    open_places = candidates.first & ~known
    size = shortlist or max(ALL_CANDIDATES_UP_TO, budget)
    best = Shortlist(max(size, 1))
    progress.start("variances", len(candidates))
    for places, rows in candidates.chunks():
        variance = posterior.variance(scale.apply(rows))
        result.variance[places] = variance.numpy()
        criterion = variance if disagreement is None else torch.from_numpy(disagreement[places])
        keep = torch.from_numpy(open_places[places])
        best.offer(torch.from_numpy(places)[keep], criterion[keep])
        progress.advance(len(places))
    progress.finish()
    if selector is None:
        return result
    # a random pick is one from the whole pool, whatever its variance
    places = (
        np.flatnonzero(open_places) if selector == "random" and shortlist is None else np.sort(best.result().numpy())
    )
    repeated, trained = int((~candidates.first).sum()), int((known & candidates.first).sum())
    if repeated:
        notes.append(f"{repeated} structures of the pool are exact repeats of earlier ones and were not considered.")
    if trained:
        notes.append(f"{trained} structures of the pool are in the training set and were not considered.")
    if len(places) < int(open_places.sum()):
        notes.append(f"{selector} chose from the {len(places)} structures of largest variance (--shortlist).")
    if len(places):
        _pick(result, places, train_rows, posterior, budget, disagreement, seed, progress)
    if len(result.picks) < budget:
        notes.append(f"The budget is {budget}, but only {len(result.picks)} different structures could be picked.")
    return result


def _pick(
    result: Screening,
    places: np.ndarray,
    train_rows: Rows | None,
    posterior: Posterior,
    budget: int,
    disagreement: np.ndarray | None,
    seed: int,
    progress: Progress,
) -> None:
    candidates, scale = result.catalogue, result.scale
    assert result.selector is not None
    progress.start(f"selecting with {result.selector}", 1)
    rows = scale.apply(candidates.rows(places))
    scores = result.variance if disagreement is None else disagreement
    selection = select_batch(
        result.selector,
        rows,
        train=train_rows,
        budget=budget,
        prior_precision=scale.prior_precision,
        noise_variance=scale.noise_variance,
        pool_second_moment=candidates.moment.matrix * scale.factor**2,
        variances=torch.from_numpy(scores[places]),
        seed=seed,
    )
    chosen = selection.indices.cpu()
    near, distance = _nearest(rows.take(chosen), train_rows)
    for rank, (at, score) in enumerate(zip(chosen.tolist(), selection.scores.tolist(), strict=True), start=1):
        place = int(places[at])
        index = int(candidates.indices[place])
        nearest = None
        if result.training is not None and near is not None:
            nearest = result.training.pool.source(int(result.training.indices[int(near[rank - 1])]))
        result.picks.append(
            Pick(
                rank=rank,
                atoms=candidates.pool[index],
                source=candidates.pool.source(index),
                place=place,
                score=float(score),
                variance=float(result.variance[place]),
                nearest_training=nearest,
                nearest_distance=None if distance is None else float(distance[rank - 1]),
            )
        )
    progress.advance(1)
    progress.finish()


def _nearest(picks: Rows, train: Rows | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Index of and distance to the training structure nearest to each pick, rows of a structure summed."""
    if train is None or not picks.n_structures:
        return None, None

    def pooled(rows: Rows) -> torch.Tensor:
        out = torch.zeros(rows.n_structures, rows.dim, dtype=torch.float64)
        return out.index_add_(0, rows.owner, rows.values.to(torch.float64))

    distance = torch.cdist(pooled(picks), pooled(train))
    return distance.argmin(dim=1), distance.amin(dim=1)


def _scale(moment: SecondMoment, noise: float) -> Scale:
    """Scale at which the mean squared norm of a structure is 1 (:func:`selectron.acquisition.default_scale`)."""
    if not moment.n_structures:
        return Scale(1.0, 1.0, noise)
    mean = float(moment.matrix.trace()) / moment.n_structures
    if mean <= 0.0:
        raise SelectronError("All feature rows are zero: these features cannot tell the structures apart.")
    return Scale(mean**-0.5, 1.0, noise * moment.n_structures / moment.n_rows)


class _Disagreement:
    """Collects the committee's disagreement about each structure while the pool streams by."""

    def __init__(self, committee: Committee, selector: str) -> None:
        self.committee, self.of_energy = committee, selector == "committee-energy"
        self.parts: list[np.ndarray] = []

    def watch(self, places: np.ndarray, structures: Sequence[Atoms]) -> None:
        for start in range(0, len(places), 32):
            said = self.committee.evaluate(structures[start : start + 32])
            deviation = committee_disagreement(said.energies, said.forces, said.counts)
            self.parts.append((deviation.energy if self.of_energy else deviation.force_max).numpy())

    def scores(self) -> np.ndarray:
        return np.concatenate(self.parts) if self.parts else np.zeros(0)
