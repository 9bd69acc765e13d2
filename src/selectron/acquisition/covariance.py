"""Posterior covariances of every candidate's rows, kept up to date while structures join a batch or leave it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..rows import Rows
from .posterior import Posterior


class Bucket(NamedTuple):
    """Structures with the same number of rows m.

    | field      | shape             | meaning                                                            |
    |------------|-------------------|--------------------------------------------------------------------|
    | structures | (s,) int64        | their positions among the candidates                               |
    | rows       | (s, m, D) float64 | their whitened rows, a view of `RowCovariances.rows`               |
    | covariance | (s, m, m) float64 | K = Z M Zᵀ, the posterior covariance of the rows                   |
    | reduction  | (s, m, m) or None | N = Z M C M Zᵀ, from which the drop in the pool's variance follows |
    """

    structures: Tensor
    rows: Tensor
    covariance: Tensor
    reduction: Tensor | None


class RowCovariances:
    """K_x = Z_x M Z_xᵀ of every candidate x, and N_x = Z_x M C M Z_xᵀ where a second moment G is given.

    | symbol | shape  | meaning                                                                                |
    |--------|--------|----------------------------------------------------------------------------------------|
    | Z      | (R, D) | rows whitened by the training posterior, z = L⁻¹ φ with Λ = L Lᵀ                       |
    | M      | (D, D) | posterior covariance in these coordinates: the identity, then conditioned on the batch |
    | C      | (D, D) | L⁻¹ G L⁻ᵀ, the second moment of the pool                                               |
    | W      | (D, D) | M C M                                                                                  |

    A structure with rows Z_p joins by the Woodbury identity; with V = M Z_pᵀ, U = W Z_pᵀ, S = σ² I + K_p, and for
    the rows of each candidate B = Z V, Y = B S⁻¹, H = Z U − ½ Y N_p:

        K_x ← K_x − Y_x B_xᵀ,    N_x ← N_x − Y_x H_xᵀ − H_x Y_xᵀ,

    and M, W alike with V, V S⁻¹, U − ½ V S⁻¹ N_p in place of B, Y, H. Leaving is the same with S = K_p − σ² I.
    Either costs one pass over the rows, O(m_p R D); nothing is O(R D²) after the start. All float64; memory O(R D +
    Σ_x m_x²).
    """

    def __init__(self, posterior: Posterior, candidates: Rows, second_moment: Tensor | None) -> None:
        order = torch.argsort(candidates.counts, stable=True)
        sizes, lengths = torch.unique_consecutive(candidates.counts[order], return_counts=True)
        self.noise_variance = posterior.noise_variance
        self.rows = posterior.whiten(candidates.take(order).values)
        self.inner = torch.eye(posterior.dim, dtype=torch.float64, device=self.rows.device)
        self.outer = None if second_moment is None else whiten_moment(second_moment, posterior.factor)
        buckets = []
        start = 0
        members = torch.split(order, lengths.tolist())
        for m, structures in zip(sizes.tolist(), members, strict=True):
            end = start + m * structures.numel()
            rows = self.rows[start:end].view(structures.numel(), m, -1)
            reduction = None if self.outer is None else _row_products(_apply(rows, self.outer), rows)
            buckets.append(Bucket(structures, rows, _row_products(rows, rows), reduction))
            start = end
        self._set_buckets(buckets, candidates.n_structures)

    def restricted(self, structures: Tensor) -> RowCovariances:
        """The same for the candidates ``structures`` only, which are numbered in that order from then on."""
        out = object.__new__(RowCovariances)
        out.noise_variance = self.noise_variance
        out.inner = self.inner.clone()
        out.outer = None if self.outer is None else self.outer.clone()
        picked: list[Bucket] = []
        for number, bucket in enumerate(self.buckets):
            new = torch.nonzero(self._bucket[structures] == number)[:, 0]
            place = self._place[structures[new]]
            reduction = None if bucket.reduction is None else bucket.reduction[place]
            picked.append(Bucket(new, bucket.rows[place], bucket.covariance[place], reduction))
        out.rows = torch.cat([bucket.rows.flatten(0, 1) for bucket in picked])
        out._set_buckets(picked, structures.numel())
        return out

    def _set_buckets(self, buckets: list[Bucket], n: int) -> None:
        self.buckets = buckets
        self.n = n
        self._bucket = torch.empty(n, dtype=torch.int64, device=self.rows.device)
        self._place = torch.empty(n, dtype=torch.int64, device=self.rows.device)
        for number, bucket in enumerate(buckets):
            self._bucket[bucket.structures] = number
            self._place[bucket.structures] = torch.arange(bucket.structures.numel(), device=self.rows.device)

    def add(self, pick: int) -> None:
        """Condition on the rows of candidate ``pick``."""
        self._shift(pick, 1.0)

    def remove(self, pick: int) -> None:
        """Undo the conditioning on candidate ``pick``, which has been added before."""
        self._shift(pick, -1.0)

    def _shift(self, pick: int, sign: float) -> None:
        bucket, place = self.buckets[int(self._bucket[pick])], int(self._place[pick])
        own = bucket.rows[place]
        s = sign * self.noise_variance * _eye(own) + bucket.covariance[place]
        v = self.inner @ own.T
        y = torch.linalg.solve(s, v, left=False)
        b_all = _times(self.rows, v)
        y_all = torch.linalg.solve(s, b_all, left=False) if own.shape[0] > 1 else b_all / s
        self.inner.addmm_(y, v.T, alpha=-1.0)
        h_all = None
        if self.outer is not None and bucket.reduction is not None:
            reduction = bucket.reduction[place].clone()
            u = self.outer @ own.T
            h = u - 0.5 * y @ reduction
            h_all = _times(self.rows, u) - 0.5 * y_all @ reduction
            self.outer.addmm_(torch.cat([y, h], 1), torch.cat([h, y], 1).T, alpha=-1.0)
        self._shift_blocks(b_all, y_all, h_all)

    def _shift_blocks(self, b_all: Tensor, y_all: Tensor, h_all: Tensor | None) -> None:
        """K_x ← K_x − Y_x B_xᵀ and N_x ← N_x − Y_x H_xᵀ − H_x Y_xᵀ for every candidate; arguments are (R, m_p)."""
        start = 0
        for bucket in self.buckets:
            count, m, _ = bucket.rows.shape
            end = start + count * m
            y = y_all[start:end].view(count, m, -1)
            bucket.covariance.sub_(_row_products(y, b_all[start:end].view(count, m, -1)))
            if bucket.reduction is not None and h_all is not None:
                crossed = _row_products(y, h_all[start:end].view(count, m, -1))
                bucket.reduction.sub_(crossed + crossed.mT)
            start = end

    def log_determinants(self) -> Tensor:
        """(n,) log det(I + K_x / σ²), twice the information that the labels of x carry about the weights, in nats."""
        return self._each(self._log_determinant)

    def gains(self) -> Tensor:
        """(n,) tr[(σ² I + K_x)⁻¹ N_x], the drop of the summed variance tr(M C) when x joins."""
        return self._each(self._gain)

    def losses(self) -> Tensor:
        """(n,) tr[(σ² I − K_x)⁻¹ N_x], the rise of tr(M C) when x leaves; meant for x that have joined."""
        return self._each(self._loss)

    def _log_determinant(self, bucket: Bucket) -> Tensor:
        if bucket.rows.shape[1] == 1:
            return torch.log1p(bucket.covariance[:, 0, 0].clamp(min=0.0) / self.noise_variance)
        factor = torch.linalg.cholesky_ex(_eye(bucket.rows) + bucket.covariance / self.noise_variance)[0]
        return 2.0 * factor.diagonal(dim1=1, dim2=2).log().sum(1)

    def _gain(self, bucket: Bucket) -> Tensor:
        assert bucket.reduction is not None
        if bucket.rows.shape[1] == 1:
            return (bucket.reduction / (self.noise_variance + bucket.covariance.clamp(min=0.0)))[:, 0, 0]
        factor = torch.linalg.cholesky_ex(self.noise_variance * _eye(bucket.rows) + bucket.covariance)[0]
        return torch.cholesky_solve(bucket.reduction, factor).diagonal(dim1=1, dim2=2).sum(1)

    def _loss(self, bucket: Bucket) -> Tensor:
        assert bucket.reduction is not None
        noise = self.noise_variance * _eye(bucket.rows)
        return torch.linalg.solve(noise - bucket.covariance, bucket.reduction).diagonal(dim1=1, dim2=2).sum(1)

    def _each(self, value: Callable[[Bucket], Tensor]) -> Tensor:
        out = torch.zeros(self.n, dtype=torch.float64, device=self.rows.device)
        for bucket in self.buckets:
            if bucket.covariance.numel():
                out[bucket.structures] = value(bucket)
        return out


def whiten_moment(moment: Tensor, factor: Tensor) -> Tensor:
    """(D, D) L⁻¹ G L⁻ᵀ of a second moment G for the Cholesky factor L of the precision."""
    half = torch.linalg.solve_triangular(factor, moment.to(factor), upper=False)
    whitened = torch.linalg.solve_triangular(factor, half.T, upper=False)
    return 0.5 * (whitened + whitened.T)


def _eye(rows: Tensor) -> Tensor:
    """(m, m) identity for rows (..., m, D)."""
    return torch.eye(rows.shape[-2], dtype=rows.dtype, device=rows.device)


def _apply(rows: Tensor, matrix: Tensor) -> Tensor:
    return (rows.flatten(0, 1) @ matrix).view_as(rows)


def _times(rows: Tensor, columns: Tensor) -> Tensor:
    """rows (R, D) @ columns (D, m), by the route that a CPU is fastest at: both are bound by memory."""
    if columns.shape[1] == 1:
        return (rows @ columns[:, 0])[:, None]
    return (columns.T @ rows.T).T.contiguous()


def _row_products(left: Tensor, right: Tensor) -> Tensor:
    """(s, m, m) left_x right_xᵀ for (s, m, q) arguments."""
    return (left * right).sum(2, keepdim=True) if left.shape[1] == 1 else left @ right.mT
