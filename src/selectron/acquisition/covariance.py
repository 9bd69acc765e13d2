"""Posterior covariances of every candidate's rows, kept up to date while structures join a batch or leave it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..rows import Rows
from .posterior import Posterior

CHUNK_ROWS = 4096


class Bucket(NamedTuple):
    """Structures with the same number of rows m.

    | field      | shape             | meaning                                                            |
    |------------|-------------------|--------------------------------------------------------------------|
    | structures | (s,) int64        | their positions among the candidates                               |
    | start      | int               | where their rows begin among the columns of `RowCovariances.rows`  |
    | covariance | (s, m, m) float64 | K = Z M Zᵀ, the posterior covariance of the rows                   |
    | reduction  | (s, m, m) or None | N = Z M C M Zᵀ, from which the drop in the pool's variance follows |
    """

    structures: Tensor
    start: int
    covariance: Tensor
    reduction: Tensor | None

    @property
    def n_rows(self) -> int:
        """Rows of each structure, m."""
        return int(self.covariance.shape[1])

    @property
    def end(self) -> int:
        """Where their rows end."""
        return self.start + self.structures.numel() * self.n_rows

    def columns(self, place: int) -> slice:
        """Where the rows of the structure at ``place`` lie."""
        return slice(self.start + place * self.n_rows, self.start + (place + 1) * self.n_rows)


class RowCovariances:
    """K_x = Z_x M Z_xᵀ of every candidate x, and N_x = Z_x M C M Z_xᵀ where a second moment G is given.

    | symbol | shape  | meaning                                                                                |
    |--------|--------|----------------------------------------------------------------------------------------|
    | Z      | (R, D) | rows whitened by the training posterior, z = L⁻¹ φ with Λ = L Lᵀ; `rows` holds Zᵀ      |
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
        buckets: list[Bucket] = []
        start = 0
        members = torch.split(order, lengths.tolist())
        for m, structures in zip(sizes.tolist(), members, strict=True):
            buckets.append(self._new_bucket(structures, start, m))
            start = buckets[-1].end
        self._set_buckets(buckets, candidates.n_structures)

    def _new_bucket(self, structures: Tensor, start: int, m: int) -> Bucket:
        count = structures.numel()
        covariance = torch.zeros(count, m, m, dtype=torch.float64, device=self.rows.device)
        reduction = None if self.outer is None else torch.zeros_like(covariance)
        at_once = max(1, CHUNK_ROWS // max(m, 1))
        for first in range(0, count if m else 0, at_once):
            last = min(first + at_once, count)
            columns = self.rows[:, start + first * m : start + last * m]
            covariance[first:last] = _row_products(columns, columns, last - first)
            if reduction is not None and self.outer is not None:
                reduction[first:last] = _row_products(self.outer @ columns, columns, last - first)
        return Bucket(structures, start, covariance, reduction)

    def restricted(self, structures: Tensor) -> RowCovariances:
        """The same for the candidates ``structures`` only, which are numbered in that order from then on."""
        out = object.__new__(RowCovariances)
        out.noise_variance = self.noise_variance
        out.inner = self.inner.clone()
        out.outer = None if self.outer is None else self.outer.clone()
        picked: list[Bucket] = []
        columns: list[Tensor] = []
        start = 0
        for number, bucket in enumerate(self.buckets):
            new = torch.nonzero(self._bucket[structures] == number)[:, 0]
            place = self._place[structures[new]]
            reduction = None if bucket.reduction is None else bucket.reduction[place]
            picked.append(Bucket(new, start, bucket.covariance[place], reduction))
            columns += [self.rows[:, bucket.columns(int(p))] for p in place]
            start = picked[-1].end
        out.rows = torch.cat(columns, 1)
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
        own = self.rows[:, bucket.columns(place)].contiguous()
        s = sign * self.noise_variance * self._eye(bucket.n_rows) + bucket.covariance[place]
        inverse = 1.0 / s if bucket.n_rows == 1 else torch.linalg.inv(s)
        v = self.inner @ own
        y = v @ inverse
        b_all = _times(self.rows, v)
        y_all = _times_small(b_all, inverse)
        self.inner.addmm_(y, v.T, alpha=-1.0)
        h_all = None
        if self.outer is not None and bucket.reduction is not None:
            reduction = bucket.reduction[place].clone()
            u = self.outer @ own
            h = u - 0.5 * y @ reduction
            h_all = _times(self.rows, u) - _times_small(y_all, 0.5 * reduction)
            self.outer.addmm_(y, h.T, alpha=-1.0).addmm_(h, y.T, alpha=-1.0)
        self._shift_blocks(b_all, y_all, h_all)

    def _shift_blocks(self, b_all: Tensor, y_all: Tensor, h_all: Tensor | None) -> None:
        """K_x ← K_x − Y_x B_xᵀ and N_x ← N_x − Y_x H_xᵀ − H_x Y_xᵀ for every candidate; arguments are (m_p, R)."""
        for bucket in self.buckets:
            if not bucket.covariance.numel():
                continue
            count, columns = bucket.structures.numel(), slice(bucket.start, bucket.end)
            bucket.covariance.sub_(_row_products(y_all[:, columns], b_all[:, columns], count))
            if bucket.reduction is not None and h_all is not None:
                crossed = _row_products(y_all[:, columns], h_all[:, columns], count)
                bucket.reduction.sub_(crossed).sub_(crossed.mT)

    @property
    def variances(self) -> Tensor | None:
        """(n,) K_x where every candidate has a single row, else None."""
        if len(self.buckets) != 1 or self.buckets[0].n_rows != 1:
            return None
        return self.buckets[0].covariance[:, 0, 0]

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
        if bucket.n_rows == 1:
            return torch.log1p(bucket.covariance[:, 0, 0].clamp(min=0.0) / self.noise_variance)
        factor = torch.linalg.cholesky_ex(self._eye(bucket.n_rows) + bucket.covariance / self.noise_variance)[0]
        return 2.0 * factor.diagonal(dim1=1, dim2=2).log().sum(1)

    def _gain(self, bucket: Bucket) -> Tensor:
        assert bucket.reduction is not None
        if bucket.n_rows == 1:
            return (bucket.reduction / (self.noise_variance + bucket.covariance.clamp(min=0.0)))[:, 0, 0]
        factor = torch.linalg.cholesky_ex(self.noise_variance * self._eye(bucket.n_rows) + bucket.covariance)[0]
        return torch.cholesky_solve(bucket.reduction, factor).diagonal(dim1=1, dim2=2).sum(1)

    def _loss(self, bucket: Bucket) -> Tensor:
        assert bucket.reduction is not None
        left = self.noise_variance * self._eye(bucket.n_rows) - bucket.covariance
        if bucket.n_rows == 1:
            return (bucket.reduction / left)[:, 0, 0]
        return torch.linalg.solve(left, bucket.reduction).diagonal(dim1=1, dim2=2).sum(1)

    def _eye(self, m: int) -> Tensor:
        return torch.eye(m, dtype=torch.float64, device=self.rows.device)

    def _each(self, value: Callable[[Bucket], Tensor]) -> Tensor:
        out = torch.zeros(self.n, dtype=torch.float64, device=self.rows.device)
        for bucket in self.buckets:
            if bucket.covariance.numel():
                out.index_copy_(0, bucket.structures, value(bucket))
        return out


def whiten_moment(moment: Tensor, factor: Tensor) -> Tensor:
    """(D, D) L⁻¹ G L⁻ᵀ of a second moment G for the Cholesky factor L of the precision."""
    half = torch.linalg.solve_triangular(factor, moment.to(factor), upper=False)
    whitened = torch.linalg.solve_triangular(factor, half.T, upper=False)
    return 0.5 * (whitened + whitened.T)


def _times(rows: Tensor, columns: Tensor) -> Tensor:
    """(m, R) columnsᵀ rows for rows (D, R) and columns (D, m)."""
    return (columns[:, 0] @ rows)[None] if columns.shape[1] == 1 else columns.T @ rows


def _times_small(products: Tensor, matrix: Tensor) -> Tensor:
    """(m, R) matrix products for a symmetric (m, m) matrix and products (m, R)."""
    return products * matrix if matrix.numel() == 1 else matrix @ products


def _row_products(left: Tensor, right: Tensor, count: int) -> Tensor:
    """(count, m, m) left_xᵀ right_x for (q, count · m) arguments, the m columns of one structure after another's."""
    if left.shape[1] == count:
        return (left * right).sum(0)[:, None, None]
    m = left.shape[1] // count
    return torch.einsum("qsi,qsj->sij", left.reshape(-1, count, m), right.reshape(-1, count, m))
