"""Two-dimensional principal components of feature rows, from streamed moments."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import eigh

from selectron.errors import SelectronError


def as_float64(values: Any) -> np.ndarray:
    """A NumPy float64 copy or view of an array, a list, or a torch tensor on any device."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    return np.asarray(values, dtype=np.float64)


@dataclass(frozen=True)
class Projection:
    """The plane of largest variance of a cloud of feature vectors (principal component analysis).

    | field     | shape  | meaning                                                                             |
    |-----------|--------|-------------------------------------------------------------------------------------|
    | mean      | (D,)   | centre of the cloud, the origin of the plane                                        |
    | axes      | (D, 2) | orthonormal columns; the entry of largest magnitude of each column is positive      |
    | explained | (2,)   | fraction of the total variance along each axis, largest first, between 0 and 1      |

    Everything is float64. With D = 1 the second axis is zero, and so is the second coordinate.
    """

    mean: np.ndarray
    axes: np.ndarray
    explained: np.ndarray

    @classmethod
    def fit(cls, second_moment: Any, mean: Any) -> Projection:
        """The plane from the moments M = (1/n) Σ x xᵀ, shape (D, D), and μ = (1/n) Σ x, shape (D,).

        The covariance is M − μμᵀ, so M is the raw second moment, not the centred one. Both moments are sums over
        structures and can be streamed (``Projection.of_batches``) or added over shards. The sign of each axis is fixed
        by its entry of largest magnitude, the first one among equals, so that two runs draw the same picture.

        Raises ``SelectronError`` when the moments have the wrong shape or hold values that are not finite.
        """
        moment, centre = as_float64(second_moment), as_float64(mean)
        if centre.ndim != 1 or centre.size == 0 or moment.shape != (centre.size, centre.size):
            raise SelectronError(
                f"A projection needs a mean of shape (D,) and a second moment of shape (D, D); "
                f"got {centre.shape} and {moment.shape}."
            )
        if not (np.isfinite(moment).all() and np.isfinite(centre).all()):
            raise SelectronError("The feature moments of the projection hold values that are not finite.")
        covariance = moment - np.outer(centre, centre)
        covariance = (covariance + covariance.T) / 2
        dim = centre.size
        kept = min(2, dim)
        eigenvalues, vectors = eigh(covariance, subset_by_index=[dim - kept, dim - 1])
        axes, explained = np.zeros((dim, 2)), np.zeros(2)
        axes[:, :kept] = vectors[:, ::-1]
        signs = np.sign(axes[np.argmax(np.abs(axes), axis=0), [0, 1]])
        axes *= np.where(signs == 0, 1.0, signs)
        total = float(np.trace(covariance))
        if total > 0:
            explained[:kept] = np.clip(eigenvalues[::-1] / total, 0.0, 1.0)
        return cls(centre, axes, explained)

    @classmethod
    def of_batches(cls, batches: Iterable[Any]) -> Projection:
        """The plane of feature vectors that arrive in batches (n_b, D); memory O(D²), whatever the number of vectors.

        Sums are taken about the first vector seen, so that features far from the origin lose no digits.
        """
        count, shift = 0, np.zeros(0)
        total, moment = np.zeros(0), np.zeros((0, 0))
        for batch in batches:
            values = as_float64(batch)
            if values.shape[0] == 0:
                continue
            if count == 0:
                dim = values.shape[1]
                shift, total, moment = values[0].copy(), np.zeros(dim), np.zeros((dim, dim))
            values = values - shift
            count += values.shape[0]
            total += values.sum(axis=0)
            moment += values.T @ values
        if count == 0:
            raise SelectronError("A projection needs at least one feature vector.")
        plane = cls.fit(moment / count, total / count)
        return cls(plane.mean + shift, plane.axes, plane.explained)

    def transform(self, features: Any) -> np.ndarray:
        """Coordinates (n, 2) in the plane of the feature vectors ``features`` (n, D)."""
        return (as_float64(features) - self.mean) @ self.axes
