"""Cholesky factors that either come out right or say why not."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import SelectronError

# Relative to the mean of the diagonal; beyond the last one the variances would no longer be those of the matrix given.
JITTERS = (0.0, 1e-14, 1e-12, 1e-10, 1e-8)


def cholesky(matrix: Tensor) -> tuple[Tensor, float]:
    """Lower Cholesky factor of a symmetric (D, D) float64 matrix, and the relative jitter that it took.

    Rounding can leave a positive definite matrix of condition number near 1e16 with a tiny negative eigenvalue; a
    jitter of at most 1e-8 of the mean diagonal is then added. Raises `SelectronError` where that is not enough or
    an entry is not finite.
    """
    if not bool(torch.isfinite(matrix).all()):
        raise SelectronError(
            "The precision matrix holds infinite or undefined entries; check the feature rows given to it."
        )
    mean_diagonal = matrix.diagonal().mean()
    eye = torch.eye(matrix.shape[0], dtype=matrix.dtype, device=matrix.device)
    for jitter in JITTERS:
        factor, info = torch.linalg.cholesky_ex(matrix + jitter * mean_diagonal * eye)
        if int(info) == 0:
            return factor, jitter
    raise SelectronError(
        "The precision matrix cannot be factorised: raise the prior precision or the noise variance, which are too "
        "small for the scale of the features."
    )
