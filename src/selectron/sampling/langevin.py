"""Underdamped Langevin dynamics of independent structures."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from selectron.sampling import noise
from selectron.sampling.ending import first_state, looked_at
from selectron.sampling.state import ForceField, Info, Sampler, State, Watch, norms, without_drift
from selectron.sampling.system import System
from selectron.sampling.units import BOLTZMANN_EV_PER_K, FS

_MOMENTA = 1  # stream of the random numbers that momenta start from; steps use stream 0


def langevin(
    force_field: ForceField,
    *,
    temperature_K: float,
    timestep_fs: float,
    damping_time_fs: float,
    seed: int,
    watch: Watch = Watch(),  # noqa: B008
    fix_centre_of_mass: bool = True,
) -> Sampler:
    """BAOAB splitting of underdamped Langevin dynamics (Leimkuhler & Matthews 2013, doi:10.1093/amrx/abs010).

        B  p ← p + ½Δt F      A  r ← r + ½Δt p/m
        O  p ← c p + √((1 − c²) m kT) ξ,  c = exp(−Δt/τ)
        A  r ← r + ½Δt p/m    B  p ← p + ½Δt F

    | symbol | argument, unit                                     |
    |--------|----------------------------------------------------|
    | Δt     | ``timestep_fs``, fs                                |
    | τ      | ``damping_time_fs``, fs; infinite: no thermostat   |
    | ξ      | standard normal, from ``seed`` and the step        |

    Momenta start from the Maxwell–Boltzmann distribution. With ``fix_centre_of_mass`` they, the noise and the forces (whose
    sum is not quite zero in float32, and not at all for a bias on coordinates) are projected onto zero total momentum of
    each structure that nothing holds; such a structure has three degrees of freedom less, and its temperature is right for
    that. Angular momentum is left alone. One model call a step.
    """
    system = force_field.system
    dt = timestep_fs * FS
    kT = BOLTZMANN_EV_PER_K * temperature_K
    persistence = math.exp(-timestep_fs / damping_time_fs)
    thermal = torch.sqrt(kT * system.masses) * system.free

    def projected(momenta: Tensor) -> Tensor:
        if not fix_centre_of_mass:
            return momenta
        return without_drift(system, momenta / system.masses, system.masses) * system.masses

    def init() -> State:
        shape = tuple(system.template.positions.shape)
        drawn = thermal * noise.normal(seed, 0, shape, system.device, _MOMENTA)
        return first_state(force_field, projected(drawn))

    def step(state: State) -> tuple[State, Info]:
        moving = system.of_atoms(state.ended < 0)[:, None].double() * system.free
        momenta = state.momenta + 0.5 * dt * projected(state.field.forces + state.field.bias_forces) * moving
        positions = state.positions + 0.5 * dt * momenta / system.masses
        if persistence < 1.0:
            drawn = noise.normal(seed, state.step, tuple(momenta.shape), system.device)
            momenta = persistence * momenta + math.sqrt(1.0 - persistence**2) * projected(thermal * drawn) * moving
        positions = positions + 0.5 * dt * momenta / system.masses
        field, memory = force_field(positions, state.memory, state.step + 1)
        momenta = momenta + 0.5 * dt * projected(field.forces + field.bias_forces) * moving
        after = state._replace(step=state.step + 1, positions=positions, momenta=momenta, field=field, memory=memory)
        return looked_at(
            system,
            watch,
            state,
            after,
            temperature_K=kinetic_temperature_K(system, momenta, fix_centre_of_mass),
            bias_norm=norms(system, field.bias_forces),
            limited=torch.zeros_like(state.ended, dtype=torch.bool),
        )

    return Sampler("langevin", system, init, step, watch.stopping)


def kinetic_temperature_K(system: System, momenta: Tensor, fixed_centre_of_mass: bool) -> Tensor:
    """(P,) 2 E_kin / (k_B n) with n degrees of freedom, three fewer where the centre of mass stands."""
    kinetic = system.per_structure((momenta.square() / (2.0 * system.masses)).sum(1))
    freedom = system.degrees_of_freedom
    if fixed_centre_of_mass:
        freedom = freedom - 3.0 * system.whole.double()
    return 2.0 * kinetic / (BOLTZMANN_EV_PER_K * freedom.clamp_min(1.0))
