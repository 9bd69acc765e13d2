"""Bringing the standing particles into the frame of the one that moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Aligned(NamedTuple):
    """M standing particles of E ensembles in the frame of each ensemble's moving particle.

    ``positions`` (E, M, n, 3) in Å; ``rotations`` (E, M, 3, 3) turn a standing particle's vectors, None where nothing turns.
    """

    positions: Tensor
    rotations: Tensor | None


Alignment = Callable[[Tensor, Tensor], Aligned]
"""From positions of the moving (E, n, 3) and of the standing particles (E, M, n, 3) to :class:`Aligned`."""


def unaligned(moving: Tensor, standing: Tensor) -> Aligned:
    """As they are, which is what the SKMD paper does."""
    del moving
    return Aligned(standing, None)


def kabsch(weights: Tensor) -> Alignment:
    """Rotation and translation of least weighted squared distance (Kabsch 1976, doi:10.1107/S0567739476001873).

    ``weights`` (n,): masses, or ones. Reflections are not allowed. With ones a kernel of aligned coordinates has the
    gradient that :func:`~selectron.sampling.stein.stein_sum` takes, as its distance is then the least there is.
    """
    share = (weights / weights.sum())[:, None]

    def align(moving: Tensor, standing: Tensor) -> Aligned:
        centre = (share * moving).sum(1)[:, None, None]
        target = moving[:, None] - centre
        own = standing - (share * standing).sum(2, keepdim=True)
        covariance = torch.einsum("emnx,eny,n->emxy", own, target[:, 0], share[:, 0])
        # positions that are not finite must reach those who look at the geometry, and not stop the decomposition
        finite = torch.isfinite(covariance).all(-1, keepdim=True).all(-2, keepdim=True)
        left, _, right = torch.linalg.svd(torch.where(finite, covariance, torch.zeros_like(covariance)))
        handed = torch.sign(torch.linalg.det(left) * torch.linalg.det(right))
        turn = torch.ones_like(covariance[..., 0])
        turn[..., 2] = handed
        rotations = _rotation(left, turn, right)
        return Aligned(torch.einsum("emxy,emny->emnx", rotations, own) + centre, rotations)

    return align


def _rotation(left: Tensor, turn: Tensor, right: Tensor) -> Tensor:
    """R = V diag(turn) Uᵀ for a covariance U S Vᵀ, so that R takes the standing onto the moving."""
    return right.transpose(-1, -2) @ (turn[..., None] * left.transpose(-1, -2))


def minimum_image(cell: Tensor, pbc: Tensor) -> Alignment:
    """Every atom of a standing particle replaced by its image nearest to the moving one's, and a common drift removed.

    ``cell`` (3, 3) in Å, rows are lattice vectors; ``pbc`` (3,) bool. Nearest in fractional coordinates, which is nearest
    in Å for displacements up to half the smallest width of the cell. Vectors do not turn, so this matters for the
    descriptor ``coordinates`` alone; descriptors of the model do not see images.
    """
    inverse = torch.linalg.pinv(cell)
    periodic = pbc.to(cell.dtype)

    def align(moving: Tensor, standing: Tensor) -> Aligned:
        apart = moving[:, None] - standing
        nearest = apart - (torch.round(apart @ inverse) * periodic) @ cell
        nearest = nearest - nearest.mean(2, keepdim=True)
        return Aligned(moving[:, None] - nearest, None)

    return align
