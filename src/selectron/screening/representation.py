"""What each pick stands for: how many structures of the pool are nearest to it, and what its label weighs for that."""

from __future__ import annotations

import numpy as np
import torch

from selectron.screening.result import Screening
from selectron.screening.vectors import structure_vectors


def represented(result: Screening) -> np.ndarray:
    """(n,) int64: of the structures that might have been picked, how many have this pick as the nearest one, itself included.

    Distances are those of structure vectors in feature space; a tie goes to the better rank. The pool is streamed, a chunk at
    a time.
    """
    counts = np.zeros(len(result.picks), dtype=np.int64)
    if not result.picks:
        return counts
    catalogue = result.catalogue

    def vectors(places: np.ndarray) -> torch.Tensor:
        return structure_vectors(result.scale.apply(catalogue.rows(places)), result.features)

    picks = vectors(np.array([one.place for one in result.picks]))
    could_be_picked = catalogue.first & ~result.known
    for start in range(0, len(catalogue), CHUNK):
        places = start + np.flatnonzero(could_be_picked[start : start + CHUNK])
        if len(places):
            nearest = torch.cdist(vectors(places), picks).argmin(dim=1)
            counts += np.bincount(nearest.numpy(), minlength=len(counts))
    return counts


def label_weights(counts: np.ndarray) -> np.ndarray:
    """(n,) float64 weights of labels that stand for ``counts`` structures each: √count, of mean 1.

    A batch that a selector chose is no fair sample of the pool; weights n_i in the loss would undo that altogether, at the
    price of a few labels that rule, and equal weights not at all. The root is between the two, and the best of the three in
    the one-batch study (docs/one-shot.md).
    """
    if not len(counts):
        return np.zeros(0)
    roots = np.sqrt(np.maximum(counts, 1).astype(np.float64))
    return roots / roots.mean()


CHUNK = 2048
"""Structures at a time."""
