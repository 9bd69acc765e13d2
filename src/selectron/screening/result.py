"""What a screening finds: variances of a pool, and the batch that is worth a label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from ase import Atoms

from selectron.acquisition import Posterior, Scale
from selectron.features import FeatureMap
from selectron.screening.atoms import nominal_rows
from selectron.screening.catalogue import Catalogue
from selectron.structures import Source

CRITERIA = ("variance", "per-component", "per-atom", "max-atom")
"""What structures are shortlisted by: the trace, the trace a row or an atom, the largest trace of one atom's rows."""


class Pick(NamedTuple):
    """One structure worth a label, rank 1 first.

    ``score`` is the selector's own criterion when it was picked (NaN where ``by_chance``), ``variance`` the posterior
    variance given the training set alone, ``nearest_training`` the source of the training structure nearest in feature space,
    ``atom_variance`` (N,), where known, each atom's part of the variance, ``represents`` how many structures of the pool are
    nearest to this pick of the batch, and ``weight`` what its label counts for in training (1 in the mean of the batch).
    """

    rank: int
    atoms: Atoms
    source: Source
    place: int
    score: float
    variance: float
    nearest_training: Source | None
    nearest_distance: float | None
    atom_variance: np.ndarray | None = None
    by_chance: bool = False
    represents: int | None = None
    weight: float = 1.0


@dataclass
class Screening:
    """What came out of a screening.

    | field     | meaning                                                                               |
    |-----------|---------------------------------------------------------------------------------------|
    | catalogue | the usable structures of the pool                                                     |
    | training  | those of the training set, or None                                                    |
    | variance  | (n,) posterior variance s²(x) of each, feature units squared (mean of the scale: 1)    |
    | max_atom  | (n,) largest variance of an atom's three force components; NaN without exact rows     |
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
    posterior: Posterior
    max_atom: np.ndarray
    selector: str | None = None

    def criterion(self, name: str) -> np.ndarray:
        """(n,): the variance summed over rows, divided by rows or atoms, or that of the worst atom; see :data:`CRITERIA`."""
        if name == "per-component":
            return self.variance / nominal_rows(self.features, self.catalogue.atoms)
        if name == "per-atom":
            return self.variance / np.maximum(self.catalogue.atoms, 1)
        return self.max_atom if name == "max-atom" else self.variance
