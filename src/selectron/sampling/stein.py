"""The force that the particles of a Stein ensemble exert on one of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from selectron.sampling.alignment import Alignment, unaligned
from selectron.sampling.kernels import CONSTANT, GAUSSIAN, Bandwidth, Kernel, Schedule, median_bandwidth


class Standing(NamedTuple):
    """What is known of the M particles of E ensembles, all of n atoms, and does not change while they stand.

    | field       | shape         | unit | meaning                                                                  |
    |-------------|---------------|------|--------------------------------------------------------------------------|
    | positions   | (E, M, n, 3)  | Å    |                                                                          |
    | energies    | (E, M)        | eV   | V(r_j)                                                                   |
    | forces      | (E, M, n, 3)  | eV/Å | F(r_j)                                                                   |
    | descriptors | (E, M, D)     | –    | d(r_j)                                                                   |
    | jacobians   | (E, M, D, 3n) | Å⁻¹  | J(r_j), in the potential's dtype; D = 0 where d is the coordinates       |
    | shortest    | (E, M)        | Å    | smallest distance of two atoms                                           |
    """

    positions: Tensor
    energies: Tensor
    forces: Tensor
    descriptors: Tensor
    jacobians: Tensor
    shortest: Tensor


class SteinKernel(NamedTuple):
    """Kernel, bandwidth rule, amplitude h, their schedules over outer iterations, and the alignment of particles."""

    kernel: Kernel = GAUSSIAN
    bandwidth: Bandwidth = median_bandwidth()
    amplitude: float = 1.0
    amplitude_schedule: Schedule = CONSTANT
    bandwidth_schedule: Schedule = CONSTANT
    alignment: Alignment = unaligned


def differences(
    positions: Tensor, descriptors: Tensor, standing: Standing, alignment: Alignment, identity: bool
) -> tuple[Tensor, Tensor | None]:
    """d(r) − d(r_j) (E, M, D) of the moving particle and each standing one, and rotations (E, M, 3, 3) or None.

    Where d is the coordinates (``identity``), r_j is brought into the frame of r first.
    """
    aligned = alignment(positions, standing.positions)
    if identity:
        return (positions[:, None] - aligned.positions).flatten(2), aligned.rotations
    return descriptors[:, None] - standing.descriptors, aligned.rotations


def stein_sum(
    apart: Tensor,
    rotations: Tensor | None,
    standing: Standing,
    present: Tensor,
    stein: SteinKernel,
    *,
    bandwidth: Tensor,
    amplitude: Tensor,
    kT_eV: float,
    identity: bool,
) -> Tensor:
    """Σ_j [ k(r_j, r) F(r_j) + kT ∇_{r_j} k(r_j, r) ] over the standing particles that are ``present``: M b of SKMD, eq. 5b.

        ∇_{r_j} k(r_j, r) = −2 (dk/ds) J(r_j)ᵀ (d(r) − d(r_j)),  s = ‖d(r) − d(r_j)‖²        (eq. 7; Gaussian: (k/ℓ²) Jᵀ …)

    Args:
        apart: d(r) − d(r_j), (E, M, D).
        rotations: as from :func:`differences`; turns F(r_j) and J(r_j)ᵀ v into the frame of the moving particle.
        standing: the particles.
        present: (E, M) 1 for those that count, 0 for the moving one itself.
        stein: kernel and alignment.
        bandwidth, amplitude: ℓ and h, (E,).
        kT_eV: 1/β.
        identity: whether d is the coordinates, so that J is the identity.

    Returns (E, n, 3) in eV/Å.
    """
    ensembles, count, atoms, _ = standing.forces.shape
    squared = apart.square().sum(-1)
    scale, height = bandwidth[:, None], amplitude[:, None]
    attraction = stein.kernel.value(squared, scale, height) * present
    repulsion = -2.0 * kT_eV * stein.kernel.slope(squared, scale, height) * present
    if identity:
        pushed = torch.einsum("em,emx->ex", repulsion, apart).reshape(ensembles, atoms, 3)
        forces = standing.forces
        if rotations is not None:
            forces = torch.einsum("emxy,emny->emnx", rotations, forces)
        return pushed + torch.einsum("em,emnx->enx", attraction, forces)
    weights = repulsion[..., None] * apart
    jacobians = standing.jacobians
    if rotations is None:
        flat = jacobians.reshape(ensembles, -1, 3 * atoms)
        pushed = torch.bmm(weights.reshape(ensembles, 1, -1).to(flat.dtype), flat)
        pushed = pushed.double().reshape(ensembles, atoms, 3)
        return pushed + torch.einsum("em,emnx->enx", attraction, standing.forces)
    own = torch.einsum("emd,emdx->emx", weights.to(jacobians.dtype), jacobians).double()
    own = own.reshape(ensembles, count, atoms, 3) + attraction[..., None, None] * standing.forces
    return torch.einsum("emxy,emny->enx", rotations, own)


def pair_distances(standing: Standing, alignment: Alignment, identity: bool) -> Tensor:
    """(E, M, M) squared distances of the particles' descriptors; exactly zero where these are the same."""
    if not identity:
        return _distances(standing.descriptors).square()
    count = standing.positions.shape[1]
    if alignment is unaligned:
        return _distances(standing.positions.flatten(2)).square()
    rows = [
        (standing.positions[:, i, None] - alignment(standing.positions[:, i], standing.positions).positions)
        for i in range(count)
    ]
    return torch.stack([row.square().sum((-1, -2)) for row in rows], dim=1)


def _distances(points: Tensor) -> Tensor:
    # products of matrices, which is what cdist takes for many points, leave 1e-8 between equal ones
    return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
