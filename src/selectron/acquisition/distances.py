"""Squared distances from picked structures to all candidates, several columns to a pass over memory."""

from __future__ import annotations

import torch
from torch import Tensor

from .problem import Problem

COLUMNS_AT_ONCE = 16


class SquaredDistances:
    """Columns ‖x_i − x_p‖² over all candidates i, float64, for picks p and for the training set.

    ‖x‖² + ‖y‖² − 2 x·y of vectors from which the candidates' mean has been taken: the common mean of activation
    features, which would cancel in the difference, is gone first, and what rounding leaves (about 1e-15 of the
    squared spread) is clamped at 0. One product of the (n, q) matrix with a vector is bound by memory, with 16
    vectors it hardly takes longer; so `column` computes those that the selector deems likely to be picked next
    along with the one asked for, and keeps them.
    """

    def __init__(self, problem: Problem) -> None:
        vectors = problem.vectors.to(torch.float64)
        self.norms = vectors.square().sum(1)
        mean = vectors.mean(0)
        self.points = vectors - mean
        self.train = problem.train_vectors.to(torch.float64) - mean
        self.squares = self.points.square().sum(1)
        self._kept: dict[int, Tensor] = {}

    def column(self, pick: int, likely: Tensor) -> Tensor:
        """(n,) squared distances to candidate ``pick``; ``likely`` are candidates worth computing in the same pass."""
        if pick not in self._kept:
            picks = [pick, *(i for i in likely.tolist() if i != pick)]
            block = self.block(self.points[picks])
            self._kept = {index: block[row] for row, index in enumerate(picks)}
        column = self._kept.pop(pick)
        column[pick] = 0.0
        return column

    def nearest_training(self) -> tuple[Tensor, Tensor]:
        """Squared distance (n,) to the nearest training structure and its index (n,), the first of equals."""
        best = torch.full_like(self.squares, float("inf"))
        index = torch.zeros(self.squares.numel(), dtype=torch.int64, device=best.device)
        for start in range(0, self.train.shape[0], 64):
            block = self.block(self.train[start : start + 64])
            nearest = torch.argmin(block, dim=0)
            distance = block.gather(0, nearest[None])[0]
            closer = distance < best
            best = torch.where(closer, distance, best)
            index = torch.where(closer, nearest + start, index)
        return best, index

    def block(self, centres: Tensor) -> Tensor:
        """(c, n) squared distances of all candidates to the centres (c, q)."""
        products = centres @ self.points.T
        return products.mul_(-2.0).add_(self.squares).add_(centres.square().sum(1)[:, None]).clamp_(min=0.0)
