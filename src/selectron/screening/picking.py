"""The batch of a screening: a share by chance, and what the selector chooses given that."""

from __future__ import annotations

import math

import numpy as np
import torch

from selectron.acquisition import Selection, select_batch
from selectron.features import FeatureMap
from selectron.rows import Rows, concatenate
from selectron.screening.atoms import atom_variances, resolves_atoms
from selectron.screening.result import Pick, Screening
from selectron.screening.vectors import structure_vectors

COMPONENTS_OF_PICKS = 6_000
"""Force components up to which the picks of a probed run get exact rows, for variances of their atoms."""

_CHANCE = 3  # what tells the draws of the share by chance from other random numbers of the same seed


class Picker:
    """Adds picks to a screening. What it has picked counts as labelled in all that follows.

    Args:
        result: the screening, with its variances.
        seed: of chance, and of the selector.
        moment: (D, D) second moment of the pool with the weights of the selector.
    """

    def __init__(self, result: Screening, seed: int, moment: torch.Tensor) -> None:
        self._result, self._seed, self._moment = result, seed, moment
        training = result.training
        self._known = [] if training is None else [result.scale.apply(training.rows(slice(None)))]
        self._train_vectors = structure_vectors(self._known[0], result.features) if self._known else None

    def draw(self, places: np.ndarray, count: int) -> None:
        """Picks ``count`` of the catalogue's ``places`` at random, whatever their variance; equal features but once."""
        order = np.random.default_rng([self._seed, _CHANCE]).permutation(places)
        left, size = count, 2 * count
        for start in range(0, len(order), size):
            part = order[start : start + size]
            rows = self._rows(part)
            selection = select_batch("random", rows, train=self._all_known(), budget=left, seed=self._seed)
            self._add(part, rows, selection, by_chance=True)
            left -= len(selection.indices)
            if not left:
                break

    def select(self, places: np.ndarray, count: int, criterion: np.ndarray) -> None:
        """Picks ``count`` of ``places`` with the screening's selector; ``criterion`` (n,) is what ``top-k`` goes by."""
        result, scale = self._result, self._result.scale
        assert result.selector is not None
        rows = self._rows(places)
        selection = select_batch(
            result.selector,
            rows,
            train=self._all_known(),
            budget=count,
            prior_precision=scale.prior_precision,
            noise_variance=scale.noise_variance,
            pool_second_moment=self._moment,
            variances=torch.from_numpy(criterion[places]),
            seed=self._seed,
        )
        self._add(places, rows, selection)

    def _rows(self, places: np.ndarray) -> Rows:
        return self._result.scale.apply(self._result.catalogue.rows(places))

    def _all_known(self) -> Rows | None:
        return concatenate(self._known) if self._known else None

    def _add(self, places: np.ndarray, rows: Rows, selection: Selection, *, by_chance: bool = False) -> None:
        """Adds a selection among ``places``, whose scaled rows are ``rows``, to the picks."""
        chosen = selection.indices.cpu()
        if not len(chosen):
            return
        result, rows = self._result, rows.take(chosen)
        self._known.append(rows)
        near, distance = self._nearest(rows)
        for at, (row, score) in enumerate(zip(chosen.tolist(), selection.scores.tolist(), strict=True)):
            place = int(places[row])
            index = int(result.catalogue.indices[place])
            nearest = None
            if result.training is not None and near is not None:
                nearest = result.training.pool.source(int(result.training.indices[int(near[at])]))
            result.picks.append(
                Pick(
                    rank=len(result.picks) + 1,
                    atoms=result.catalogue.pool[index],
                    source=result.catalogue.pool.source(index),
                    place=place,
                    score=math.nan if by_chance else float(score),
                    variance=float(result.variance[place]),
                    nearest_training=nearest,
                    nearest_distance=None if distance is None else float(distance[at]),
                    by_chance=by_chance,
                )
            )

    def _nearest(self, picks: Rows) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Index of and distance to the training structure nearest to each pick in feature space."""
        if self._train_vectors is None:
            return None, None
        distance = torch.cdist(structure_vectors(picks, self._result.features), self._train_vectors)
        return distance.argmin(dim=1), distance.amin(dim=1)


def resolve_picks(result: Screening, exact: FeatureMap, per_atom: bool | None) -> None:
    """Gives each pick the variances of its atoms, where ``exact`` has rows of their own for them."""
    if not resolves_atoms(exact) or per_atom is False or not result.picks:
        return
    if per_atom is None and sum(3 * len(pick.atoms) for pick in result.picks) > COMPONENTS_OF_PICKS:
        result.notes.append(
            "Variances of the picks' atoms were left out, as they would take long; ask with --per-atom."
        )
        return
    for place, pick in enumerate(result.picks):
        rows = exact.rows([pick.atoms])
        rows = Rows(rows.values.to("cpu", torch.float32), rows.counts.cpu())
        (variances,) = atom_variances(result.posterior, result.scale, rows, exact)
        result.picks[place] = pick._replace(atom_variance=variances)
