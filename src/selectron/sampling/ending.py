"""The beginning of independent trajectories, and what is common to the end of every step."""

from __future__ import annotations

import torch
from torch import Tensor

from selectron.sampling.geometry import Geometry, broken
from selectron.sampling.state import Field, ForceField, Info, State, Watch
from selectron.sampling.stopping import Reading, first_that_holds
from selectron.sampling.system import System


def first_state(force_field: ForceField, momenta: Tensor | None = None) -> State:
    """The structures of the force field's system at step 0."""
    system = force_field.system
    positions = system.template.positions.clone()
    field, memory = force_field(positions, force_field.start(), 0)
    count = torch.zeros(system.n_structures, dtype=torch.int64, device=system.device)
    return State(
        step=0,
        positions=positions,
        momenta=torch.zeros_like(positions) if momenta is None else momenta,
        field=field,
        memory=memory,
        age=count,
        acquired=count.clone(),
        ended=torch.full_like(count, -1),
        first_energies=field.energies,
    )


def geometry_of(system: System, limits: Geometry, field: Field, first_energies: Tensor, moved: Tensor) -> Tensor:
    """(P,) what is wrong with each structure after a step that ``moved`` (N, 3) its atoms.

    See :func:`~selectron.sampling.geometry.broken`.
    """

    def greatest(values: Tensor) -> Tensor:
        zero = field.energies.new_zeros(system.n_structures)
        return zero.scatter_reduce(0, system.template.system_idx, values, "amax")

    return broken(
        limits,
        energies=field.energies,
        first_energies=first_energies,
        counts=system.template.counts,
        largest=greatest((field.forces + field.bias_forces).abs().amax(1)),
        shortest=field.shortest,
        moved=greatest(moved.norm(dim=1)),
    )


def looked_at(
    system: System,
    watch: Watch,
    before: State,
    after: State,
    *,
    temperature_K: Tensor,
    bias_norm: Tensor,
    limited: Tensor,
) -> tuple[State, Info]:
    """Ends what broke, acquires what a criterion stops, and tells.

    A structure that broke keeps its last good positions from then on; all others go on as if nothing had happened.
    """
    moving = before.ended < 0
    field = after.field
    wrong = geometry_of(system, watch.geometry, field, before.first_energies, after.positions - before.positions)
    wrong = torch.where(moving, wrong, torch.full_like(wrong, -1))
    ended = torch.where(moving, wrong, before.ended)
    age = before.age + 1
    reading = Reading(age, field.energies, bias_norm, field.uncertainty)
    stopped = torch.where(ended < 0, first_that_holds(watch.stopping, reading), torch.full_like(wrong, -1))
    info = Info(
        positions=after.positions,
        energies=field.energies,
        forces=field.forces,
        bias_norm=bias_norm,
        temperature_K=temperature_K,
        uncertainty=field.uncertainty,
        particle=torch.arange(system.n_structures, device=system.device),
        stopped=stopped,
        broken=wrong,
        limited=limited,
    )
    held = system.of_atoms(ended >= 0)[:, None]
    state = after._replace(
        positions=torch.where(held, before.positions, after.positions),
        momenta=torch.where(held, torch.zeros_like(after.momenta), after.momenta),
        field=kept(system, ended >= 0, before.field, field),
        age=torch.where(stopped >= 0, torch.zeros_like(age), age),
        acquired=before.acquired + (stopped >= 0),
        ended=ended,
    )
    return state, info


def kept(system: System, ended: Tensor, before: Field, after: Field) -> Field:
    """The field ``after``, but that of ``before`` for the structures ``ended`` (P,) bool.

    What a broken geometry gave must not stay in a state.
    """
    atoms = system.of_atoms(ended)[:, None]
    return Field(
        energies=torch.where(ended, before.energies, after.energies),
        forces=torch.where(atoms, before.forces, after.forces),
        bias_forces=torch.where(atoms, before.bias_forces, after.bias_forces),
        uncertainty=torch.where(ended, before.uncertainty, after.uncertainty),
        descriptors=torch.where(ended[:, None], before.descriptors, after.descriptors),
        shortest=torch.where(ended, before.shortest, after.shortest),
    )
