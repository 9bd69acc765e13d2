"""Which structures of a pool each method of one_shot.py picks."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from selectron.acquisition import default_scale, select_batch
from selectron.features import make_features
from selectron.features.base import normalised
from selectron.features.registry import FeatureOptions
from selectron.potentials import load_potential
from selectron.rows import Rows, concatenate
from selectron.screening.representation import label_weights
from selectron.training.labels import Labelled

BATCH = 16
SELECTORS = ("ipv", "isd", "irv", "lcmd", "maxdet", "fps", "bait", "top-k", "kmeans++", "herding")
FEATURES = ("energy-ntk", "force-ntk", "joint-ntk", "activation", "soap")
CONTROLS = ("random", "random-activation")
"""The energy NTK and the activations of the same architecture with random parameters."""
RATIOS = (0.1, 1.0, 10.0)


class Method(NamedTuple):
    """``ratio`` is w_E / w_F of the joint kernel and means nothing elsewhere; ``normalise`` is that of ``FeatureOptions``.

    ``by_chance`` is the share of the batch that is drawn at random first; the selector takes it as known. ``weighed``: labels
    weigh the root of how many structures of the pool are nearest to theirs, as ``selectron select`` says and
    ``selectron train`` does; for random picks nearest by the energy NTK.
    """

    features: str
    selector: str
    normalise: str = "none"
    ratio: float = 0.1
    by_chance: float = 0.0
    weighed: bool = False

    @property
    def is_baseline(self) -> bool:
        """Whether it is the baseline, which needs no features."""
        return self.selector == "random"

    @property
    def label(self) -> str:
        """How it is called in results."""
        weighed = ", weighed" if self.weighed else ""
        if self.is_baseline:
            return f"random{weighed}"
        ratio = f" {self.ratio:g}:1" if self.features == "joint-ntk" else ""
        chance = f", {self.by_chance:.0%} by chance" if self.by_chance else ""
        rows = {"none": "", "per-atom": " per atom", "unit": " unit"}[self.normalise]
        features = "random-ntk" if self.features == "random" else self.features
        return f"{features}{ratio} {self.selector}{rows}{chance}{weighed}"


def methods() -> list[Method]:
    """All, in tiers of importance: what decides defaults first, then every feature map and selector, summed and averaged."""
    ntk = FEATURES[:3]
    first = [Method("random", "random")]
    first += [Method(f, s) for s in ("ipv", "lcmd") for f in ntk]
    first += [Method("joint-ntk", "lcmd", by_chance=0.5), Method("energy-ntk", "ipv", by_chance=0.5)]
    first += [Method("energy-ntk", "herding"), Method("activation", "lcmd"), Method("activation", "herding")]
    first += [Method("energy-ntk", "ipv", normalise="per-atom"), Method("joint-ntk", "lcmd", normalise="per-atom")]
    first += [Method("joint-ntk", "ipv", ratio=10.0), Method("joint-ntk", "maxdet"), Method("energy-ntk", "fps")]
    first += [
        Method("energy-ntk", "ipv", normalise="per-atom", by_chance=0.5),
        Method("energy-ntk", "lcmd", by_chance=0.5),
    ]
    first += [Method("joint-ntk", "lcmd", by_chance=c) for c in (0.25, 0.75)]
    first += [Method("activation", "lcmd", by_chance=0.5)]
    first += [Method("joint-ntk", "lcmd", ratio=r, by_chance=0.5) for r in RATIOS]
    first += [Method(f, s, normalise="unit") for f in ("energy-ntk", "joint-ntk") for s in ("ipv", "lcmd")]
    first += [Method("energy-ntk", s, normalise=n) for n in ("none", "unit") for s in ("isd", "irv")]
    first += [Method("energy-ntk", "isd", normalise=n, weighed=True) for n in ("none", "unit")]
    first += [Method("random", "random", weighed=True)]
    rest = [Method("joint-ntk", "ipv", ratio=r) for r in RATIOS]
    rest += [Method(f, s, normalise=n) for n in ("none", "per-atom") for s in SELECTORS for f in FEATURES]
    rest += [Method(f, s) for f in CONTROLS for s in ("isd", "lcmd")]
    return list(dict.fromkeys(first + rest))


FIRST_TIER = 35


class Kept:
    """Feature rows of a case's structures, computed once and kept in ``folder``."""

    def __init__(self, folder: Path, model: Path, known: list[Labelled], candidates: list[Labelled]) -> None:
        self.folder, self.model = folder, model
        self.known, self.candidates = known, candidates
        self._rows: dict[tuple[str, float], tuple[Rows, Rows]] = {}

    def rows(self, method: Method) -> tuple[Rows, Rows]:
        """Rows of the known structures and of the candidates, as summed or averaged as the method wants them."""
        key = (method.features, method.ratio if method.features == "joint-ntk" else 0.0)
        if key not in self._rows:
            self._rows[key] = self._compute(method)
        pair = []
        for rows, structures in zip(self._rows[key], (self.known, self.candidates), strict=True):
            atoms = torch.tensor([len(one.atoms) for one in structures])
            pair.append(normalised(rows, atoms, method.normalise))
        return pair[0], pair[1]

    def _compute(self, method: Method) -> tuple[Rows, Rows]:
        options = FeatureOptions(energy_weight=method.ratio, force_weight=1.0)
        features = make_features(method.features, load_potential(self.model), options)
        structures = [one.atoms for one in (*self.known, *self.candidates)]
        content = hashlib.blake2b(features.fingerprint.encode(), digest_size=8)
        for atoms in structures:
            content.update(atoms.numbers.tobytes() + atoms.positions.tobytes())
        path = self.folder / f"{content.hexdigest()}.pt"
        if path.exists():
            values, counts = torch.load(path, weights_only=True)
        else:
            print(f"{method.features} of {len(structures)} structures", flush=True)
            parts = [features.rows(structures[i : i + BATCH]) for i in range(0, len(structures), BATCH)]
            values, counts = concatenate([Rows(part.values.cpu(), part.counts.cpu()) for part in parts])
            self.folder.mkdir(parents=True, exist_ok=True)
            torch.save((values, counts), path)
        return _part(Rows(values, counts), slice(0, len(self.known))), _part(
            Rows(values, counts), slice(len(self.known), None)
        )


def _part(rows: Rows, which: slice) -> Rows:
    stops = torch.cumsum(rows.counts, 0)
    chosen = torch.arange(len(rows.counts))[which]
    start = int(stops[chosen[0]] - rows.counts[chosen[0]])
    return Rows(rows.values[start : int(stops[chosen[-1]])], rows.counts[which])


def pick(method: Method, kept: Kept, pool: np.ndarray, budget: int, seed: int) -> np.ndarray:
    """Places among the candidates of the batch that ``method`` picks from ``pool``, as ``selectron select`` does."""
    if method.is_baseline:
        return np.random.default_rng([seed, 1]).permutation(pool)[:budget]
    by_chance = np.random.default_rng([seed, 1]).permutation(pool)[: round(method.by_chance * budget)]
    rest = np.setdiff1d(pool, by_chance)
    known, candidates = kept.rows(method)
    stops = np.cumsum(candidates.counts.numpy())
    starts = stops - candidates.counts.numpy()

    def rows_of(which: np.ndarray) -> Rows:
        places = np.concatenate([np.arange(starts[i], stops[i]) for i in which])
        return scale.apply(Rows(candidates.values[places], candidates.counts[which]))

    scale = default_scale(known)
    train = scale.apply(known)
    selection = select_batch(
        method.selector,
        rows_of(rest),
        train=concatenate([train, rows_of(by_chance)]) if len(by_chance) else train,
        budget=budget - len(by_chance),
        prior_precision=scale.prior_precision,
        noise_variance=scale.noise_variance,
        seed=seed,
    )
    return np.concatenate([by_chance, rest[selection.indices.cpu().numpy()]])


def weights(method: Method, kept: Kept, pool: np.ndarray, picks: np.ndarray) -> np.ndarray:
    """(picks,) what the labels of a batch weigh; 1 each where the method does not weigh them."""
    if not method.weighed:
        return np.ones(len(picks))
    _, candidates = kept.rows(Method("energy-ntk", "isd") if method.is_baseline else method)
    assert bool((candidates.counts == 1).all()), "distances of structures are those of single rows here"
    values = candidates.values.double()
    nearest = torch.cdist(values[pool], values[picks]).argmin(dim=1)
    return label_weights(np.bincount(nearest.numpy(), minlength=len(picks)))
