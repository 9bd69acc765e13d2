"""Biases along the disagreement of a committee: uncertainty-driven dynamics and hyperactive learning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from selectron.errors import SelectronError
from selectron.potentials.base import Potential
from selectron.sampling.state import Field, Memory, norms
from selectron.sampling.system import System, evaluate, shortest_distances


class Disagreement(NamedTuple):
    """Of K members at P structures with N atoms.

    ``mean_energies`` (P,) in eV, ``mean_forces`` (N, 3) in eV/Å; ``spread`` (P,) the standard deviation σ of the energies in
    eV, with 1/K; ``spread_gradient`` (N, 3) = ∇σ in eV/Å. Where all agree exactly, ∇σ is zero.
    """

    mean_energies: Tensor
    mean_forces: Tensor
    spread: Tensor
    spread_gradient: Tensor


class Bias(NamedTuple):
    """Bias forces from a disagreement: ``start(P)`` gives its memory, ``forces`` maps it on to the next.

    ``forces(system, disagreement, memory)`` returns bias forces (N, 3) and the memory for the next step.
    """

    start: Callable[[System], NamedTuple]
    forces: Callable[[System, Disagreement, NamedTuple], tuple[Tensor, NamedTuple]]


class CommitteeField:
    """Forces of the committee's mean energy plus a :class:`Bias`; each member is called once a step.

    ``uncertainty`` is σ/√n with n atoms, in eV (SKMD, eq. 35: the scaled standard deviation of committee predictions).
    """

    def __init__(self, system: System, members: Sequence[Potential], bias: Bias) -> None:
        if len(members) < 2:
            raise SelectronError("A committee needs at least two models: give --model more than once.")
        self.system = system
        self.systems = [replace(system, potential=member, descriptor=None) for member in members]
        self.bias = bias

    def start(self) -> Memory:
        """No neighbour lists yet; the bias's own start."""
        return Memory(tuple(None for _ in self.systems), self.bias.start(self.system))

    def __call__(self, positions: Tensor, memory: Memory, step: int) -> tuple[Field, Memory]:
        """The field of the mean energy and the bias."""
        del step
        found = [evaluate(one, positions, graph) for one, graph in zip(self.systems, memory.graphs, strict=True)]
        energies = torch.stack([one.evaluation.energies for one in found])
        forces = torch.stack([_forces(one.evaluation.forces) for one in found])
        said = disagreement(self.system, energies, forces)
        bias_forces, bias_memory = self.bias.forces(self.system, said, memory.bias)
        field = Field(
            energies=said.mean_energies,
            forces=said.mean_forces,
            bias_forces=bias_forces * self.system.free,
            uncertainty=said.spread / self.system.template.counts.sqrt(),
            descriptors=energies.new_zeros((self.system.n_structures, 0)),
            shortest=shortest_distances(self.system, found[0].batch),
        )
        return field, Memory(tuple(one.graph for one in found), bias_memory)


def _forces(forces: Tensor | None) -> Tensor:
    assert forces is not None
    return forces


def disagreement(system: System, energies: Tensor, forces: Tensor) -> Disagreement:
    """From energies (K, P) and forces (K, N, 3) of the members, without any further model call.

    σ² = (1/K) Σ_k (E_k − Ē)² (SKMD, eq. 21), ∇σ = −(1/(K σ)) Σ_k (E_k − Ē) F_k.
    """
    mean = energies.mean(0)
    apart = energies - mean
    spread = apart.square().mean(0).sqrt()
    pull = (system.of_atoms(apart.T).T[..., None] * forces).mean(0)
    safe = system.of_atoms(torch.where(spread > 0, spread, torch.ones_like(spread)))[:, None]
    return Disagreement(mean, forces.mean(0), spread, -pull / safe)


class _Nothing(NamedTuple):
    pass


def uncertainty_driven(*, height_eV: float, width_eV: float) -> Bias:
    """Uncertainty-driven dynamics (Kulichenko et al. 2023, doi:10.1038/s43588-023-00406-5; SKMD, eq. 9).

        V_bias = A [exp(−σ²/(n B²)) − 1],    f = −∇V_bias = A exp(−σ²/(n B²)) (2σ/(n B²)) ∇σ

    | symbol | meaning                                                                                    |
    |--------|--------------------------------------------------------------------------------------------|
    | A      | ``height_eV``: how far the bias lowers the energy where the committee disagrees            |
    | B      | ``width_eV``: the spread, divided by √n, at which it has most of that effect               |
    | σ²     | variance of the members' energies, (1/K) Σ (E_k − Ē)²; n atoms                             |
    """
    if not (height_eV > 0.0 and width_eV > 0.0):
        raise SelectronError("Height and width of the uncertainty bias are positive.")

    def forces(system: System, said: Disagreement, memory: NamedTuple) -> tuple[Tensor, NamedTuple]:
        scale = system.template.counts * width_eV**2
        strength = height_eV * torch.exp(-said.spread.square() / scale) * 2.0 * said.spread / scale
        return system.of_atoms(strength)[:, None] * said.spread_gradient, memory

    return Bias(lambda system: _Nothing(), forces)


class Averages(NamedTuple):
    """Running means (P,) of the norms of forces and of ∇σ, and how many steps are in them."""

    force: Tensor
    gradient: Tensor
    samples: Tensor


def hyperactive(*, relative_strength: float, average_over: int = 100) -> Bias:
    """Hyperactive learning (van der Oord et al. 2023, doi:10.1038/s41524-023-01104-6): V_bias = −τ σ, f = τ ∇σ.

    τ follows from ``relative_strength`` τ_r so that the bias force is that fraction of the force: τ = τ_r ⟨‖F‖⟩ / ⟨‖∇σ‖⟩,
    with running means over about ``average_over`` steps. Because of them the bias depends on the path; samples are for
    training, not for averages.
    """
    if not relative_strength > 0.0:
        raise SelectronError(f"The relative strength of the hyperactive bias is positive, not {relative_strength}.")

    def start(system: System) -> NamedTuple:
        zero = system.masses.new_zeros(system.n_structures)
        return Averages(zero, zero.clone(), zero.clone())

    def forces(system: System, said: Disagreement, memory: NamedTuple) -> tuple[Tensor, NamedTuple]:
        assert isinstance(memory, Averages)
        force, gradient = norms(system, said.mean_forces), norms(system, said.spread_gradient)
        weight = 1.0 / (memory.samples + 1.0).clamp_max(float(average_over))
        # a force or gradient that is not finite ends the trajectory and must not stay in the means
        sane = torch.isfinite(force) & torch.isfinite(gradient)
        averages = Averages(
            torch.where(sane, torch.lerp(memory.force, force, weight), memory.force),
            torch.where(sane, torch.lerp(memory.gradient, gradient, weight), memory.gradient),
            memory.samples + sane,
        )
        strength = relative_strength * averages.force / averages.gradient.clamp_min(1e-30)
        return system.of_atoms(strength)[:, None] * said.spread_gradient, averages

    return Bias(start, forces)
