"""What stays the same while atoms move: the potential, the structures, which coordinates are free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms
from ase.constraints import FixAtoms, FixCartesian
from torch import Tensor

from selectron.errors import SelectronError
from selectron.potentials.base import Evaluation, Potential
from selectron.sampling.descriptors import GlobalDescriptor, traced
from selectron.structures.graphs import GraphBatch, collate
from selectron.structures.verlet import SkinList, refreshed, skin_list


@dataclass(frozen=True)
class System:
    """P structures with N atoms in all that are moved together, and the potential they move in.

    | field       | shape  | unit | meaning                                                              |
    |-------------|--------|------|----------------------------------------------------------------------|
    | template    |        |      | the structures as float64 batch, without edges                       |
    | masses      | (N, 1) | amu  |                                                                      |
    | free        | (N, 3) | –    | 1 where a coordinate may move, 0 where it is held                    |
    | whole       | (P,)   | –    | whether nothing of the structure is held, so that it can drift       |
    | periodic    |        |      | whether any structure has a periodic direction                       |
    | descriptor  |        |      | the global descriptor d, None where the sampler needs none           |

    Positions, momenta and forces are float64 whatever the potential computes in.
    """

    potential: Potential
    structures: tuple[Atoms, ...]
    template: GraphBatch
    masses: Tensor
    free: Tensor
    whole: Tensor
    periodic: bool
    descriptor: GlobalDescriptor | None = None
    skin_A: float = 0.75

    @property
    def n_structures(self) -> int:
        """P."""
        return len(self.structures)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.template.positions.device

    @property
    def degrees_of_freedom(self) -> Tensor:
        """(P,) free coordinates of each structure."""
        return self.per_structure(self.free.sum(1))

    def per_structure(self, values: Tensor) -> Tensor:
        """(P, …) sums over the atoms of each structure of ``values`` (N, …)."""
        out = values.new_zeros((self.n_structures, *values.shape[1:]))
        return out.index_add_(0, self.template.system_idx, values)

    def of_atoms(self, values: Tensor) -> Tensor:
        """(N, …): for each atom the entry of its structure in ``values`` (P, …)."""
        return values[self.template.system_idx]


Graph = SkinList | None
"""Neighbour list that is carried from step to step; None for a potential without a cutoff."""


def make_system(
    potential: Potential, structures: Sequence[Atoms], *, descriptor: GlobalDescriptor | None = None
) -> System:
    """The system that ``structures`` (their constraints included) make in ``potential``.

    ``FixAtoms`` and ``FixCartesian`` hold coordinates; potentials of points in the plane (attribute ``dimensions`` = 2)
    hold z. Raises SelectronError for other constraints, for no structures, and for elements the potential lacks.
    """
    if not structures:
        raise SelectronError("There is no structure to start from.")
    device = getattr(potential, "device", torch.device("cpu"))
    free = torch.from_numpy(np.concatenate([_free(atoms) for atoms in structures])).to(device, torch.float64)
    if getattr(potential, "dimensions", 3) == 2:
        free[:, 2] = 0.0
    _check_elements(potential, structures)
    # ASE calls the mass of element X, a point on a surface, 1
    masses = np.concatenate([atoms.get_masses() for atoms in structures])
    template = collate(structures, None).to(device, torch.float64)
    held = torch.zeros(len(structures), dtype=torch.float64, device=device)
    held.index_add_(0, template.system_idx, 1.0 - free.amin(1))
    return System(
        potential=potential,
        structures=tuple(atoms.copy() for atoms in structures),
        template=template,
        masses=torch.from_numpy(masses).to(device, torch.float64)[:, None],
        free=free,
        whole=held == 0,
        periodic=any(bool(atoms.pbc.any()) for atoms in structures),
        descriptor=descriptor,
    )


def _free(atoms: Atoms) -> np.ndarray:
    free = np.ones((len(atoms), 3))
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms):
            free[constraint.index] = 0.0
        elif isinstance(constraint, FixCartesian):
            free[constraint.index] *= ~np.asarray(constraint.mask, dtype=bool)
        else:
            raise SelectronError(
                f"The constraint {type(constraint).__name__} of {atoms.get_chemical_formula()} is not understood: "
                "selectron holds what FixAtoms and FixCartesian hold; remove the other one."
            )
    return free


def _check_elements(potential: Potential, structures: Sequence[Atoms]) -> None:
    if potential.elements is None:
        return
    missing = {
        symbol for atoms in structures for symbol, z in zip(atoms.symbols, atoms.numbers, strict=True)
        if int(z) not in potential.elements
    }  # fmt: skip
    if missing:
        raise SelectronError(f"{potential.name} does not know the element {', '.join(sorted(missing))}.")


def graph_of(system: System, positions: Tensor, graph: Graph) -> tuple[GraphBatch, Graph]:
    """The batch that the potential wants at ``positions`` (N, 3), and the neighbour list to hand in next time."""
    cutoff: float | None = getattr(system.potential, "cutoff_A", None)
    dtype: Any = getattr(system.potential, "dtype", torch.float64)
    moved = system.template._replace(positions=positions)
    if cutoff is None:
        return moved.to(positions.device, dtype), None
    if graph is None:
        graph = skin_list(moved, cutoff, system.skin_A)
    graph, batch = refreshed(graph, moved)
    return batch.to(positions.device, dtype), graph


class Evaluated(NamedTuple):
    """One model call: evaluation in float64 with forces zero where coordinates are held, global descriptors (P, D) or None."""

    evaluation: Evaluation
    descriptors: Tensor | None
    batch: GraphBatch
    graph: Graph


def evaluate(system: System, positions: Tensor, graph: Graph) -> Evaluated:
    """One call of the model at ``positions`` (N, 3)."""
    descriptor = system.descriptor
    wanted = descriptor is not None and descriptor.needs_node_features
    batch, graph = graph_of(system, positions, graph)
    found = system.potential.evaluate(batch, forces=True, node_features=wanted)
    assert found.forces is not None
    values = None
    if descriptor is not None:
        values = descriptor.values(positions, found.node_features, system.template).double()
    return Evaluated(
        Evaluation(found.energies.double(), found.forces.double() * system.free, None, found.node_features),
        values,
        batch,
        graph,
    )


class Traced(NamedTuple):
    """One model call with the graph of the descriptors: positions (N, 3), a leaf, and descriptors (P, D) hang together.

    ``energies`` (P,) in eV and ``forces`` (N, 3) in eV/Å are float64 without graph; forces are zero where coordinates are held.
    """

    leaf: Tensor
    values: Tensor
    energies: Tensor
    forces: Tensor


def evaluate_traced(system: System, batch: GraphBatch) -> Traced:
    """Energies and forces of ``batch``, and descriptors that can still be differentiated in the positions."""
    assert system.descriptor is not None
    leaf, energies, values = traced(system.potential, system.descriptor, batch)
    if energies is None:
        found = system.potential.evaluate(batch)
        assert found.forces is not None
        energies, forces = found.energies, found.forces
    else:
        (gradient,) = torch.autograd.grad(energies.sum(), leaf, retain_graph=True)
        energies, forces = energies.detach(), -gradient
    return Traced(leaf, values, energies.double(), forces.double() * system.free)


def shortest_distances(system: System, batch: GraphBatch) -> Tensor:
    """(P,) smallest distance of two atoms in Å; infinite where there is no pair inside the cutoff or no neighbour list."""
    shortest = system.masses.new_full((system.n_structures,), float("inf"))
    if batch.edge_index.shape[1] == 0:
        return shortest
    vectors = batch.positions[batch.edge_index[1]] - batch.positions[batch.edge_index[0]]
    if system.periodic:
        vectors = vectors + batch.shifts
    squared = vectors.square().sum(1).double()
    return shortest.scatter_reduce(0, batch.edge_system_idx, squared, "amin").sqrt()
