"""What flows between samplers and whoever runs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from selectron.sampling.geometry import Geometry
from selectron.sampling.stopping import NEVER, Stopping
from selectron.sampling.system import Graph, System


class Field(NamedTuple):
    """What acts on P structures with N atoms at one moment.

    | field        | shape  | unit | meaning                                                             |
    |--------------|--------|------|---------------------------------------------------------------------|
    | energies     | (P,)   | eV   | V, the potential energy without bias                                |
    | forces       | (N, 3) | eV/Å | −∇V                                                                 |
    | bias_forces  | (N, 3) | eV/Å | what the sampler adds                                               |
    | uncertainty  | (P,)   | eV   | of a committee, NaN where there is none                             |
    | descriptors  | (P, D) | –    | global descriptors; D = 0 where the sampler needs none              |
    | shortest     | (P,)   | Å    | smallest distance of two atoms, infinite where there are no pairs   |
    """

    energies: Tensor
    forces: Tensor
    bias_forces: Tensor
    uncertainty: Tensor
    descriptors: Tensor
    shortest: Tensor


class Memory(NamedTuple):
    """What a force field carries from step to step: neighbour lists and the state of the bias (a NamedTuple of tensors)."""

    graphs: tuple[Graph, ...]
    bias: Any = ()


class ForceField(Protocol):
    """Forces of a system, biased or not, as a pure function of positions, memory and step."""

    system: System

    def start(self) -> Memory:
        """The memory before the first call."""
        ...

    def __call__(self, positions: Tensor, memory: Memory, step: int) -> tuple[Field, Memory]:
        """The field at ``positions`` (N, 3) and the memory for the next call."""
        ...


class State(NamedTuple):
    """P structures that move independently: positions (N, 3) in Å, momenta (N, 3) in amu Å per ASE unit of time.

    ``age`` (P,) counts the steps since the last acquisition, ``acquired`` (P,) the acquisitions; ``ended`` (P,) is the
    index of the reason for which a structure no longer moves, −1 while it does; ``first_energies`` (P,) in eV are those of
    the start. Brownian samplers have zero momenta.
    """

    step: int
    positions: Tensor
    momenta: Tensor
    field: Field
    memory: Memory
    age: Tensor
    acquired: Tensor
    ended: Tensor
    first_energies: Tensor


class Info(NamedTuple):
    """What one step found out about each of P structures.

    | field         | shape  | unit | meaning                                                                         |
    |---------------|--------|------|---------------------------------------------------------------------------------|
    | positions     | (N, 3) | Å    | after the step, before an ensemble goes over to its next particle                |
    | energies      | (P,)   | eV   | V                                                                               |
    | forces        | (N, 3) | eV/Å | −∇V                                                                             |
    | bias_norm     | (P,)   | eV/Å | Euclidean norm over all coordinates of the bias force (SKMD: of eq. 5b)          |
    | temperature_K | (P,)   | K    | kinetic; NaN for overdamped dynamics                                            |
    | uncertainty   | (P,)   | eV   | NaN where there is none                                                         |
    | particle      | (P,)   | –    | which particle of its ensemble moved                                            |
    | stopped       | (P,)   | –    | index of the stopping criterion that holds, so that it is acquired; −1: none     |
    | broken        | (P,)   | –    | index of what is wrong with the geometry; −1: nothing                           |
    | limited       | (P,)   | –    | whether the step was shortened                                                  |
    """

    positions: Tensor
    energies: Tensor
    forces: Tensor
    bias_norm: Tensor
    temperature_K: Tensor
    uncertainty: Tensor
    particle: Tensor
    stopped: Tensor
    broken: Tensor
    limited: Tensor


class Sampler(NamedTuple):
    """An algorithm as a pair of pure functions: ``init()`` gives the first state, ``step(state)`` the next and its info."""

    name: str
    system: System
    init: Callable[[], Any]
    step: Callable[[Any], tuple[Any, Info]]
    stopping: Stopping


class Watch(NamedTuple):
    """What is looked at after each step: when to acquire, when to end a trajectory."""

    stopping: Stopping = NEVER
    geometry: Geometry = Geometry()


def norms(system: System, vectors: Tensor) -> Tensor:
    """(P,) Euclidean norms over all coordinates of each structure of ``vectors`` (N, 3)."""
    return system.per_structure(vectors.square().sum(1)).sqrt()


def without_drift(system: System, displacements: Tensor, weights: Tensor) -> Tensor:
    """``displacements`` (N, 3) without the mean, weighted with ``weights`` (N, 1), of each structure that can drift."""
    total = system.per_structure(weights * displacements) / system.per_structure(weights)
    total = torch.where(system.whole[:, None], total, torch.zeros_like(total))
    return displacements - system.of_atoms(total)
