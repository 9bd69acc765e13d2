"""Temperatures that Brownian and BAOAB dynamics sample at, and what they conserve.

Bounds are four standard errors, which come from independent replicas; seeds are fixed.
"""

import math

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from sampled_systems import NO_LIMITS, Springs, mace_system, plane, run, water

from selectron.potentials.load import load_potential
from selectron.potentials.surfaces import Harmonic
from selectron.sampling import (
    Coordinates,
    Unbiased,
    Watch,
    WellTemperedMetadynamics,
    brownian,
    langevin,
    make_system,
)
from selectron.sampling.system import evaluate
from selectron.sampling.units import BOLTZMANN_EV_PER_K, FS

FREE = Watch(geometry=NO_LIMITS)
STIFFNESS = [1.0, 4.0]


def trajectory(sampler, discard, snapshots, every):
    """States at ``snapshots`` moments, ``every`` steps apart."""
    state, _ = run(sampler, 0)
    for _ in range(discard):
        state, _ = sampler.step(state)
    out = []
    for _ in range(snapshots):
        for _ in range(every):
            state, _ = sampler.step(state)
        out.append(state)
    return out


def mean_and_error(values):
    """Over replicas, the last axis: each replica's time average is one independent number."""
    each = np.asarray(values).mean(0)
    return each.mean(), each.std(ddof=1) / math.sqrt(len(each))


def check(values, expected, allowance=0.0):
    mean, error = mean_and_error(values)
    assert error < 0.05 * expected
    assert abs(mean - expected) < 4 * error + allowance * expected, (mean, error, expected)


def test_brownian_dynamics_in_a_harmonic_well_has_the_variance_of_the_euler_maruyama_chain():
    kT, epsilon = 0.05, 0.15
    sampler = brownian(
        Unbiased(plane(Harmonic(STIFFNESS), np.zeros((1500, 2)))), kT_eV=kT, step_size=epsilon, seed=1, watch=FREE
    )
    states = trajectory(sampler, 40, 15, 10)
    for axis, k in enumerate(STIFFNESS):
        # exactly (kT/k)/(1 − εk/2): the discretisation, 8 % and 43 % here, and nothing else
        check([s.positions[:, axis].numpy() ** 2 for s in states], kT / k / (1 - epsilon * k / 2))


def test_baoab_in_a_harmonic_well_has_the_exact_variance_of_positions_at_a_large_step():
    temperature = 400.0
    kT = BOLTZMANN_EV_PER_K * temperature
    # ω Δt = 0.4 and 0.8 with the mass of 1 amu
    step = 0.4 / FS
    sampler = langevin(
        Unbiased(plane(Harmonic(STIFFNESS), np.zeros((1500, 2)))),
        temperature_K=temperature,
        timestep_fs=step,
        damping_time_fs=4 * step,
        seed=2,
        watch=FREE,
    )
    states = trajectory(sampler, 60, 15, 12)
    for axis, k in enumerate(STIFFNESS):
        check([s.positions[:, axis].numpy() ** 2 for s in states], kT / k)
        # of momenta, kT m (1 − ω²Δt²/4) (Leimkuhler & Matthews 2013)
        check([s.momenta[:, axis].numpy() ** 2 for s in states], kT * (1 - k * 0.4**2 / 4))
    assert all(bool((s.positions[:, 2] == 0).all()) for s in states)


def replicas(count):
    """Four unequal atoms on springs."""
    atoms = Atoms("HCOH", [[0, 0, 0], [1.1, 0, 0], [1.0, 1.0, 0], [0.2, 0.9, 1.0]])
    return make_system(Springs(4), [atoms] * count)


@pytest.mark.parametrize("fixed", [True, False])
def test_baoab_shares_energy_equally_and_has_the_configurational_temperature(fixed):
    temperature = 600.0
    kT = BOLTZMANN_EV_PER_K * temperature
    system = replicas(300)
    sampler = langevin(
        Unbiased(system), temperature_K=temperature, timestep_fs=0.5, damping_time_fs=10.0, seed=3, watch=FREE,
        fix_centre_of_mass=fixed,
    )  # fmt: skip
    states = trajectory(sampler, 120, 20, 15)
    masses = system.structures[0].get_masses()
    total = masses.sum()
    for a, mass in enumerate(masses):
        kinetic = [(s.momenta.reshape(-1, 4, 3)[:, a] ** 2).sum(1).numpy() / (2 * mass) for s in states]
        check(kinetic, 1.5 * kT * (1 - mass / total if fixed else 1))
    configurational(system, states, kT)


def configurational(system, states, kT):
    """⟨|∇V|²⟩ = kT ⟨∇²V⟩."""
    squared = np.array([(s.field.forces.reshape(-1, 12) ** 2).sum(1).numpy() for s in states])
    laplacian = np.array([system.potential.laplacian(s.positions).numpy() for s in states])
    mean, error = mean_and_error(squared - kT * laplacian)
    assert error < 0.03 * kT * laplacian.mean()
    assert abs(mean) < 4 * error + 0.01 * kT * laplacian.mean(), (mean, error)


def test_brownian_dynamics_has_the_configurational_temperature():
    kT = 0.05
    system = replicas(300)
    sampler = brownian(Unbiased(system), kT_eV=kT, step_size=0.0025, seed=3, watch=FREE)
    configurational(system, trajectory(sampler, 200, 20, 30), kT)


def test_momenta_start_at_the_temperature_and_the_kinetic_temperature_counts_the_right_degrees_of_freedom():
    system = replicas(800)
    for fixed in (True, False):
        sampler = langevin(
            Unbiased(system), temperature_K=300.0, timestep_fs=0.05, damping_time_fs=100.0, seed=1,
            fix_centre_of_mass=fixed,
        )  # fmt: skip
        _, (info,) = run(sampler, 1)
        check([info.temperature_K.numpy()], 300.0)


def energy_of(state, system):
    return state.field.energies + system.per_structure((state.momenta**2 / (2 * system.masses)).sum(1))


@pytest.mark.parametrize("model", ["springs", "mace"])
def test_without_a_thermostat_energy_momentum_and_angular_momentum_are_conserved(model):
    system = replicas(4) if model == "springs" else mace_system(water(2))
    errors = []
    for step in (1.0, 0.5):
        sampler = langevin(
            Unbiased(system), temperature_K=500.0, timestep_fs=step, damping_time_fs=math.inf, seed=3, watch=FREE,
            fix_centre_of_mass=False,
        )  # fmt: skip
        start = sampler.init()
        states = [start, *trajectory(sampler, 0, int(16 / step), 1)]
        energies = torch.stack([energy_of(s, system) for s in states])
        errors.append((energies - energies[0]).abs().max(0).values)
        momentum = torch.stack([system.per_structure(s.momenta) for s in states])
        spin = torch.stack([system.per_structure(torch.linalg.cross(s.positions, s.momenta)) for s in states])
        assert (momentum - momentum[0]).abs().max() < 1e-11
        assert (spin - spin[0]).abs().max() < 1e-11
        assert momentum[0].abs().max() > 0.1
    # second order: half the step, a quarter of the error
    ratio = errors[0] / errors[1]
    assert bool((ratio > 3.0).all()), ratio
    assert bool((ratio < 5.5).all()), ratio


def centre(system, positions):
    return system.per_structure(system.masses * positions) / system.per_structure(system.masses)


def test_the_centre_of_mass_stays_to_rounding_also_where_a_bias_pushes_it():
    system = make_system(Springs(4), replicas(3).structures, descriptor=Coordinates())
    # hills on coordinates push the whole molecule away from where it was
    field = WellTemperedMetadynamics(system, kT_eV=0.05, height_eV=0.5, bias_factor=10.0, every=5, width=0.3)
    for one in (field, Unbiased(system)):
        sampler = langevin(one, temperature_K=600.0, timestep_fs=0.5, damping_time_fs=20.0, seed=1, watch=FREE)
        state, _ = run(sampler, 60)
        assert (centre(system, state.positions) - centre(system, system.template.positions)).abs().max() < 1e-12
        assert system.per_structure(state.momenta).abs().max() < 1e-12
        loose = langevin(
            one, temperature_K=600.0, timestep_fs=0.5, damping_time_fs=20.0, seed=1, watch=FREE,
            fix_centre_of_mass=False,
        )  # fmt: skip
        state, _ = run(loose, 60)
        assert (centre(system, state.positions) - centre(system, system.template.positions)).abs().max() > 1e-3


def test_brownian_steps_without_a_mean_keep_the_middle_of_a_molecule_and_change_nothing_inside():
    system = replicas(3)
    states = []
    for fixed in (True, False):
        sampler = brownian(Unbiased(system), kT_eV=0.05, step_size=0.003, seed=1, watch=FREE, fix_centre_of_mass=fixed)
        states.append(run(sampler, 50)[0].positions.reshape(3, 4, 3))
    start = system.template.positions.reshape(3, 4, 3)
    assert (states[0].mean(1) - start.mean(1)).abs().max() < 1e-13
    assert (states[1].mean(1) - start.mean(1)).abs().max() > 1e-2
    torch.testing.assert_close(states[0] - states[0][:, :1], states[1] - states[1][:, :1], atol=1e-12, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["brownian", "langevin"])
def test_ethanol_in_the_embedded_model_has_the_right_temperature(method):
    temperature, count = 300.0, 32 if method == "brownian" else 16
    kT = BOLTZMANN_EV_PER_K * temperature
    potential = load_potential("embedded", dtype="float64")
    atoms = molecule("CH3CH2OH")
    system = make_system(potential, [atoms] * count)
    field = Unbiased(system)
    if method == "brownian":
        sampler = brownian(field, kT_eV=kT, step_size=2.5e-4, seed=1)
        states = trajectory(sampler, 200, 25, 15)
    else:
        sampler = langevin(field, temperature_K=temperature, timestep_fs=0.5, damping_time_fs=20.0, seed=1)
        states = trajectory(sampler, 300, 50, 12)
    assert int(states[-1].ended.max()) == -1
    random = np.random.default_rng(0)
    excess, laplacians, step = [], [], 1e-3
    for state in states:
        # Hutchinson's estimate of the Laplacian: signs · Hessian · signs, by differences of forces
        signs = torch.from_numpy(random.choice([-1.0, 1.0], size=tuple(state.positions.shape)))
        ahead = evaluate(system, state.positions + step * signs, None).evaluation.forces
        behind = evaluate(system, state.positions - step * signs, None).evaluation.forces
        laplacian = system.per_structure(((behind - ahead) * signs).sum(1)) / (2 * step)
        excess.append((system.per_structure(state.field.forces.square().sum(1)) - kT * laplacian).numpy())
        laplacians.append(laplacian.mean().item())
    mean, error = mean_and_error(excess)
    scale = kT * np.mean(laplacians)
    assert error < 0.04 * scale
    # Euler–Maruyama is 1 % too hot at this step
    assert abs(mean) < 4 * error + 0.02 * scale, (mean / scale, error / scale)
    if method == "langevin":
        masses = atoms.get_masses()
        for kind in ("H", "C", "O"):
            own = [a for a, symbol in enumerate(atoms.symbols) if symbol == kind]
            expected = sum(1.5 * kT * (1 - masses[a] / masses.sum()) for a in own)
            kinetic = [
                ((s.momenta.reshape(count, 9, 3)[:, own] ** 2).sum(2).numpy() / (2 * masses[own])).sum(1)
                for s in states
            ]
            check(kinetic, expected, 0.01)
