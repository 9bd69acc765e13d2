"""Squared distances from training structures and picks to all candidates."""

from __future__ import annotations

import torch
from torch import Tensor

from .problem import Problem

CENTRES_AT_ONCE = 64
# |fl(x·y) − x·y| ≤ (D + 2) u ‖x‖ ‖y‖ for D products summed in float32, in whatever order, of rounded
# factors, with u = 2⁻²⁴; and 2 ‖x‖ ‖y‖ ≤ ‖x‖² + ‖y‖². Doubled to be safe.
FLOAT32_UNIT = 2.0**-23


class NearestCentre:
    """For every candidate the squared distance to the nearest centre, (n,) float64, and which centre that is.

    Centres are the training structures in their order, then the picks; a tie goes to the earlier one. Distances are
    ‖x‖² + ‖y‖² − 2 x·y in float64, of vectors from which the candidates' mean has been taken: the large common mean
    of activation features, which would cancel in the difference, is gone first, and what rounding leaves (about
    1e-15 of the squared spread) is clamped at 0. To save memory traffic the pass over all candidates for a new
    centre is made in float32, with a bound on its rounding; only candidates for which it cannot rule out a change
    are computed again, in float64. The result is that of float64 throughout.
    """

    def __init__(self, problem: Problem) -> None:
        vectors, train = (each.to(torch.float64) for each in problem.vectors)
        mean = vectors.mean(0)
        self.norms = squared_norms(vectors)
        self.points = vectors - mean
        self.squares = squared_norms(self.points)
        self.distance = torch.full_like(self.squares, float("inf"))
        self.centre = torch.zeros(self.squares.numel(), dtype=torch.int64, device=self.squares.device)
        # Unit length at most, so that features of any size fit into float32.
        self._size = self.squares.max().sqrt().clamp(min=1e-150)
        self._coarse = (self.points / self._size).to(torch.float32).T.contiguous()
        self._slack = FLOAT32_UNIT * (self.points.shape[1] + 2)
        self.n_centres = 0
        for start in range(0, train.shape[0], CENTRES_AT_ONCE):
            self._add_training(train[start : start + CENTRES_AT_ONCE] - mean)

    def add(self, pick: int) -> None:
        """Candidate ``pick`` becomes a centre."""
        if self.n_centres == 0:
            changed = torch.arange(self.squares.numel(), device=self.squares.device)
        else:
            changed = torch.nonzero(self._lower_bound(pick) < self.distance)[:, 0]
        points, squares = self.points.index_select(0, changed), self.squares.index_select(0, changed)
        distance = squared_distances(self.points[pick][None], points, squares)[0]
        closer = distance < self.distance.index_select(0, changed)
        changed = changed.masked_select(closer)
        self.distance.index_copy_(0, changed, distance.masked_select(closer))
        self.centre.index_fill_(0, changed, self.n_centres)
        self.distance[pick] = 0.0
        self.n_centres += 1

    def _add_training(self, train: Tensor) -> None:
        """Training vectors (c, q) become centres; ‖x‖² is the same for all of them and left out of the comparison."""
        offset = 0.5 * squared_norms(train)
        block = torch.addmm(offset[:, None], train, self.points.T, alpha=-1.0)
        nearest = torch.argmin(block, dim=0)
        distance = (2.0 * block.gather(0, nearest[None])[0] + self.squares).clamp(min=0.0)
        self.centre = torch.where(distance < self.distance, nearest + self.n_centres, self.centre)
        self.distance = torch.minimum(self.distance, distance)
        self.n_centres += int(train.shape[0])

    def _lower_bound(self, pick: int) -> Tensor:
        """(n,) numbers that the squared distances to ``pick`` are not below."""
        products = (self._coarse[:, pick].contiguous() @ self._coarse).to(torch.float64)
        return (
            products.mul_(-2.0 * self._size.square())
            .add_(self.squares, alpha=1.0 - self._slack)
            .add_((1.0 - self._slack) * self.squares[pick])
        )


def squared_distances(centres: Tensor, points: Tensor, squares: Tensor) -> Tensor:
    """(c, n) squared distances of centres (c, q) and points (n, q), whose squared norms are ``squares`` (n,)."""
    products = centres @ points.T
    return products.mul_(-2.0).add_(squares).add_(squared_norms(centres)[:, None]).clamp_(min=0.0)


def squared_norms(vectors: Tensor) -> Tensor:
    """(n,) ‖x‖² without a temporary of the size of ``vectors`` (n, q)."""
    return torch.linalg.vector_norm(vectors, dim=1).square()
