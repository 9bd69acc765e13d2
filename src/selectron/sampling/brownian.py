"""Overdamped Langevin dynamics of independent structures."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from selectron.sampling import noise
from selectron.sampling.ending import first_state, looked_at
from selectron.sampling.state import ForceField, Info, Sampler, State, Watch, norms, without_drift


class Scales(NamedTuple):
    """What multiplies force, bias and noise of an overdamped step."""

    force: float = 1.0
    bias: float = 1.0
    noise: float = 1.0


def brownian(
    force_field: ForceField,
    *,
    kT_eV: float,
    step_size: float,
    seed: int,
    watch: Watch = Watch(),  # noqa: B008
    max_displacement_A: float | None = None,
    fix_centre_of_mass: bool = False,
    scales: Scales = Scales(),  # noqa: B008
) -> Sampler:
    """Euler–Maruyama steps of overdamped Langevin dynamics (SKMD, eq. 2).

        r ← r + ε (a F(r) + b f(r)) + c √(2 ε kT) ξ

    | symbol | argument, unit                                                                          |
    |--------|-----------------------------------------------------------------------------------------|
    | ε      | ``step_size``, Å²/eV; :func:`~selectron.sampling.units.brownian_step_size` makes it      |
    | F, f   | forces and bias of ``force_field``, eV/Å                                                |
    | ξ      | standard normal, from ``seed`` and the number of the step                               |
    | a, b, c | ``scales``, 1 as a rule                                                                |

    A drift that would move an atom by more than ``max_displacement_A`` is shortened, and the step says so. With
    ``fix_centre_of_mass`` the mean displacement of each structure that is free to drift is taken out.
    """
    system = force_field.system

    def init() -> State:
        return first_state(force_field)

    def step(state: State) -> tuple[State, Info]:
        drift, limited = shortened(
            step_size * (scales.force * state.field.forces + scales.bias * state.field.bias_forces), max_displacement_A
        )
        shape = tuple(state.positions.shape)
        kick = scales.noise * math.sqrt(2.0 * step_size * kT_eV) * noise.normal(seed, state.step, shape, system.device)
        move = (drift + kick) * system.free
        if fix_centre_of_mass:
            move = without_drift(system, move, torch.ones_like(system.masses))
        positions = state.positions + move * system.of_atoms(state.ended < 0)[:, None]
        field, memory = force_field(positions, state.memory, state.step + 1)
        temperature = torch.full_like(field.energies, float("nan"))
        return looked_at(
            system,
            watch,
            state,
            state._replace(step=state.step + 1, positions=positions, field=field, memory=memory),
            temperature_K=temperature,
            bias_norm=norms(system, field.bias_forces),
            limited=system.per_structure(limited.double()) > 0,
        )

    return Sampler("brownian", system, init, step, watch.stopping)


def shortened(drift: Tensor, max_displacement_A: float | None) -> tuple[Tensor, Tensor]:
    """``drift`` (…, 3) with no atom moved by more than the limit, and for each atom (…) whether it was shortened."""
    if max_displacement_A is None:
        return drift, torch.zeros(drift.shape[:-1], dtype=torch.bool, device=drift.device)
    length = drift.norm(dim=-1)
    too_long = length > max_displacement_A
    factor = torch.where(too_long, max_displacement_A / length.clamp_min(1e-300), torch.ones_like(length))
    return drift * factor[..., None], too_long
