"""One vector a structure: the only place that says what the distance of two structures with several rows is."""

from __future__ import annotations

import torch
from torch import Tensor

from ..rows import Rows
from .posterior import Posterior

SKETCH_WIDTH = 1024
SKETCH_SEED = 20260325
CHUNK_ROWS = 4096


def has_single_rows(*parts: Rows | None) -> bool:
    """Whether every structure of every part has exactly one row."""
    return all(part is None or bool((part.counts == 1).all()) for part in parts)


def structure_embedding(rows: Rows, *, single: bool, width: int = SKETCH_WIDTH) -> Tensor:
    """(n, q) vectors whose Euclidean distances are the distances of structures; q = D for single rows.

    `single`: one row a structure, and the row itself is the vector. Otherwise the vector stands for A = Φᵀ Φ / ‖Φᵀ
    Φ‖_F^½: inner products are the Hilbert–Schmidt kernel ‖Φ(x) Φ(x')ᵀ‖_F² / (‖Φ(x)ᵀ Φ(x)‖_F ‖Φ(x')ᵀ Φ(x')‖_F)^½, in
    squared feature units as for single rows. A does not change when rows are permuted or rotated among each other,
    so a structure and its rotated copy have distance zero with exact force rows (not with probed ones). Where D² >
    `width`, A is replaced by the unbiased sketch (u_jᵀ A v_j)_j / √q for q = `width` fixed pairs of random sign
    vectors: distances then carry a relative error of about 1/√q. float64, except that single rows keep their dtype.
    """
    if single:
        return rows.values
    dim, device = rows.dim, rows.values.device
    exact = dim * dim <= width
    left, right = sketch_vectors(dim, width, device) if not exact else (None, None)
    out = torch.zeros(rows.n_structures, dim * dim if exact else width, dtype=torch.float64, device=device)
    owner = rows.owner
    for start in range(0, rows.values.shape[0], CHUNK_ROWS):
        chunk = rows.values[start : start + CHUNK_ROWS].to(torch.float64)
        if left is None or right is None:
            products = (chunk[:, :, None] * chunk[:, None, :]).flatten(1)
        else:
            products = (chunk @ left) * (chunk @ right) / width**0.5
        _add_by_owner(out, owner[start : start + CHUNK_ROWS], products)
    norm = out.norm(dim=1, keepdim=True)
    return out / torch.where(norm > 0, norm, torch.ones_like(norm)).sqrt()


def whitened(rows: Rows, posterior: Posterior) -> Rows:
    """Rows z = L⁻¹ φ with Λ = L Lᵀ, float64: their products are posterior covariances, what is known has length 0.

    Of four similarities tried for structures with many force rows, the Hilbert–Schmidt kernel of whitened rows lets
    LCMD leave the least variance in the pool and pick the largest true errors (`benchmarks/structure_similarity.py`).
    """
    return Rows(posterior.whiten(rows.values).T.contiguous(), rows.counts)


def sketch_vectors(dim: int, width: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Two (dim, width) float64 matrices of fixed random signs, the same on every device."""
    generator = torch.Generator().manual_seed(SKETCH_SEED)
    signs = torch.randint(0, 2, (2, dim, width), generator=generator).to(torch.float64) * 2.0 - 1.0
    return signs[0].to(device), signs[1].to(device)


def _add_by_owner(out: Tensor, owner: Tensor, products: Tensor) -> None:
    """Add the products (R, q) of consecutive rows to their owners; sums run in row order and repeat bit for bit."""
    owners, counts = torch.unique_consecutive(owner, return_counts=True)
    out[owners] += torch.segment_reduce(products, "sum", lengths=counts, axis=0)
