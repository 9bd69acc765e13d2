"""SKMD against its equations written again in plain NumPy, and its limits: Langevin dynamics and SVGD."""

import functools

import numpy as np
import pytest
import torch
from ase import Atoms
from sampled_systems import (
    NO_LIMITS,
    asynchronous_skmd,
    crystal,
    mace_system,
    median_distance,
    plane,
    run,
    shaken,
    stein_bias,
    tiny_mace,
    water,
)

from selectron.potentials.surfaces import MuellerBrown
from selectron.sampling import (
    Coordinates,
    SteinKernel,
    Stepping,
    Unbiased,
    Watch,
    brownian,
    fixed_bandwidth,
    fixed_steps,
    make_system,
    noise,
    skmd,
    synchronous_skmd,
)
from selectron.sampling.descriptors import InverseDistances
from selectron.sampling.kernels import INVERSE_MULTIQUADRIC
from selectron.sampling.system import evaluate
from small_maces import stock_batch

KT = 20.0
STARTS = np.array([[-0.5, 1.4], [0.6, 0.1], [0.0, 0.5], [-0.9, 0.7], [0.3, 0.2]])
NEVER_LIMITED = {"max_displacement_A": None}


def mueller_brown(p):
    """Force and coordinates at one point (3n,) with n = 1; the surface typed in once more."""
    x, y = p[:2]
    force = np.zeros(3)
    table = [(-200, -1, 0, -10, 1, 0), (-100, -1, 0, -10, 0, 0.5), (-170, -6.5, 11, -6.5, -0.5, 1.5)]
    for height, a, b, c, x0, y0 in [*table, (15, 0.7, 0.6, 0.7, -1, 1)]:
        u, v = x - x0, y - y0
        value = height * np.exp(a * u * u + b * u * v + c * v * v)
        force[:2] -= value * np.array([2 * a * u + b * v, b * u + 2 * c * v])
    return force, p.copy()


def flat_noise(seed, steps, shape, free):
    drawn = [noise.normal(seed, step, shape, torch.device("cpu")).numpy() for step in range(steps)]
    return np.array([(one * free).reshape(-1) for one in drawn])


@pytest.mark.parametrize(("form", "alpha"), [("sum", 1.0), ("mean", 1.0), ("sum", 0.4), ("full", 1.3)])
def test_a_whole_asynchronous_trajectory_follows_the_papers_equations(form, alpha):
    steps, every, step_size = 66, 7, 2e-4
    system = plane(MuellerBrown(), STARTS)
    sampler = skmd(
        system,
        particles=5,
        stepping=Stepping(KT, step_size, gradient_scale=alpha, form=form, **NEVER_LIMITED),
        seed=11,
        watch=Watch((fixed_steps(every),), NO_LIMITS),
    )
    state, infos = run(sampler, steps)
    starts = np.c_[STARTS, np.zeros(5)]
    path, ensemble = asynchronous_skmd(
        starts, mueller_brown, lambda p: np.eye(3), kT=KT, step_size=step_size, stop_after=every, steps=steps,
        noises=flat_noise(11, steps, (1, 3), np.array([1.0, 1.0, 0.0])), form=form, alpha=alpha,
    )  # fmt: skip
    ours = np.array([info.positions.numpy().reshape(-1) for info in infos])
    np.testing.assert_allclose(ours, path, atol=1e-10, rtol=0)
    np.testing.assert_allclose(state.standing.positions[0, :, 0].numpy(), ensemble, atol=1e-10, rtol=0)
    assert int(state.acquired[0]) == steps // every
    assert np.abs(path[-1] - starts[steps // every % 5]).max() > 1e-3


def stock(atoms, positions):
    """Force (3n,) and summed invariant features (C,) with Jacobian (C, 3n), from mace-torch's own model and pipeline."""
    return _stock(tuple(atoms.numbers), atoms.cell.array.tobytes(), atoms.pbc.all(), positions.tobytes())


@functools.cache
def _stock(numbers, cell, periodic, positions):
    model = tiny_mace().model
    vectors = np.frombuffer(cell).reshape(3, 3)
    moved = Atoms(numbers, np.frombuffer(positions).reshape(-1, 3), cell=vectors, pbc=bool(periodic))
    data = stock_batch(model, [moved])
    data["positions"].requires_grad_(True)
    out = model(data, compute_force=False)
    # layers of 4x0e + 4x1o and of 4x0e
    features = out["node_feats"][:, [0, 1, 2, 3, 16, 17, 18, 19]].sum(0)
    (gradient,) = torch.autograd.grad(out["energy"].sum(), data["positions"], retain_graph=True)
    rows = [torch.autograd.grad(f, data["positions"], retain_graph=True)[0].reshape(-1) for f in features]
    return -gradient.reshape(-1).numpy(), features.detach().numpy(), torch.stack(rows).numpy()


@pytest.mark.parametrize("kind", ["molecule", "crystal"])
def test_the_trajectory_of_a_mace_follows_the_papers_equations_with_mace_torchs_own_derivatives(kind):
    particles, steps, every, kT, step_size = 3, 8, 3, 0.05, 0.02
    atoms = water(1)[0] if kind == "molecule" else crystal()
    structures = shaken(atoms, particles, 0.08)
    n = len(atoms)
    sampler = skmd(
        mace_system(structures),
        particles=particles,
        stepping=Stepping(kT, step_size, **NEVER_LIMITED),
        seed=3,
        watch=Watch((fixed_steps(every),), NO_LIMITS),
    )
    _, infos = run(sampler, steps)
    starts = np.array([one.positions.reshape(-1) for one in structures])
    path, _ = asynchronous_skmd(
        starts, lambda x: stock(atoms, x)[:2], lambda x: stock(atoms, x)[2], kT=kT, step_size=step_size,
        stop_after=every, steps=steps, noises=flat_noise(3, steps, (n, 3), 1.0),
    )  # fmt: skip
    ours = np.array([info.positions.numpy().reshape(-1) for info in infos])
    np.testing.assert_allclose(ours, path, atol=1e-10, rtol=0)
    # and the bias has a say in it
    assert float(infos[1].bias_norm[0]) > 1e-3


def systems_of_one():
    yield plane(MuellerBrown(), STARTS[:1])
    yield mace_system(water(1))


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("make", [skmd, synchronous_skmd])
def test_one_particle_is_overdamped_langevin_dynamics_bit_for_bit(make, which):
    kT, step_size = (KT, 2e-4) if which == 0 else (0.03, 0.01)
    system = list(systems_of_one())[which]
    langevin = brownian(
        Unbiased(system), kT_eV=kT, step_size=step_size, seed=5, watch=Watch(geometry=NO_LIMITS), max_displacement_A=0.1
    )
    stein = make(
        system, particles=1, stepping=Stepping(kT, step_size), seed=5, watch=Watch((fixed_steps(4),), NO_LIMITS)
    )
    _, plain = run(langevin, 12)
    _, ours = run(stein, 12)
    for one, other in zip(plain, ours, strict=True):
        assert torch.equal(one.positions, other.positions)
        assert torch.equal(one.forces, other.forces)


def svgd_velocity(starts, kT, bandwidth):
    """(M, 2) of SVGD, eq. 4b, at the points (M, 2) for the density exp(−V/kT), times kT."""
    count = len(starts)
    velocity = np.zeros((count, 2))
    for i in range(count):
        for j in range(count):
            apart = starts[i] - starts[j]
            k = np.exp(-(apart @ apart) / (2 * bandwidth**2))
            score = mueller_brown(np.r_[starts[j], 0.0])[0][:2] / kT
            velocity[i] += (k * score + k * apart / bandwidth**2) / count
    return kT * velocity


def test_without_noise_and_with_the_kernels_self_similarity_all_particles_have_the_svgd_velocity():
    epsilon = 1e-5
    sampler = synchronous_skmd(
        plane(MuellerBrown(), STARTS),
        particles=5,
        stepping=Stepping(KT, epsilon, form="mean", noisy=False, **NEVER_LIMITED),
        seed=0,
        watch=Watch(geometry=NO_LIMITS),
    )
    _, (info,) = run(sampler, 1)
    moved = (info.positions.numpy()[:, :2] - STARTS) / epsilon
    np.testing.assert_allclose(moved, svgd_velocity(STARTS, KT, median_distance(STARTS)), rtol=1e-9)


def test_asynchronous_particles_that_take_one_step_each_have_the_svgd_velocity_one_after_the_other():
    epsilon, amplitude, length = 1e-4, 2.5, 0.6
    sampler = skmd(
        plane(MuellerBrown(), STARTS),
        particles=5,
        stepping=Stepping(KT, epsilon, gradient_scale=amplitude, form="mean", noisy=False, **NEVER_LIMITED),
        stein=SteinKernel(bandwidth=fixed_bandwidth(length), amplitude=amplitude),
        seed=0,
        watch=Watch((fixed_steps(1),), NO_LIMITS),
    )
    _, infos = run(sampler, 13)
    now = STARTS.copy()
    for step, info in enumerate(infos):
        i = step % 5
        now[i] += epsilon * amplitude * svgd_velocity(now, KT, length)[i]
        assert int(info.particle) == i
        np.testing.assert_allclose(info.positions.numpy()[0, :2], now[i], atol=1e-12)


def test_the_two_forms_are_one_process_in_two_units_of_time():
    system = plane(MuellerBrown(), STARTS)

    def path(form, step_size):
        stepping = Stepping(KT, step_size, form=form, **NEVER_LIMITED)
        watch = Watch((fixed_steps(3),), NO_LIMITS)
        return run(skmd(system, particles=5, stepping=stepping, seed=2, watch=watch), 20)[1]

    for one, other in zip(path("sum", 1e-4), path("mean", 5e-4), strict=True):
        torch.testing.assert_close(one.positions, other.positions, atol=1e-12, rtol=0)


@pytest.mark.parametrize("make", [skmd, synchronous_skmd])
def test_the_full_form_is_langevin_dynamics_where_the_kernel_is_nothing_and_the_mean_form_with_alpha_m(make):
    system = plane(MuellerBrown(), STARTS)

    def path(amplitude, **stepping):
        how = Stepping(KT, 1e-4, **stepping, **NEVER_LIMITED)
        watch = Watch((fixed_steps(3),), NO_LIMITS)
        stein = SteinKernel(amplitude=amplitude)
        return run(make(system, particles=5, stepping=how, stein=stein, seed=2, watch=watch), 20)[1]

    for amplitude in (1.0, 4.0):
        for one, other in zip(
            path(amplitude, form="full"), path(amplitude, form="mean", gradient_scale=5.0), strict=True
        ):
            torch.testing.assert_close(one.positions, other.positions, atol=1e-12, rtol=0)
    for one, other in zip(path(1e-300, form="full"), path(1e-300, form="sum"), strict=True):
        torch.testing.assert_close(one.positions, other.positions, atol=1e-12, rtol=0)


@pytest.mark.parametrize("case", ["plane", "molecule", "crystal", "inverse distances", "multiquadric"])
def test_synchronous_and_asynchronous_particles_feel_the_same_bias(case):
    if case == "plane":
        system, kT = plane(MuellerBrown(), STARTS), KT
    elif case == "inverse distances":
        system, kT = make_system(tiny_mace(), water(4), descriptor=InverseDistances()), 0.05
    else:
        system, kT = mace_system(shaken(crystal(), 4, 0.08) if case == "crystal" else water(4)), 0.05
    count = system.n_structures
    stein = SteinKernel(kernel=INVERSE_MULTIQUADRIC) if case == "multiquadric" else SteinKernel()
    together = synchronous_skmd(
        system, particles=count, stepping=Stepping(kT, 1e-4), seed=0, stein=stein, watch=Watch(geometry=NO_LIMITS)
    )
    everyone = together.init().field.bias_forces.reshape(count, -1, 3)
    for active in range(count):
        order = [(active + k) % count for k in range(count)]
        turned = make_system(system.potential, [system.structures[k] for k in order], descriptor=system.descriptor)
        alone = skmd(
            turned,
            particles=count,
            stepping=Stepping(kT, 1e-4),
            seed=0,
            stein=stein,
            watch=Watch((fixed_steps(1),), NO_LIMITS),
        )
        torch.testing.assert_close(alone.init().field.bias_forces, everyone[active], atol=1e-11, rtol=1e-9)


def test_the_bias_of_a_mace_is_that_of_the_equations_where_there_are_more_particles_than_descriptors():
    structures = water(12)
    system = mace_system(structures)
    found = evaluate(system, system.template.positions, None)
    assert found.descriptors.shape[1] < 12
    known = [stock(structures[0], one.positions) for one in structures]
    forces, descriptors, jacobians = (np.array(part) for part in zip(*known, strict=True))
    sampler = synchronous_skmd(
        system, particles=12, stepping=Stepping(0.05, 1e-3), seed=0, watch=Watch(geometry=NO_LIMITS)
    )
    b = sampler.init().field.bias_forces.reshape(12, -1).numpy()
    length = median_distance(descriptors)
    for i in range(12):
        expected = stein_bias(i, descriptors[i], descriptors, forces, jacobians, length, 0.05)
        np.testing.assert_allclose(b[i], expected, atol=1e-10)


@pytest.mark.parametrize("make", [skmd, synchronous_skmd])
@pytest.mark.parametrize("model", [False, True])
def test_batched_ensembles_are_the_ensembles_one_at_a_time(make, model):
    random = np.random.default_rng(4)
    if model:
        structures, kT, step_size, particles = water(9), 0.05, 0.01, 3
        potential, descriptor = tiny_mace(), mace_system(structures).descriptor
    else:
        structures = plane(MuellerBrown(), random.normal([-0.2, 0.7], 0.3, (12, 2))).structures
        kT, step_size, particles = KT, 1e-4, 4
        potential, descriptor = MuellerBrown(), Coordinates()

    def path(those):
        stepping = Stepping(kT, step_size, noisy=False)
        watch = Watch((fixed_steps(3),), NO_LIMITS)
        system = make_system(potential, those, descriptor=descriptor)
        return run(make(system, particles=particles, stepping=stepping, seed=0, watch=watch), 7)[1]

    batched = path(structures)
    for e in range(3):
        for one, all_of_them in zip(path(structures[e * particles : (e + 1) * particles]), batched, strict=True):
            mine = all_of_them.positions.reshape(3, -1, 3)[e]
            torch.testing.assert_close(one.positions, mine, atol=1e-11, rtol=0)
