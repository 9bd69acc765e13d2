"""The plain force field: the potential and nothing else."""

from __future__ import annotations

import torch
from torch import Tensor

from selectron.potentials.base import Evaluation
from selectron.sampling.state import Field, Memory
from selectron.sampling.system import System, evaluate, shortest_distances


class Unbiased:
    """−∇V of a system, one model call a step."""

    def __init__(self, system: System) -> None:
        self.system = system

    def start(self) -> Memory:
        """No neighbour list yet."""
        return Memory((None,))

    def __call__(self, positions: Tensor, memory: Memory, step: int) -> tuple[Field, Memory]:
        """The field of V; the bias is zero."""
        del step
        found = evaluate(self.system, positions, memory.graphs[0])
        shortest = shortest_distances(self.system, found.batch)
        return plain_field(found.evaluation, found.descriptors, shortest), Memory((found.graph,))


def plain_field(evaluation: Evaluation, descriptors: Tensor | None, shortest: Tensor) -> Field:
    """A field without bias."""
    forces = evaluation.forces
    assert forces is not None
    energies = evaluation.energies
    return Field(
        energies=energies,
        forces=forces,
        bias_forces=torch.zeros_like(forces),
        uncertainty=torch.full_like(energies, float("nan")),
        descriptors=energies.new_zeros((len(energies), 0)) if descriptors is None else descriptors,
        shortest=shortest,
    )
