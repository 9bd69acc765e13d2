"""Posterior variances of a linear model in feature space, from a streamed D × D precision matrix."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import SelectronError
from ..rows import Rows
from .cholesky import cholesky
from .moment import CHUNK_ROWS, SecondMoment, float64_chunks, require_dim

DEFAULT_NOISE_VARIANCE = 1e-3


class Posterior:
    """Bayesian linear regression on feature rows: Λ = λ I + Σ_train Φᵀ Φ / σ², and variances s²(x) = tr(Φ Λ⁻¹ Φᵀ).

    | symbol | argument          | meaning                                                                  |
    |--------|-------------------|--------------------------------------------------------------------------|
    | D      | `dim`             | number of features                                                       |
    | λ      | `prior_precision` | precision of each weight before any data, in 1 / (squared feature units) |
    | σ²     | `noise_variance`  | variance of the noise of each observed row                               |
    | Λ      | `precision`       | (D, D) float64 posterior precision of the weights                        |

    Rasmussen and Williams, *Gaussian Processes for Machine Learning* (2006), eq. 2.8 and 2.9 with prior covariance
    λ⁻¹ I; the kernel form is their eq. 2.26 with k(x, x') = Φ(x) Φ(x')ᵀ / λ. Feature rows may be float32: all sums
    are float64. Cost is O((n_T + n_P) D²) and memory O(D² + chunk · D): no kernel matrix of structures is ever
    held.
    """

    def __init__(
        self,
        dim: int,
        *,
        prior_precision: float = 1.0,
        noise_variance: float = DEFAULT_NOISE_VARIANCE,
        device: torch.device | str = "cpu",
        chunk_rows: int = CHUNK_ROWS,
    ) -> None:
        require_positive(prior_precision=prior_precision, noise_variance=noise_variance)
        self.prior_precision = float(prior_precision)
        self.noise_variance = float(noise_variance)
        self.moment = SecondMoment(dim, device=device, chunk_rows=chunk_rows)
        self.jitter = 0.0
        self._factor: Tensor | None = None

    @property
    def dim(self) -> int:
        """Number of features, D."""
        return self.moment.dim

    @property
    def precision(self) -> Tensor:
        """Λ, (D, D) float64."""
        eye = torch.eye(self.dim, dtype=torch.float64, device=self.moment.matrix.device)
        return self.prior_precision * eye + self.moment.matrix / self.noise_variance

    @property
    def factor(self) -> Tensor:
        """Lower Cholesky factor of Λ, (D, D) float64, computed once after each change; `jitter` says what it took."""
        if self._factor is None:
            self._factor, self.jitter = cholesky(self.precision)
        return self._factor

    def update(self, rows: Rows) -> None:
        """Condition on the rows of some training structures."""
        self.moment.update(rows)
        self._factor = None

    def merge(self, other: Posterior) -> None:
        """Condition on all that a posterior of another shard has seen; both must share λ, σ² and D."""
        if (other.prior_precision, other.noise_variance) != (self.prior_precision, self.noise_variance):
            raise SelectronError(
                "Posteriors with different prior precision or noise variance cannot be merged: "
                f"{self.prior_precision:g} and {self.noise_variance:g} here, "
                f"{other.prior_precision:g} and {other.noise_variance:g} in the other."
            )
        self.moment.merge(other.moment)
        self._factor = None

    def whiten(self, values: Tensor) -> Tensor:
        """(D, R) float64: columns z = L⁻¹ φ with Λ = L Lᵀ, so that z·z' is the posterior covariance of two rows."""
        out = torch.empty(self.dim, values.shape[0], dtype=torch.float64, device=self.factor.device)
        start = 0
        for chunk in float64_chunks(values, out.device, self.moment.chunk_rows):
            end = start + chunk.shape[0]
            out[:, start:end] = torch.linalg.solve_triangular(self.factor, chunk.T, upper=False)
            start = end
        return out

    def variance(self, rows: Rows, *, per: Literal["structure", "row"] = "structure") -> Tensor:
        """Posterior variances without the noise, float64: (n,) s²(x) = tr(Φ Λ⁻¹ Φᵀ), or (R,) φ Λ⁻¹ φᵀ of every row."""
        require_dim(rows, self.dim)
        if per not in ("structure", "row"):
            raise SelectronError(f"Variances are given per 'structure' or per 'row', not per '{per}'.")
        factor = self.factor
        parts = [
            torch.linalg.solve_triangular(factor, chunk.T, upper=False).square().sum(0)
            for chunk in float64_chunks(rows.values, factor.device, self.moment.chunk_rows)
        ]
        per_row = torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64, device=factor.device)
        return per_row if per == "row" else rows.sum_per_structure(per_row)

    def state_dict(self) -> dict[str, Any]:
        """All that `from_state_dict` needs, as tensors and plain numbers; safe for ``torch.save``."""
        return {
            "version": 1,
            "prior_precision": self.prior_precision,
            "noise_variance": self.noise_variance,
            "moment": self.moment.state_dict(),
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any], *, device: torch.device | str = "cpu") -> Posterior:
        """The posterior that was saved; raises `SelectronError` for a version that this code does not know."""
        if state.get("version") != 1:
            raise SelectronError(
                f"This posterior was saved as version {state.get('version')}; only version 1 can be read."
            )
        posterior = cls(
            int(state["moment"]["matrix"].shape[0]),
            prior_precision=state["prior_precision"],
            noise_variance=state["noise_variance"],
            device=device,
        )
        posterior.moment.load_state_dict(state["moment"])
        return posterior


def require_positive(**values: float) -> None:
    """Raise `SelectronError` for the first of the named values that is not a positive finite number."""
    for name, value in values.items():
        if not 0.0 < value < float("inf"):
            raise SelectronError(f"The {name.replace('_', ' ')} has to be a positive number, but it is {value}.")
