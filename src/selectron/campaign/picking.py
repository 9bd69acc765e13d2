"""Which structures are labelled next: by a selector on the posterior of the round's model, or by chance."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from selectron.campaign.candidates import Candidates, Index, PoolPart
from selectron.campaign.context import RANDOM, Campaign, bare
from selectron.campaign.inputs import Inputs
from selectron.campaign.measuring import Predictions, finite
from selectron.campaign.plane import place_others, plane_of
from selectron.campaign.state import Stage, digest
from selectron.campaign.stopping import calibrate, structure_errors, variance_low
from selectron.features import FeatureMap, FeatureOptions, FeatureStore, make_features
from selectron.screening import Screening, screen
from selectron.screening.atoms import nominal_rows
from selectron.structures import WEIGHT_KEY, Checks, Pool, Source

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True)
class Request:
    """What is to be picked.

    ``labelled`` are the artifacts of the arm's labelled structures so far, ``failed`` hashes that the oracle could not
    label, ``validation_errors`` the artifact of the model's predictions on the validation set.
    """

    arm: str
    round: int
    attempt: int
    wanted: int
    model: str
    labelled: tuple[str, ...]
    failed: tuple[str, ...]
    candidates: Candidates
    validation_errors: str | None = None


class WholeChunks(FeatureStore):
    """A store whose rows come in whole chunks of structures or not at all.

    Rows depend, in their last digits, on the batch they were computed in. A chunk of which some rows are missing is
    therefore computed as a whole again, in the same batches, so that an interruption leaves no trace in the numbers.
    """

    def known(self, hashes: Sequence[str]) -> set[str]:
        """All of ``hashes``, or none of them."""
        found = super().known(hashes)
        return found if found.issuperset(hashes) else set()


def pick(campaign: Campaign, inputs: Inputs, request: Request) -> Stage:
    """The stage that picks; its output has ``picks`` (best first), ``structures`` (their artifact), and ``left``.

    ``left`` describes the posterior variances of what may still be picked, and ``stop`` is the rule on them, where it fires.
    ``plane`` is the artifact of the :class:`selectron.campaign.plane.Plane` that the map of a report is drawn from.
    """
    config = campaign.config
    campaign.reporter.stage("pick", request.arm, request.round)
    asked: dict[str, Any] = {
        "inputs": inputs.key,
        "candidates": request.candidates.table,
        "attempt": request.attempt,
        "wanted": request.wanted,
        "labelled": list(request.labelled),
        "failed": list(request.failed),
        "seed": config.seed,
    }
    if request.arm != RANDOM:
        asked |= {
            "model": request.model,
            "features": config.features.model_dump(mode="json"),
            "selector": config.selector.model_dump(mode="json"),
            "device": config.model.device,
            "dtype": config.model.dtype,
            "rule": config.stop.variance.model_dump(mode="json") if config.stop.variance else None,
            "validation_errors": request.validation_errors,
        }
    run = _by_chance if request.arm == RANDOM else _by_selector
    return campaign.state.stage(
        "pick", asked, lambda: run(campaign, inputs, request), arm=request.arm, round=request.round
    )


def _by_chance(campaign: Campaign, inputs: Inputs, request: Request) -> dict[str, Any]:
    """The next structures in one random order of all candidates, which is the same for all rounds."""
    index, pool = _open(campaign, request)
    gone = {atoms.info["hash"] for atoms in campaign.read(request.labelled)} | set(request.failed)
    gone |= _hashes_of_train(campaign, inputs)
    # the order is drawn over all candidates, so that it is the same in all rounds
    order = np.random.default_rng([campaign.config.seed, 1]).permutation(len(index))
    left = index.take(order).without(gone)
    picks = [
        _entry(place + 1, int(left.places[place]), left.hash(place), pool, request)
        for place in range(min(request.wanted, len(left)))
    ]
    return _kept(campaign, request, pool, picks) | {"left": {"structures": len(left)}, "stop": None, "notes": []}


def _hashes_of_train(campaign: Campaign, inputs: Inputs) -> set[str]:
    from selectron.structures import structure_hash

    return {structure_hash(atoms) for atoms in campaign.read([inputs.train] if inputs.train else [])}


def _by_selector(campaign: Campaign, inputs: Inputs, request: Request) -> dict[str, Any]:
    config = campaign.config
    index, whole = _open(campaign, request)
    index = index.without(request.failed)
    part = PoolPart(whole, index.places)
    known = [name for name in (inputs.train, *request.labelled) if name is not None]
    train = Pool.open([campaign.artifacts.whole(name) for name in known]) if known else None
    features, train_features = _feature_maps(campaign, request.model)
    folder = _scratch_for(campaign, request)
    checks = Checks(elements=None, min_distance_A=0.0)  # what is here was checked when it was read
    with (
        closing(WholeChunks(folder, features.fingerprint, features.dim)) as store,
        closing(WholeChunks(folder, train_features.fingerprint, train_features.dim)) as train_store,
    ):
        options: dict[str, Any] = {
            "train": train,
            "train_features": train_features,
            "train_store": train_store,
            "store": store,
            "checks": checks,
            "batch_size": None if config.features.batch_size == "auto" else config.features.batch_size,
            "noise": config.selector.noise,
            "progress": campaign.reporter,
        }
        screening = screen(
            part,
            features,
            selector=config.selector.name,
            budget=request.wanted,
            by_chance=config.selector.by_chance,
            shortlist=config.selector.shortlist and max(config.selector.shortlist, request.wanted),
            rank_by=config.selector.rank_by,
            per_atom=False,
            seed=config.seed + request.round,
            **options,
        )
        left = np.flatnonzero(screening.catalogue.first & ~screening.known)
        facts, stop = _what_is_left(campaign, inputs, request, screening, left, features, options)
        plane = plane_of(screening, {atoms.info["hash"] for atoms in campaign.read(request.labelled)})
    picks = []
    for one in screening.picks:
        place = int(screening.catalogue.indices[one.place])
        entry = _entry(one.rank, int(index.places[place]), index.hash(place), whole, request)
        entry |= finite({"score": one.score, "variance": one.variance, "distance": one.nearest_distance})
        entry |= {"represents": one.represents, "weight": one.weight}
        entry["nearest"] = _origin(campaign, known, one.nearest_training)
        picks.append(entry)
    return _kept(campaign, request, whole, [] if stop else picks) | {
        "left": facts,
        "stop": stop,
        "notes": screening.notes,
        "plane": None if plane is None else campaign.artifacts.put(plane.write, ".npz"),
    }


def place_picks(campaign: Campaign, *, round: int, plane: str, model: str, picks: Sequence[str]) -> Stage:
    """The stage that puts picks into ``plane`` that its screening did not see: those of the twin, and failed ones.

    ``model`` is that of the screening, ``picks`` are artifacts of picked structures, of both arms.
    """
    config = campaign.config
    asked = {
        "plane": plane,
        "model": model,
        "picks": list(picks),
        "features": config.features.model_dump(mode="json"),
        "seed": config.seed,
        "device": config.model.device,
        "dtype": config.model.dtype,
    }
    campaign.reporter.stage("map", "", round)
    return campaign.state.stage(
        "map",
        asked,
        lambda: place_others(campaign, plane, _feature_maps(campaign, model)[0], campaign.read(picks)),
        round=round,
    )


def _what_is_left(
    campaign: Campaign,
    inputs: Inputs,
    request: Request,
    screening: Screening,
    left: np.ndarray,
    features: FeatureMap,
    options: dict[str, Any],
) -> tuple[dict[str, Any], dict[str, str] | None]:
    """Quantiles of the posterior variance of what may be picked, and whether the rule on it ends the campaign."""
    rule = campaign.config.stop.variance
    facts: dict[str, Any] = {"structures": len(left)}
    if len(left):
        facts["variance"] = dict(
            zip(map(str, QUANTILES), np.quantile(screening.variance[left], QUANTILES).tolist(), strict=True)
        )
    if rule is None or options["train"] is None or inputs.validation is None or request.validation_errors is None:
        return facts, None
    held = Pool.open([campaign.artifacts.whole(inputs.validation)])
    reference = screen(held, features, **options)
    errors = Predictions.read(campaign.artifacts.whole(request.validation_errors)).errors()
    # what the store found not finite has no variance, and no say
    judged = reference.catalogue.indices
    atoms = rule.quantity == "energy_rmse_meV_atom"
    calibration = calibrate(
        rule,
        structure_errors(rule, errors)[judged],
        _mean_variance(reference, np.arange(len(reference.catalogue)), per_atom=atoms),
        _mean_variance(screening, left, per_atom=atoms),
    )
    if calibration is not None:
        facts["calibration"] = calibration._asdict()
    stop = variance_low(rule, calibration)
    return facts, None if stop is None else stop._asdict()


def _mean_variance(screening: Screening, places: np.ndarray, *, per_atom: bool) -> np.ndarray:
    """Variance of a force component, or of the energy an atom: of one row of summed features, over the square of N."""
    atoms = screening.catalogue.atoms[places]
    if not per_atom:
        components = (
            nominal_rows(screening.features, atoms) if hasattr(screening.features, "nominal_rows") else 3 * atoms
        )
        return screening.variance[places] / components
    return screening.variance[places] / atoms.astype(float) ** 2


def _feature_maps(campaign: Campaign, model: str) -> tuple[FeatureMap, FeatureMap]:
    """The map of the pool and that of the training set, on the model of the round."""
    config = campaign.config
    potential = campaign.potential(model)
    chosen = config.features
    options = FeatureOptions(
        dim=chosen.dim,
        parameters=chosen.parameters,
        normalise=chosen.normalise,
        seed=config.seed,
        probes=chosen.probes,
        energy_weight=chosen.energy_weight,
        force_weight=chosen.force_weight,
    )
    features = make_features(chosen.name, potential, options)
    if not hasattr(features, "probes"):
        return features, features
    return features, make_features(chosen.name, potential, options._replace(probes=chosen.train_probes))


def _scratch_for(campaign: Campaign, request: Request) -> Path:
    """The folder of this model's feature rows; those of other models are removed, nobody asks for them again."""
    settings = campaign.config.features.model_dump(mode="json")
    name = digest({"arm": request.arm, "round": request.round, "model": request.model, "features": settings})[:16]
    parent = campaign.scratch / "features"
    parent.mkdir(parents=True, exist_ok=True)
    for other in parent.iterdir():
        if other.name != name:
            shutil.rmtree(other, ignore_errors=True)
    return parent / name


def _open(campaign: Campaign, request: Request) -> tuple[Index, Pool]:
    """The candidates, and the pool that they are in."""
    assert request.candidates.table is not None
    index = Index.read(campaign.artifacts.whole(request.candidates.table))
    return index, campaign.pool(request.candidates.files)


def _entry(rank: int, place: int, key: str, pool: Pool, request: Request) -> dict[str, Any]:
    named = request.candidates.named
    source = Source(named, place) if named else pool.source(place)
    return {
        "rank": rank,
        "place": place,
        "hash": key,
        "source": source.path,
        "source_index": source.index,
        "score": None,
        "variance": None,
        "nearest": None,
        "distance": None,
        "represents": None,
        "weight": 1.0,
    }


def _origin(campaign: Campaign, known: Sequence[str], nearest: Source | None) -> dict[str, Any] | None:
    """Where the training structure ``nearest``, found in an artifact, came from; ``round`` 0 is before the campaign."""
    if nearest is None:
        return None
    names = {str(campaign.artifacts.path(name)): name for name in known}
    info = campaign.read([names[nearest.path]])[nearest.index].info
    return {"source": info["source"], "index": int(info["source_index"]), "round": int(info.get("round", 0))}


def _kept(campaign: Campaign, request: Request, pool: Pool, picks: list[dict[str, Any]]) -> dict[str, Any]:
    structures = []
    for entry in picks:
        original = pool[entry["place"]]
        entry["formula"], entry["atoms"] = original.get_chemical_formula(), len(original)
        facts = {key: entry[key] for key in ("hash", "source", "source_index", "rank")}
        if entry["weight"] != 1.0:
            facts[WEIGHT_KEY] = entry["weight"]
        structures.append(bare(original, **facts, round=request.round))
    for entry in picks:
        if entry["distance"] is not None and not math.isfinite(entry["distance"]):
            entry["distance"] = None
    return {"picks": picks, "structures": campaign.keep(structures)}
