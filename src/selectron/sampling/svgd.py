"""SKMD with synchronous updates: all particles of an ensemble move at once, in one model call (stochastic SVGD)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from selectron.potentials.base import Evaluation
from selectron.sampling.brownian import Scales, brownian
from selectron.sampling.ending import geometry_of
from selectron.sampling.geometry import Geometry
from selectron.sampling.skmd import Stepping, check_ensembles
from selectron.sampling.state import Field, Memory, Sampler, Watch
from selectron.sampling.stein import Standing, SteinKernel, differences, pair_distances
from selectron.sampling.system import System, evaluate_traced, graph_of, shortest_distances
from selectron.sampling.unbiased import plain_field


class HeldBandwidth(NamedTuple):
    """ℓ (E,) as the rule last gave it."""

    bandwidth: Tensor


class SteinField:
    """b of SKMD, eq. 5b, for every particle of E ensembles of M, all of them where they are at this step.

    ``system`` holds the ensembles one after the other. The bandwidth follows its rule at every step while the bandwidth
    schedule holds; schedules count steps here. One model call a step, and for descriptors of the model min(M, D) more
    backward passes of the whole batch. A particle whose geometry breaks the ``limits`` does not act on the others.
    """

    def __init__(
        self,
        system: System,
        *,
        particles: int,
        stein: SteinKernel,
        kT_eV: float,
        limits: Geometry = Geometry(),  # noqa: B008
    ) -> None:
        self.system, self.particles, self.stein, self.kT_eV = system, particles, stein, kT_eV
        self.limits = limits
        self.ensembles = system.n_structures // particles
        self.atoms = len(system.structures[0])

    def start(self) -> Memory:
        """No neighbour list yet."""
        return Memory((None,), HeldBandwidth(self.system.masses.new_ones(self.ensembles)))

    def __call__(self, positions: Tensor, memory: Memory, step: int) -> tuple[Field, Memory]:
        """The field with b as bias."""
        system, stein, descriptor = self.system, self.stein, self.system.descriptor
        assert descriptor is not None
        batch, graph = graph_of(system, positions, memory.graphs[0])
        leaf, values, energies, forces = evaluate_traced(system, batch)
        here = values.detach().double()
        field = plain_field(Evaluation(energies, forces), here, shortest_distances(system, batch))
        acting = self._unbroken(field, positions)
        atoms = system.of_atoms(acting)[:, None]
        shape = (self.ensembles, self.particles)
        standing = Standing(
            positions=torch.where(atoms, positions, torch.zeros_like(positions)).reshape(*shape, self.atoms, 3),
            energies=energies.reshape(shape),
            forces=torch.where(atoms, forces, torch.zeros_like(forces)).reshape(*shape, self.atoms, 3),
            descriptors=torch.where(acting[:, None], here, torch.zeros_like(here)).reshape(*shape, -1),
            jacobians=positions.new_zeros(*shape, 0, 3 * self.atoms),
            shortest=energies.new_zeros(shape),
        )
        acting = acting.reshape(shape)
        held = self._bandwidth(standing, acting, memory.bias, step)
        count = torch.full((1,), step, device=system.device)
        scale = held.bandwidth * stein.bandwidth_schedule.factor(count)
        height = torch.full_like(scale, stein.amplitude) * stein.amplitude_schedule.factor(count)
        total = self._sums(standing, acting, _Pulled(leaf, values, standing, descriptor.identity), scale, height)
        bias = total.reshape(-1, 3) * system.free / self.particles
        return field._replace(bias_forces=bias), Memory((graph,), held)

    def _unbroken(self, field: Field, positions: Tensor) -> Tensor:
        """(P,) bool: which particles are within the limits, as far as these do not look at the start."""
        unlimited = torch.full_like(field.energies, float("inf"))
        return geometry_of(self.system, self.limits, field, unlimited, torch.zeros_like(positions)) < 0

    def _bandwidth(self, standing: Standing, acting: Tensor, held: HeldBandwidth, step: int) -> HeldBandwidth:
        if step and step >= self.stein.bandwidth_schedule.hold:
            return held
        assert self.system.descriptor is not None
        squared = pair_distances(standing, self.stein.alignment, self.system.descriptor.identity)
        complete = acting.all(1)
        fresh = self.stein.bandwidth(torch.where(complete[:, None, None], squared, torch.ones_like(squared)))
        return HeldBandwidth(torch.where(complete, fresh, held.bandwidth))

    def _sums(self, standing: Standing, acting: Tensor, pull: _Pulled, bandwidth: Tensor, amplitude: Tensor) -> Tensor:
        """Σ_j [ k F_j + kT ∇_{r_j} k ] over the particles j ≠ i that are ``acting`` (E, M), for every i: (E, M, n, 3)."""
        assert self.system.descriptor is not None
        identity = self.system.descriptor.identity
        scale, height = bandwidth[:, None], amplitude[:, None]
        rows = []
        for i in range(self.particles):
            apart, rotations = differences(
                standing.positions[:, i], standing.descriptors[:, i], standing, self.stein.alignment, identity
            )
            squared = apart.square().sum(-1)
            present = acting.double()
            present[:, i] = 0.0
            attraction = self.stein.kernel.value(squared, scale, height) * present
            repulsion = -2.0 * self.kT_eV * self.stein.kernel.slope(squared, scale, height) * present
            vectors = attraction[..., None, None] * standing.forces
            if identity:
                pushed = (repulsion[..., None] * apart).reshape(vectors.shape)
                vectors = vectors if rotations is None else torch.einsum("emxy,emny->emnx", rotations, vectors)
                rows.append((vectors + pushed).sum(1))
                continue
            vectors = vectors + pull(repulsion[..., None] * apart)
            # nothing times what is not finite is not nothing
            vectors = torch.where(present[..., None, None] > 0, vectors, torch.zeros_like(vectors))
            turned = vectors if rotations is None else torch.einsum("emxy,emny->emnx", rotations, vectors)
            rows.append(turned.sum(1))
        return torch.stack(rows, dim=1)


class _Pulled:
    """J(r_j)ᵀ v_j of all particles j, by one backward pass a call or, where that is cheaper, from all of J."""

    def __init__(self, leaf: Tensor, values: Tensor, standing: Standing, identity: bool) -> None:
        self.leaf, self.values = leaf, values
        self.shape = standing.positions.shape
        self.jacobians: Any = None
        dimension, particles = values.shape[1], self.shape[1]
        if not identity and dimension < particles:
            rows = [
                torch.autograd.grad(values[:, c].sum(), leaf, retain_graph=True)[0].reshape(len(values), -1)
                for c in range(dimension)
            ]
            self.jacobians = torch.stack(rows, dim=1).reshape(*self.shape[:2], dimension, -1)

    def __call__(self, vectors: Tensor) -> Tensor:
        """(E, M, n, 3) for ``vectors`` (E, M, D)."""
        if self.jacobians is not None:
            found = torch.einsum("emd,emdx->emx", vectors.to(self.jacobians.dtype), self.jacobians)
        else:
            flat = vectors.reshape(self.values.shape).to(self.values.dtype)
            (found,) = torch.autograd.grad(self.values, self.leaf, flat, retain_graph=True)
        return found.double().reshape(self.shape)


def synchronous_skmd(
    system: System,
    *,
    particles: int,
    stepping: Stepping,
    seed: int,
    stein: SteinKernel = SteinKernel(),  # noqa: B008
    watch: Watch = Watch(),  # noqa: B008
) -> Sampler:
    """SKMD as :func:`~selectron.sampling.skmd.skmd` has it, but all particles take each step together.

    With ``stepping.noisy`` off and α = k(r, r) it is Stein variational gradient descent (Liu & Wang 2016). Arguments as for
    ``skmd``; a particle whose geometry breaks stops moving but goes on acting on the others from its last good place.
    """
    check_ensembles(system, particles, stepping)
    own, share = stepping.rates(particles)
    sampler = brownian(
        SteinField(system, particles=particles, stein=stein, kT_eV=stepping.kT_eV, limits=watch.geometry),
        kT_eV=stepping.kT_eV,
        step_size=stepping.step_size,
        seed=seed,
        watch=watch,
        max_displacement_A=stepping.max_displacement_A,
        fix_centre_of_mass=stepping.fix_centre_of_mass,
        scales=Scales(force=own, bias=share, noise=math.sqrt(own) if stepping.noisy else 0.0),
    )
    return sampler._replace(name="synchronous-skmd")
