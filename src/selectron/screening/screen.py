"""Screen a pool: variances of all its structures, and the batch that is worth a label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from ase import Atoms

from selectron.acquisition import (
    SELECTORS,
    PoolWeight,
    Posterior,
    Scale,
    SecondMoment,
    Shortlist,
    committee_disagreement,
)
from selectron.errors import SelectronError
from selectron.features import FeatureMap, FeatureStore, default_cache
from selectron.potentials import Committee
from selectron.screening.atoms import atom_variances, nominal_rows, resolves_atoms
from selectron.screening.catalogue import Catalogue, catalogue
from selectron.screening.picking import Picker, resolve_picks
from selectron.screening.progress import Progress, Silent
from selectron.screening.representation import label_weights, represented
from selectron.screening.result import CRITERIA, Screening
from selectron.structures import Checks, Pool, Quarantine
from selectron.structures.repeats import other_states_line

ALL_CANDIDATES_UP_TO = 20_000
"""Pools up to this size are not shortlisted unless that is asked for."""

RELATIVE_NOISE = 1e-3


def screen(
    pool: Pool,
    features: FeatureMap,
    *,
    train: Pool | None = None,
    selector: str | None = None,
    budget: int = 0,
    by_chance: float = 0.0,
    shortlist: int | None = None,
    committee: Committee | None = None,
    checks: Checks | None = None,
    quarantine: Quarantine | None = None,
    store: FeatureStore | None = None,
    train_features: FeatureMap | None = None,
    train_store: FeatureStore | None = None,
    rank_by: str = "variance",
    per_atom: bool | None = None,
    batch_size: int | None = None,
    noise: float = RELATIVE_NOISE,
    seed: int = 0,
    progress: Progress | None = None,
) -> Screening:
    """Scores every structure of ``pool`` and, where ``selector`` is named, picks ``budget`` of them.

    Two passes: the first checks the structures and computes feature rows into the store (what is there already is not
    computed again), the second streams the rows through the posterior. In memory are a few hundred bytes a structure of the
    pool, the rows of a chunk, and, while a batch is chosen, those of the candidates on the shortlist and of the training set.

    A structure that stands in the training set, or earlier in the pool, is scored but never picked; the pool's density
    that ``ipv``, ``isd``, ``irv`` and ``bait`` weigh counts each distinct structure once.

    Args:
        pool: the candidates.
        features: the feature map.
        train: structures that are labelled already.
        selector: a name of ``SELECTORS``, or None to score only.
        budget: how many to pick; a pool with fewer distinct structures gives what it has, and a note.
        by_chance: share of the budget that is drawn at random from the whole pool first; the selector counts it as labelled.
        shortlist: how many of the largest variances the selector sees; None: all, up to 20,000.
        committee: for the committee selectors.
        checks: what a structure must satisfy; None: the defaults and the elements of the model.
        quarantine: where what fails is noted; None: ``quarantine.csv`` in a temporary folder (the reasons are lost).
        store: where feature rows are kept; None: in the user's cache folder.
        train_features: the map for the training set, if another than that of the pool: the same kernel with exact rows.
        train_store: where its rows are kept; None: in the user's cache folder.
        rank_by: what structures are shortlisted by, one of :data:`CRITERIA`.
        per_atom: whether picks get the variances of their atoms, from exact force rows; None: if that is not too dear.
        batch_size: structures in a batch; None: automatic.
        noise: σ² of a row relative to the mean squared norm of a training row.
        seed: of the selector.
        progress: who is told.

    Raises SelectronError where no structure of the pool, or of the training set, can be used, and for settings that make
    no sense.
    """
    if selector is not None:
        check_selection(selector, budget, 0 if committee is None else len(committee.members), shortlist, by_chance)
    if not (math.isfinite(noise) and noise > 0.0):
        raise SelectronError(f"The noise variance is a number above 0, not {noise}.")
    if rank_by not in CRITERIA:
        raise SelectronError(f"{rank_by!r} is no criterion; there are {', '.join(CRITERIA)}.")
    if rank_by == "max-atom" and not resolves_atoms(features):
        raise SelectronError(
            "The variance of single atoms needs exact force rows: --features force-ntk --probes exact."
        )
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
            map_of_train, store_of_train = train_features or features, store
            if map_of_train.fingerprint != features.fingerprint:
                store_of_train = train_store or FeatureStore(
                    default_cache() / "features", map_of_train.fingerprint, map_of_train.dim
                )
            training = catalogue(train, map_of_train, store_of_train, label="training set", **how)  # type: ignore[arg-type]
        asked = None
        if committee is not None and selector is not None and selector.startswith("committee"):
            asked = _Disagreement(committee, selector)
        examine = asked.examine if asked else None
        candidates = catalogue(pool, features, store, label="pool", examine=examine, **how)  # type: ignore[arg-type]
        result = _score_and_pick(
            candidates,
            training,
            features,
            rank_by=rank_by,
            selector=selector,
            budget=budget,
            by_chance=by_chance,
            shortlist=shortlist,
            disagreement=asked.scores() if asked else None,
            noise=noise,
            seed=seed,
            progress=progress,
        )
        resolve_picks(result, train_features or features, per_atom)
        stores = [store] if training is None or training.store is store else [store, training.store]
        result.notes[:0] = [line for one in stores for line in one.warnings]
        return result


def default_checks(
    features: FeatureMap, committee: Committee | None = None, min_distance_A: float | None = None
) -> Checks:
    """Those of :class:`Checks`, with the elements that model and committee know; isolated atoms fail."""
    potential = getattr(features, "potential", None)
    elements = None if potential is None else potential.elements
    if committee is not None and committee.elements is not None:
        elements = committee.elements if elements is None else elements & committee.elements
    checks = Checks(elements=elements, isolated_atoms=False)
    return checks if min_distance_A is None else replace(checks, min_distance_A=min_distance_A)


def check_selection(
    selector: str, budget: int, models: int, shortlist: int | None = None, by_chance: float = 0.0
) -> None:
    """A sentence where ``selector`` cannot pick ``budget`` structures with so many models, before any work is done."""
    if selector not in SELECTORS:
        raise SelectronError(f"There is no selector {selector!r}; choose one of {', '.join(SELECTORS)}.")
    if budget < 1:
        raise SelectronError(f"The budget is the number of structures to pick, at least 1, not {budget}.")
    if shortlist is not None and shortlist < budget:
        raise SelectronError(f"A shortlist of {shortlist} is too short for a budget of {budget}.")
    if selector.startswith("committee") and models < 2:
        raise SelectronError(f"{selector} needs a committee: give --model at least twice.")
    if not 0.0 <= by_chance <= 1.0:
        raise SelectronError(f"The share by chance is a number from 0 to 1, not {by_chance}.")


def _score_and_pick(
    candidates: Catalogue,
    training: Catalogue | None,
    features: FeatureMap,
    *,
    rank_by: str,
    selector: str | None,
    budget: int,
    by_chance: float,
    shortlist: int | None,
    disagreement: np.ndarray | None,
    noise: float,
    seed: int,
    progress: Progress,
) -> Screening:
    reference = candidates if training is None else training
    scale = _scale(reference, features, noise)
    posterior = Posterior(features.dim, prior_precision=scale.prior_precision, noise_variance=scale.noise_variance)
    in_training: set[bytes] = set()
    if training is not None:
        for _, rows in training.chunks():
            posterior.update(scale.apply(rows))
        in_training = {bytes(key) for key in training.hashes}
    known = np.array([bytes(key) in in_training for key in candidates.hashes], dtype=bool)
    notes: list[str] = []
    n = len(candidates)
    result = Screening(
        candidates, training, scale, np.zeros(n), known, [], notes, features, posterior, np.full(n, np.nan), selector
    )
    weight = PoolWeight.VARIANCE if selector is None else SELECTORS[selector].weight
    weighted = None if weight is PoolWeight.VARIANCE else SecondMoment(features.dim)
    progress.start("variances", n)
    for places, rows in candidates.chunks():
        scaled = scale.apply(rows)
        variances = posterior.variance(scaled)
        result.variance[places] = variances.cpu().numpy()
        if weighted is not None:
            counted = torch.from_numpy(np.flatnonzero(candidates.first[places] & ~known[places]))
            weighted.update(weight.weighted(scaled.take(counted), variances[counted]))
        if resolves_atoms(features):
            result.max_atom[places] = [atoms.max() for atoms in atom_variances(posterior, scale, rows, features)]
        progress.advance(len(places))
    progress.finish()
    if selector is None:
        return result
    criterion = result.criterion(rank_by) if disagreement is None else disagreement
    open_places = np.flatnonzero(candidates.first & ~known)
    n_open, size = len(open_places), shortlist or max(ALL_CANDIDATES_UP_TO, budget)
    moment = candidates.moment.matrix * scale.factor**2 if weighted is None else weighted.matrix
    picker = Picker(result, seed, moment)
    drawn = round(by_chance * budget) if selector != "random" else 0
    if drawn and n_open:
        picker.draw(open_places, drawn)
        notes.append(f"{len(result.picks):,} of the picks were drawn by chance, the first ones (--by-chance).")
        open_places = np.setdiff1d(open_places, [one.place for one in result.picks])
    if selector == "random" and shortlist is None:
        # from the whole pool, whatever the variance; of a pool that is too large for memory, from a random part of it
        places = open_places
        if n_open > size:
            places = np.sort(np.random.default_rng(seed).choice(places, size, replace=False))
    else:
        best = Shortlist(size)
        best.offer(torch.from_numpy(open_places), torch.from_numpy(criterion[open_places]))
        places = np.sort(best.result().numpy())
    repeated, trained = int((~candidates.first).sum()), int((known & candidates.first).sum())
    if repeated:
        notes.append(
            f"Left out of the choice: {repeated:,} that repeat{_s(repeated)} an earlier structure of the pool."
        )
    if candidates.other_states:
        notes.append(f"{other_states_line(candidates.other_states, 'pool')}.")
    if trained:
        notes.append(f"Left out of the choice: {trained:,} that stand{_s(trained)} in the training set.")
    if len(places) < len(open_places) and selector != "random":
        notes.append(
            f"{selector} chose from the {len(places):,} structures of largest {_ranking(rank_by, disagreement)} (--shortlist)."
        )
    if len(places) and len(result.picks) < budget:
        progress.start(f"selecting with {selector}", 1)
        picker.select(places, budget - len(result.picks), criterion)
        progress.advance(1)
        progress.finish()
    if selector != "random":  # a random batch stands for its pool as it is
        counts = represented(result)
        for place, (count, label_weight) in enumerate(
            zip(counts.tolist(), label_weights(counts).tolist(), strict=True)
        ):
            result.picks[place] = result.picks[place]._replace(represents=count, weight=label_weight)
    if not n_open:
        notes.append("Nothing is left to pick: every structure of the pool stands in the training set.")
    elif len(result.picks) < budget:
        notes.append(
            f"The budget is {budget:,}, but only {len(result.picks):,} could be picked: no others are distinct."
        )
    return result


def _s(count: int) -> str:
    return "s" if count == 1 else ""


def _ranking(rank_by: str, disagreement: np.ndarray | None) -> str:
    if disagreement is not None:
        return "disagreement"
    return rank_by if rank_by == "variance" else f"{rank_by} variance"


def _scale(reference: Catalogue, features: FeatureMap, noise: float) -> Scale:
    """Scale at which the mean squared norm of a structure is 1 (:func:`selectron.acquisition.default_scale`).

    Noise belongs to a row: what counts are the rows that a structure stands for, not the probes that estimate them.
    """
    mean = float(reference.moment.matrix.trace()) / reference.moment.n_structures
    if mean <= 0.0:
        raise SelectronError("All feature rows are zero: these features cannot tell the structures apart.")
    return Scale(mean**-0.5, 1.0, noise / float(nominal_rows(features, reference.atoms[reference.first]).mean()))


class _Disagreement:
    """Collects the committee's disagreement about each structure while the pool streams by."""

    def __init__(self, committee: Committee, selector: str) -> None:
        self.committee, self.of_energy = committee, selector == "committee-energy"
        self.parts: list[np.ndarray] = []

    def examine(self, structures: list[Atoms]) -> list[str | None]:
        """The reason for each structure that the committee cannot judge; the scores of the others are kept."""
        reasons: list[str | None] = []
        for start in range(0, len(structures), 32):
            part = structures[start : start + 32]
            judged: list[tuple[np.ndarray, list[str | None]]]
            try:
                judged = [(self._judge(part), [None] * len(part))]
            except SelectronError:
                judged = [self._alone(atoms) for atoms in part]
            for scores, why in judged:
                finite = np.isfinite(scores)
                self.parts.append(scores[finite])
                reasons += [
                    why_not or (None if ok else "the committee's answer is not finite")
                    for why_not, ok in zip(why, finite, strict=True)
                ]
        return reasons

    def _alone(self, atoms: Atoms) -> tuple[np.ndarray, list[str | None]]:
        try:
            return self._judge([atoms]), [None]
        except SelectronError as error:
            return np.full(1, np.nan), [str(error)]

    def _judge(self, structures: Sequence[Atoms]) -> np.ndarray:
        said = self.committee.evaluate(structures)
        deviation = committee_disagreement(said.energies, said.forces, said.counts)
        return (deviation.energy if self.of_energy else deviation.force_max).numpy()

    def scores(self) -> np.ndarray:
        return np.concatenate(self.parts) if self.parts else np.zeros(0)
