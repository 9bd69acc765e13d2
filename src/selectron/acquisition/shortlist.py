"""The best M of a pool that streams by in chunks."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import SelectronError
from ..rows import Rows, concatenate


class Shortlist:
    """The ``size`` structures of highest score among all offered; equal scores go to the lower index.

    Holds at most ``size`` entries, with their rows if rows are offered, and the chunk at hand. The result depends
    neither on the order nor on the size of the chunks.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise SelectronError(f"A shortlist holds at least one structure, but its size is {size}.")
        self.size = size
        self.n_offered = 0
        self._indices = torch.zeros(0, dtype=torch.int64)
        self._scores = torch.zeros(0, dtype=torch.float64)
        self._rows: Rows | None = None

    def offer(self, indices: Tensor, scores: Tensor, rows: Rows | None = None) -> None:
        """Offer structures ``indices`` (n,) int64 with their ``scores`` (n,), and their rows, always or never."""
        scores = scores.detach().to("cpu", torch.float64)
        indices = indices.detach().to("cpu", torch.int64)
        if scores.shape != indices.shape or scores.ndim != 1:
            raise SelectronError(f"{tuple(indices.shape)} indices were offered with {tuple(scores.shape)} scores.")
        if bool(torch.isnan(scores).any()):
            first = int(indices[torch.isnan(scores)][0])
            raise SelectronError(f"The score of structure {first} is not a number; quarantine it before acquisition.")
        if self.n_offered and indices.numel() and (rows is None) != (self._rows is None):
            raise SelectronError("Rows have to be offered to a shortlist with every chunk or with none.")
        if not indices.numel():
            return
        self.n_offered += int(indices.numel())
        all_scores = torch.cat([self._scores, scores])
        all_indices = torch.cat([self._indices, indices])
        keep = rank(all_scores, all_indices)[: self.size]
        if rows is not None:
            merged = rows if self._rows is None else concatenate([self._rows, rows])
            self._rows = merged.take(keep)
        self._scores, self._indices = all_scores[keep], all_indices[keep]

    def result(self) -> Tensor:
        """Indices kept, (min(size, offered),) int64, by score from high to low, ties by index."""
        return self._indices

    @property
    def scores(self) -> Tensor:
        """Scores of `result`, float64."""
        return self._scores

    @property
    def rows(self) -> Rows | None:
        """Rows of `result` in the same order, or None where none were offered."""
        return self._rows


def rank(scores: Tensor, indices: Tensor) -> Tensor:
    """Positions sorted by score from high to low, equal scores by index from low to high."""
    by_index = torch.argsort(indices, stable=True)
    return by_index[torch.argsort(scores[by_index], descending=True, stable=True)]
