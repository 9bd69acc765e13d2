"""Analytic surfaces in the plane, whose Boltzmann distribution can be sampled exactly: where a sampler shows what it does."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from selectron.errors import SelectronError
from selectron.potentials.boltzmann import Bounds, Landscape, boltzmann_samples, landscape
from selectron.potentials.planar import PlanarPotential, finite_array, finite_number

__all__ = [
    "SURFACES",
    "Bounds",
    "DoubleWell",
    "GaussianMixture",
    "Harmonic",
    "Landscape",
    "MuellerBrown",
    "boltzmann_samples",
    "landscape",
    "surface_from",
]


class _QuadraticForms(NamedTuple):
    """K forms q_k(r) = (r − c_k)ᵀ P_k (r − c_k), P_k symmetric: one affine map gives all r − c_k and P_k (r − c_k)."""

    weight: Tensor
    offset: Tensor

    @classmethod
    def of(cls, centres: Tensor, matrices: Tensor) -> _QuadraticForms:
        """From centres (K, 2) and matrices (K, 2, 2)."""
        n = len(centres)
        identity = torch.eye(2, dtype=centres.dtype, device=centres.device).expand(n, 2, 2)
        rows = torch.cat([identity, matrices], dim=1)
        offset = -torch.einsum("kij,kj->ik", rows, centres)
        return cls(rows.permute(2, 1, 0).reshape(2, 4 * n).contiguous(), offset.reshape(4 * n).contiguous())

    def __call__(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Values q (n, K) and half gradients P (r − c) (n, 2, K)."""
        mapped = torch.addmm(self.offset, points, self.weight).view(points.shape[0], 4, self.offset.shape[0] // 4)
        half_gradients = mapped[:, 2:]
        return (mapped[:, :2] * half_gradients).sum(1), half_gradients


class MuellerBrown(PlanarPotential):
    """The Müller–Brown surface, Theor. Chim. Acta 53, 75 (1979), times ``scale``.

    V = scale Σ_k A_k exp[a_k (x − x_k)² + b_k (x − x_k)(y − y_k) + c_k (y − y_k)²], with

    | k |    A |    a |   b |     c |  x_k | y_k |
    |---|------|------|-----|-------|------|-----|
    | 1 | −200 |   −1 |   0 |   −10 |    1 |   0 |
    | 2 | −100 |   −1 |   0 |   −10 |    0 | 0.5 |
    | 3 | −170 | −6.5 |  11 |  −6.5 | −0.5 | 1.5 |
    | 4 |   15 |  0.7 | 0.6 |   0.7 |   −1 |   1 |

    At ``scale`` 1: minima −146.70 at (−0.558, 1.442), −108.17 at (0.623, 0.028) and −80.77 at (−0.050, 0.467), saddles
    −40.66 at (−0.822, 0.624) and −72.25 at (0.212, 0.293). Far out it grows as the exponential of a square.
    """

    def __init__(
        self, scale: float = 1.0, *, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
    ) -> None:
        self.dtype, self.device = dtype, torch.device(device)
        self.scale = finite_number("scale", scale, positive=True)
        self._amplitudes = self.scale * self._tensor([-200.0, -100.0, -170.0, 15.0])
        a, b, c = self._tensor([[-1.0, -1.0, -6.5, 0.7], [0.0, 0.0, 11.0, 0.6], [-10.0, -10.0, -6.5, 0.7]])
        centres = self._tensor([[1.0, 0.0], [0.0, 0.5], [-0.5, 1.5], [-1.0, 1.0]])
        # half of dᵀPd is the exponent, and P d its gradient
        self._forms = _QuadraticForms.of(centres, torch.stack([2 * a, b, b, 2 * c], dim=1).view(4, 2, 2))
        self._identify("mueller-brown", self._amplitudes)

    def _tensor(self, values: Sequence[Any]) -> Tensor:
        return torch.tensor(values, dtype=self.dtype, device=self.device)

    def energies_and_forces(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Energies (n,) in eV and forces (n, 2) in eV/Å at ``points`` (n, 2) in Å."""
        values, gradients = self._forms(points)
        terms = torch.exp(0.5 * values) * self._amplitudes
        return terms.sum(1), (gradients * terms.unsqueeze(1)).sum(2).neg()


class GaussianMixture(PlanarPotential):
    """V = −kT log p with p(r) = Σ_k w_k N(r; μ_k, Σ_k), p a normalised density in Å⁻².

    At the temperature ``kT_eV`` the Boltzmann distribution is the mixture itself: moments are known in closed form.
    ``means`` (K, 2) in Å; ``covariances`` (K, 2, 2) in Å², or (K,) variances of round components; ``weights`` (K,),
    positive, brought to sum 1 (None: all alike). Raises SelectronError for shapes that do not fit together and for
    covariances that are not symmetric and positive definite.
    """

    def __init__(
        self,
        means: Sequence[Sequence[float]] | Tensor,
        covariances: Sequence[Any] | Tensor,
        weights: Sequence[float] | Tensor | None = None,
        kT_eV: float = 1.0,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> None:
        self.dtype, self.device = dtype, torch.device(device)
        self.kT_eV = finite_number("kT_eV", kT_eV, positive=True)
        self.means = finite_array("means", means).to(device, dtype)
        count = len(self.means)
        spread = finite_array("covariances", covariances).to(device, dtype)
        if spread.ndim == 1:
            spread = spread[:, None, None] * torch.eye(2, dtype=dtype, device=device)
        mass = finite_array("weights", weights if weights is not None else [1.0] * count).to(device, dtype)
        if self.means.shape != (count, 2) or spread.shape != (count, 2, 2) or mass.shape != (count,) or count == 0:
            raise SelectronError(
                "A Gaussian mixture of K components needs means (K, 2), covariances (K, 2, 2) or (K,) and weights (K,); "
                f"these have shapes {tuple(self.means.shape)}, {tuple(spread.shape)} and {tuple(mass.shape)}."
            )
        factors, failed = torch.linalg.cholesky_ex(spread)
        if bool(failed.any()) or not torch.equal(spread, spread.mT):
            raise SelectronError("The covariances of a Gaussian mixture must be symmetric and positive definite.")
        if not bool((mass > 0).all()):
            raise SelectronError("The weights of a Gaussian mixture must be positive.")
        self.covariances, self.weights = spread, mass / mass.sum()
        log_determinants = 2 * factors.diagonal(dim1=1, dim2=2).log().sum(1)
        self._log_amplitudes = self.weights.log() - 0.5 * log_determinants - float(np.log(2 * np.pi))
        precisions = torch.cholesky_inverse(factors)
        self._forms = _QuadraticForms.of(self.means, 0.5 * (precisions + precisions.mT))
        temperature = torch.tensor(self.kT_eV, dtype=dtype)
        self._identify("gaussian-mixture", self.means, self.covariances, self.weights, temperature)

    def energies_and_forces(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Energies (n,) in eV and forces (n, 2) in eV/Å at ``points`` (n, 2) in Å."""
        values, gradients = self._forms(points)
        logs = torch.sub(self._log_amplitudes, values, alpha=0.5)
        log_density = torch.logsumexp(logs, 1, keepdim=True)
        shares = torch.exp(logs - log_density).unsqueeze(1)
        return log_density.squeeze(1) * -self.kT_eV, (gradients * shares).sum(2) * -self.kT_eV


class Harmonic(PlanarPotential):
    """V = ½ (r − c)ᵀ K (r − c): ``stiffness`` K in eV/Å², a number, two (diagonal) or a symmetric 2 × 2 matrix.

    Raises SelectronError where K is not symmetric and positive definite.
    """

    def __init__(
        self,
        stiffness: float | Sequence[Any] | Tensor = 1.0,
        centre: Sequence[float] | Tensor = (0.0, 0.0),
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> None:
        self.dtype, self.device = dtype, torch.device(device)
        matrix = finite_array("stiffness", stiffness).to(device, dtype)
        if matrix.ndim == 0:
            matrix = matrix.expand(2)
        if matrix.ndim == 1:
            matrix = torch.diag(matrix)
        self.centre = finite_array("centre", centre).to(device, dtype)
        if matrix.shape != (2, 2) or self.centre.shape != (2,):
            raise SelectronError(
                "A harmonic surface needs a stiffness (number, two or 2 × 2) and a centre (two numbers)."
            )
        if not torch.equal(matrix, matrix.mT) or bool((torch.linalg.eigvalsh(matrix) <= 0).any()):
            raise SelectronError("The stiffness of a harmonic surface must be symmetric and positive definite.")
        self.stiffness = matrix
        self._identify("harmonic", self.stiffness, self.centre)

    def energies_and_forces(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Energies (n,) in eV and forces (n, 2) in eV/Å at ``points`` (n, 2) in Å."""
        displacements = points - self.centre
        forces = -(displacements @ self.stiffness)
        return (displacements * forces).sum(1) * -0.5, forces


class DoubleWell(PlanarPotential):
    """V = h ((x/a)² − 1)² + ½ k y²: minima of energy 0 at x = ±``half_distance_A``, a barrier ``barrier_eV`` between."""

    def __init__(
        self,
        barrier_eV: float = 1.0,
        half_distance_A: float = 1.0,
        stiffness: float = 1.0,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> None:
        self.dtype, self.device = dtype, torch.device(device)
        self.barrier_eV = finite_number("barrier_eV", barrier_eV, positive=True)
        self.half_distance_A = finite_number("half_distance_A", half_distance_A, positive=True)
        self.stiffness = finite_number("stiffness", stiffness, positive=True)
        self._identify(
            "double-well", torch.tensor([self.barrier_eV, self.half_distance_A, self.stiffness], dtype=torch.float64)
        )

    def energies_and_forces(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Energies (n,) in eV and forces (n, 2) in eV/Å at ``points`` (n, 2) in Å."""
        x, y = points.unbind(1)
        excess = (x / self.half_distance_A).square() - 1.0
        pull = x * excess * (-4.0 * self.barrier_eV / self.half_distance_A**2)
        back = y * -self.stiffness
        return self.barrier_eV * excess.square() - 0.5 * y * back, torch.stack([pull, back], dim=1)


SURFACES: dict[str, Callable[..., PlanarPotential]] = {
    "mueller-brown": MuellerBrown,
    "gaussian-mixture": GaussianMixture,
    "harmonic": Harmonic,
    "double-well": DoubleWell,
}


def surface_from(name: str, arguments: dict[str, Any], *, device: str = "cpu") -> PlanarPotential:
    """The surface ``name`` of :data:`SURFACES` made with ``arguments``, float64; raises SelectronError."""
    if name not in SURFACES:
        raise SelectronError(f"There is no surface {name!r}; there are {', '.join(SURFACES)}.")
    parameters = [
        parameter
        for parameter in inspect.signature(SURFACES[name]).parameters.values()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    needed = {parameter.name for parameter in parameters if parameter.default is parameter.empty}
    known = [parameter.name for parameter in parameters]
    if not needed <= arguments.keys() <= set(known):
        needs = f" and needs {', '.join(n for n in known if n in needed)}" if needed else ""
        raise SelectronError(
            f"surface:{name} takes the arguments {', '.join(known)}{needs}; it was given "
            f"{', '.join(arguments) if arguments else 'none'}."
        )
    return SURFACES[name](**arguments, device=device)
