"""Fitting planar MLPs to energies and forces: Levenberg–Marquardt for all networks of a stack at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from selectron.errors import SelectronError
from selectron.potentials.mlp import MLPPotential

# Jacobians are made for so many networks at a time that they stay in the cache of a core
_JACOBIAN_BYTES = 4_000_000
# in units of the mean diagonal of JᵀJ/n + λ at the start
_FIRST_DAMPING, _SMALLEST_DAMPING, _LARGEST_DAMPING = 1e-2, 1e-18, 1e12
_LEAST_PROGRESS = 1e-13


class FitHistory(NamedTuple):
    """Loss L and damping μ (T + 1, K) of each network: at the start and after each of the T iterations that were made."""

    loss: Tensor
    damping: Tensor


class _Targets(NamedTuple):
    """What K networks have to give at n points: u (K, 2, n), energies (K, n) and forces (K, 2, n) less confinement.

    ``roots`` (K, n) are those of the points' weights, 0 for points not in use, None where all count 1; ``counts`` (K,) the
    sums of weights.
    """

    u: Tensor
    energies: Tensor
    forces: Tensor
    roots: Tensor | None
    counts: Tensor

    def take(self, chosen: Tensor) -> _Targets:
        """Those of the networks ``chosen``."""
        roots = None if self.roots is None else self.roots[chosen]
        return _Targets(self.u[chosen], self.energies[chosen], self.forces[chosen], roots, self.counts[chosen])


class _Terms(NamedTuple):
    """Numbers of the loss: output scale in eV, −scale/width of either axis, roots of both weights, regularisation."""

    energy_eV: float
    slope: tuple[float, float]
    energy_root: float
    force_root: float
    regularisation: float


def fit_mlp(
    potential: MLPPotential,
    positions: Tensor,
    energies: Tensor,
    forces: Tensor,
    *,
    energy_weight: float = 1.0,
    force_weight: float = 1.0,
    steps: int = 100,
    regularisation: float = 0.0,
    mask: Tensor | None = None,
) -> tuple[MLPPotential, FitHistory]:
    """A potential whose K networks each have a lower loss than those of ``potential``, from where they are (warm start).

    The loss of a network with parameters θ on its n points of weights c_i (equation 1 of Stein kernelized molecular
    dynamics, with means, and a ridge on all parameters but the constant) is

        L(θ) = Σ_i c_i [w_E (E_i − E(r_i))² + w_F ‖F_i − F(r_i)‖²] / Σ_i c_i + λ ‖θ‖².

    Levenberg–Marquardt with closed-form Jacobians: (JᵀJ/Σc + λ + μ) δ = −½ ∇L. Each network has its own μ (Nielsen's rule),
    takes a step only if it lowers its loss, and rests once no step is to be had; so losses never rise, and no network knows
    of the others. Deterministic. μ times the identity, not times the diagonal of JᵀJ (Marquardt's scaling): on Müller–Brown
    the latter leaves twenty times the loss after 50 iterations, because it hardly holds units that the data do not see.

    Args:
        potential: where to start; not changed.
        positions: (K, n, 2) in Å.
        energies: (K, n) in eV.
        forces: (K, n, 2) in eV/Å.
        energy_weight: w_E in 1/eV².
        force_weight: w_F in Å²/eV².
        steps: iterations at most; an iteration is one solve and one trial of each network.
        regularisation: λ ≥ 0.
        mask: (K, n), true for the points that network k learns from, or weights c of at least 0 (None: all count 1);
            points that are false or 0 may hold anything, NaN too.

    Raises:
        SelectronError: shapes that do not fit, weights below zero or not finite, a network without points, labels that are
            not finite.
    """
    targets = _targets(potential, positions, energies, forces, mask)
    if min(energy_weight, force_weight, regularisation) < 0 or energy_weight + force_weight <= 0 or steps < 0:
        raise SelectronError("Weights, regularisation and steps of a fit must not be negative, nor both weights zero.")
    scale, width = potential.scaling.energy_eV, potential.scaling.width_A
    slope = (-scale / width[0], -scale / width[1])
    terms = _Terms(scale, slope, energy_weight**0.5, force_weight**0.5, regularisation)
    parameters = potential.parameters.clone()
    hidden = potential.hidden_units
    loss = _loss(parameters, hidden, targets, terms)
    if not bool(loss.isfinite().all()):
        raise SelectronError("The loss of the networks that the fit starts from is not finite.")
    curvature, gradient = _normal_equations(parameters, hidden, targets, terms)
    unit = curvature.diagonal(dim1=1, dim2=2).mean(1)
    damping, growth = _FIRST_DAMPING * unit, torch.full_like(loss, 2.0)
    losses, dampings = [loss.clone()], [damping.clone()]
    active = torch.arange(potential.networks, device=potential.device)
    for _ in range(steps):
        if not len(active):
            break
        step, solved = _solve(curvature[active], damping[active], gradient[active])
        trial = parameters[active] + step
        trial_loss = _loss(trial, hidden, targets.take(active), terms)
        predicted = (step * (damping[active, None] * step - gradient[active])).sum(1)
        lowered = solved & (trial_loss < loss[active])
        gain = torch.where(lowered, (loss[active] - trial_loss) / predicted.clamp(min=1e-300), 0.0)
        relative = (loss[active] - trial_loss) / loss[active]
        accepted = active[lowered]
        parameters[accepted], loss[accepted] = trial[lowered], trial_loss[lowered]
        shrink = (1.0 - (2.0 * gain - 1.0) ** 3).clamp(min=1.0 / 3.0, max=2.0)
        changed = damping[active] * torch.where(lowered, shrink, growth[active])
        damping[active] = torch.maximum(changed, _SMALLEST_DAMPING * unit[active])
        growth[active] = torch.where(lowered, 2.0, 2.0 * growth[active])
        losses.append(loss.clone())
        dampings.append(damping.clone())
        resting = torch.where(lowered, relative < _LEAST_PROGRESS, damping[active] > _LARGEST_DAMPING * unit[active])
        active = active[~resting]
        moved = accepted[torch.isin(accepted, active)]
        if len(moved):
            curvature[moved], gradient[moved] = _normal_equations(parameters[moved], hidden, targets.take(moved), terms)
    fitted = MLPPotential(parameters, potential.scaling, device=potential.device)
    return fitted, FitHistory(torch.stack(losses), torch.stack(dampings))


def _targets(
    potential: MLPPotential, positions: Tensor, energies: Tensor, forces: Tensor, mask: Tensor | None
) -> _Targets:
    points = tuple(positions.shape[:2])
    if (
        points[:1] != (potential.networks,)
        or positions.shape != (*points, 2)
        or energies.shape != points
        or forces.shape != (*points, 2)
        or (mask is not None and mask.shape != points)
    ):
        raise SelectronError(
            f"A fit of {potential.networks} networks needs positions (K, n, 2), energies (K, n), forces (K, n, 2) and mask "
            f"(K, n) with K = {potential.networks}; these have shapes {tuple(positions.shape)}, {tuple(energies.shape)}, "
            f"{tuple(forces.shape)} and {None if mask is None else tuple(mask.shape)}."
        )
    device, dtype = potential.device, potential.dtype
    centre = torch.tensor(potential.scaling.centre_A, device=device, dtype=dtype)
    width = torch.tensor(potential.scaling.width_A, device=device, dtype=dtype)
    r, e, f = (field.detach().to(device, dtype) for field in (positions, energies, forces))
    weights = None if mask is None else mask.to(device, dtype)
    if weights is not None:
        if not bool((weights.isfinite() & (weights >= 0)).all()):
            raise SelectronError("Weights of a fit's points must be finite and not negative.")
        kept = weights > 0
        r = torch.where(kept[..., None], r, centre)
        e = torch.where(kept, e, 0.0)
        f = torch.where(kept[..., None], f, 0.0)
    counts = (torch.ones_like(e) if weights is None else weights).sum(1)
    if not bool((counts > 0).all()):
        raise SelectronError("Every network needs at least one point to learn from.")
    if not all(bool(field.isfinite().all()) for field in (r, e, f)):
        raise SelectronError("Positions, energies and forces of a fit must be finite where the mask keeps them.")
    u = (r - centre) / width
    squared = u.square().sum(2)
    confinement = potential.scaling.confinement_eV
    return _Targets(
        u.mT.contiguous(),
        e - confinement * squared.square(),
        (f + 4 * confinement * squared[..., None] * u / width).mT.contiguous(),
        None if weights is None else weights.sqrt(),
        counts,
    )


def _forward(parameters: Tensor, hidden: int, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Units t (K, H, n), and directions (K, 2, H) and readouts (K, H, 1) as views of the parameters."""
    directions = parameters[:, : 2 * hidden].unflatten(1, (2, hidden))
    bias = parameters[:, 2 * hidden : 3 * hidden, None]
    units = torch.baddbmm(bias, directions.mT, u).tanh_()
    return units, directions, parameters[:, 3 * hidden : 4 * hidden, None]


def _residuals(
    units: Tensor, bent: Tensor, directions: Tensor, parameters: Tensor, targets: _Targets, terms: _Terms
) -> Tensor:
    """Weighted errors (K, 3, n) of energies, x forces and y forces; ``bent`` is v (1 − t²) (K, H, n)."""
    hidden = units.shape[1]
    outputs = torch.baddbmm(parameters[:, -1:, None], parameters[:, None, 3 * hidden : 4 * hidden], units)
    slopes = torch.bmm(directions, bent)
    residuals = torch.empty(len(units), 3, units.shape[2], dtype=units.dtype, device=units.device)
    residuals[:, 0] = terms.energy_root * (terms.energy_eV * outputs[:, 0] - targets.energies)
    for axis in (0, 1):
        residuals[:, 1 + axis] = terms.force_root * (terms.slope[axis] * slopes[:, axis] - targets.forces[:, axis])
    return residuals if targets.roots is None else residuals * targets.roots[:, None]


def _loss(parameters: Tensor, hidden: int, targets: _Targets, terms: _Terms) -> Tensor:
    """L (K,)."""
    units, directions, readout = _forward(parameters, hidden, targets.u)
    bent = readout * (1.0 - units.square())
    residuals = _residuals(units, bent, directions, parameters, targets, terms)
    ridge = parameters[:, :-1].square().sum(1)
    return residuals.square().sum((1, 2)) / targets.counts + terms.regularisation * ridge


def _normal_equations(parameters: Tensor, hidden: int, targets: _Targets, terms: _Terms) -> tuple[Tensor, Tensor]:
    """JᵀJ/Σc + λ (K, P, P) and ½ ∇L (K, P)."""
    networks, size = parameters.shape
    points = targets.u.shape[2]
    chunk = max(1, _JACOBIAN_BYTES // (8 * size * 3 * points))
    buffer = torch.zeros(min(chunk, networks), size, 3, points, dtype=parameters.dtype, device=parameters.device)
    curvature = parameters.new_empty(networks, size, size)
    gradient = torch.empty_like(parameters)
    ridge = torch.full_like(parameters[0], terms.regularisation)
    ridge[-1] = 0.0
    for start in range(0, networks, chunk):
        part = torch.arange(start, min(start + chunk, networks), device=parameters.device)
        some, part_targets = parameters[part], targets.take(part)
        residuals = _linearise(some, hidden, part_targets, terms, buffer[: len(part)])
        jacobian = buffer[: len(part)].flatten(2)
        flat = residuals.flatten(1)
        counts = part_targets.counts[:, None]
        curvature[part] = torch.bmm(jacobian, jacobian.mT) / counts[..., None] + torch.diag(ridge)
        gradient[part] = torch.bmm(jacobian, flat[..., None]).squeeze(2) / counts + ridge * some
    return curvature, gradient


def _linearise(parameters: Tensor, hidden: int, targets: _Targets, terms: _Terms, jacobian: Tensor) -> Tensor:
    """Writes ∂(residuals)/∂θ into ``jacobian`` (K, P, 3, n), whose last row is zero for forces, and returns the residuals."""
    u = targets.u
    units, directions, readout = _forward(parameters, hidden, u)
    flat = 1.0 - units.square()
    bent = readout * flat
    residuals = _residuals(units, bent, directions, parameters, targets, terms)
    offsets, readouts = slice(2 * hidden, 3 * hidden), slice(3 * hidden, 4 * hidden)
    scale = terms.energy_root * terms.energy_eV
    torch.mul(units, scale, out=jacobian[:, readouts, 0])
    torch.mul(bent, scale, out=jacobian[:, offsets, 0])
    jacobian[:, -1, 0] = scale
    units.mul_(bent).mul_(-2.0)  # v t''
    for axis in (0, 1):
        slope = terms.force_root * terms.slope[axis] * directions[:, axis, :, None]
        torch.mul(flat, slope, out=jacobian[:, readouts, 1 + axis])
        torch.mul(units, slope, out=jacobian[:, offsets, 1 + axis])
    for axis in (0, 1):
        rows = jacobian[:, axis * hidden : (axis + 1) * hidden]
        torch.mul(jacobian[:, offsets], u[:, None, axis : axis + 1], out=rows)
        rows[:, :, 1 + axis].add_(bent, alpha=terms.force_root * terms.slope[axis])
    if targets.roots is not None:
        jacobian.mul_(targets.roots[:, None, None])
    return residuals


def _solve(curvature: Tensor, damping: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Steps (K, P) of (curvature + damping) step = −gradient, and for which networks (K,) that went well."""
    damped = curvature.clone()
    damped.diagonal(dim1=1, dim2=2).add_(damping[:, None])
    factors, failed = torch.linalg.cholesky_ex(damped)
    step = torch.cholesky_solve(-gradient[..., None], factors).squeeze(2)
    solved = (failed == 0) & step.isfinite().all(1)
    return torch.where(solved[:, None], step, 0.0), solved
