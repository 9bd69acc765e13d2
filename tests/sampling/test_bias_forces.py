"""Forces of biases and gradients of kernels and descriptors against finite differences of what they are gradients of."""

import numpy as np
import pytest
import torch
from sampled_systems import crystal, mace_system, plane, run, shaken, tiny_mace, water
from scipy.spatial.transform import Rotation

from selectron.potentials.surfaces import DoubleWell, Harmonic, MuellerBrown
from selectron.sampling import (
    CommitteeField,
    Coordinates,
    InverseDistances,
    NodeFeatures,
    Unbiased,
    WellTemperedMetadynamics,
    brownian,
    hyperactive,
    make_system,
    uncertainty_driven,
)
from selectron.sampling.alignment import kabsch, minimum_image, unaligned
from selectron.sampling.descriptors import jacobians
from selectron.sampling.kernels import GAUSSIAN, INVERSE_MULTIQUADRIC, fixed_bandwidth
from selectron.sampling.stein import Standing, SteinKernel, differences, stein_sum
from selectron.sampling.system import evaluate, graph_of

STEP = 1e-4


def descent(scalar, positions):
    """(N, 3) central differences of −``scalar``, a function of positions (N, 3)."""
    out = torch.zeros_like(positions)
    for a in range(positions.shape[0]):
        for x in range(3):
            up, down = positions.clone(), positions.clone()
            up[a, x] += STEP
            down[a, x] -= STEP
            out[a, x] = -(scalar(up) - scalar(down)) / (2 * STEP)
    return out


def first_field(force_field):
    """The field where the structures start."""
    return force_field(force_field.system.template.positions, force_field.start(), 0)[0]


def committee(kind):
    """A committee of three small MACEs on water or a crystal, a system of two structures."""
    members = [tiny_mace(seed) for seed in (0, 1, 2)]
    structures = water(2) if kind == "molecule" else shaken(crystal(), 2, 0.08)
    return make_system(members[0], structures), members


def spread(system, members, positions):
    """(P,) standard deviation of the members' energies."""
    energies = []
    for member in members:
        one = make_system(member, system.structures)
        energies.append(evaluate(one, positions, None).evaluation.energies)
    return torch.stack(energies).var(0, unbiased=False).sqrt()


@pytest.mark.parametrize("kind", ["molecule", "crystal"])
def test_the_bias_of_uncertainty_driven_dynamics_is_the_gradient_of_its_potential(kind):
    system, members = committee(kind)
    positions = system.template.positions
    counts = system.template.counts
    width = float(spread(system, members, positions).mean()) / 2
    field = first_field(CommitteeField(system, members, uncertainty_driven(height_eV=0.7, width_eV=width)))

    def potential(r):
        variance = spread(system, members, r) ** 2
        return (0.7 * (torch.exp(-variance / (counts * width**2)) - 1.0)).sum()

    expected = descent(potential, positions)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(field.bias_forces, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(field.uncertainty, spread(system, members, positions) / counts.sqrt())
    mean = sum(evaluate(make_system(m, system.structures), positions, None).evaluation.forces for m in members) / 3
    torch.testing.assert_close(field.forces, mean)


def test_the_hyperactive_bias_is_the_gradient_of_the_spread_with_the_strength_of_running_means():
    system, members = committee("molecule")
    force_field = CommitteeField(system, members, hyperactive(relative_strength=0.4, average_over=2))
    random = np.random.default_rng(0)
    memory, forces, gradients = force_field.start(), [], []
    for visit in range(3):
        positions = system.template.positions + torch.from_numpy(random.normal(0, 0.02, (6, 3)))
        gradient = -descent(lambda r: spread(system, members, r).sum(), positions)
        field, memory = force_field(positions, memory, visit)
        forces.append(field.forces.reshape(2, -1).norm(dim=1))
        gradients.append(gradient.reshape(2, -1).norm(dim=1))
        if visit == 0:
            mean_force, mean_gradient = forces[0], gradients[0]
        else:
            share = 1 / min(visit + 1, 2)
            mean_force = (1 - share) * mean_force + share * forces[-1]
            mean_gradient = (1 - share) * mean_gradient + share * gradients[-1]
        strength = 0.4 * mean_force / mean_gradient
        expected = system.of_atoms(strength)[:, None] * gradient
        torch.testing.assert_close(field.bias_forces, expected, atol=1e-6, rtol=1e-4)
    assert torch.equal(memory.bias.samples, torch.full((2,), 3.0, dtype=torch.float64))


def test_uncertainty_driven_dynamics_goes_where_the_committee_disagrees_and_metadynamics_away_from_where_it_was():
    flat = [Harmonic(0.2), Harmonic([0.2, 1.0]), Harmonic([0.2, 0.6])]
    system = plane(flat[0], [[0.3, 0.5]])
    field = first_field(CommitteeField(system, flat, uncertainty_driven(height_eV=1.0, width_eV=0.5)))
    # they agree on x, and disagree the more the larger |y|
    assert float(field.bias_forces[0, 1]) > 1e-3
    assert abs(float(field.bias_forces[0, 0])) < 1e-12
    here = torch.tensor([[0.3, 0.5, 0.0]], dtype=torch.float64)
    bias = WellTemperedMetadynamics(system, kT_eV=0.1, height_eV=0.1, bias_factor=5.0, every=1, width=0.3)
    _, memory = bias(here, bias.start(), 1)
    field, _ = bias(here + torch.tensor([[0.1, 0.0, 0.0]]), memory, 2)
    assert float(field.bias_forces[0, 0]) > 0.0


def test_members_that_agree_exactly_exert_no_bias():
    system = plane(DoubleWell(), [[0.3, 0.5]])
    for bias in (uncertainty_driven(height_eV=1.0, width_eV=0.5), hyperactive(relative_strength=0.3)):
        field = first_field(CommitteeField(system, [DoubleWell(), DoubleWell()], bias))
        assert torch.equal(field.bias_forces, torch.zeros(1, 3, dtype=torch.float64))


@pytest.mark.parametrize("case", ["molecule", "crystal", "inverse distances", "plane"])
def test_the_bias_of_metadynamics_is_the_gradient_of_its_hills(case):
    if case == "plane":
        system = plane(MuellerBrown(), [[-0.5, 1.4], [0.6, 0.1]])
    elif case == "inverse distances":
        system = make_system(tiny_mace(), water(2), descriptor=InverseDistances())
    else:
        system = mace_system(water(2) if case == "molecule" else shaken(crystal(), 2, 0.08))
    base = system.template.positions
    bias = WellTemperedMetadynamics(system, kT_eV=0.05, height_eV=0.1, bias_factor=4.0, every=2)
    memory, heights = bias.start(), []
    random = np.random.default_rng(1)
    free = system.free
    for visit in range(8):
        positions = base + 0.05 * torch.from_numpy(random.normal(size=base.shape)) * free
        before = memory
        field, memory = bias(positions, memory, visit)
        # the formula of the heights, from the bias at the place of the new hill
        if visit in {2, 4, 6}:
            heights.append(0.1 * torch.exp(-hills_at(before.bias, field.descriptors) / (3.0 * 0.05)))
    torch.testing.assert_close(memory.bias.heights, torch.stack(heights, dim=1))
    assert bool((memory.bias.heights[:, -1] < 0.1).all())
    assert torch.equal(memory.bias.heights[:, 0], torch.full((2,), 0.1, dtype=torch.float64))
    field, _ = bias(base, memory, 8)

    def energy(r):
        return hills_at(memory.bias, evaluate(system, r, None).descriptors).sum()

    expected = descent(energy, base) * free
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(field.bias_forces, expected, atol=1e-6, rtol=1e-5)


def hills_at(hills, descriptors):
    """(P,) sum of the hills."""
    out = torch.zeros(len(descriptors), dtype=torch.float64)
    for p in range(len(descriptors)):
        for h in range(hills.heights.shape[1]):
            s = ((descriptors[p] - hills.centres[p, h]) ** 2).sum()
            out[p] += hills.heights[p, h] * torch.exp(-s / (2 * hills.width[p] ** 2))
    return out


def test_the_width_of_hills_that_nobody_set_is_the_spread_of_the_first_configurations():
    system = plane(DoubleWell(), [[0.0, 0.0]])
    bias = WellTemperedMetadynamics(system, kT_eV=0.05, height_eV=0.1, bias_factor=4.0, every=6)
    random = np.random.default_rng(0)
    seen, memory = [], bias.start()
    for visit in range(7):
        positions = torch.from_numpy(random.normal(size=(1, 3))) * system.free
        seen.append(positions.numpy()[0])
        _, memory = bias(positions, memory, visit)
    assert memory.bias.heights.shape == (1, 1)
    assert float(memory.bias.width[0]) == pytest.approx(np.sqrt(np.array(seen).var(0).sum()))


@pytest.mark.parametrize("descriptor", [NodeFeatures(), NodeFeatures(mean=True, atoms=[0, 2]), InverseDistances()])
def test_jacobians_of_descriptors(descriptor):
    system = make_system(tiny_mace(), water(2), descriptor=descriptor)
    positions = system.template.positions
    batch, _ = graph_of(system, positions, None)
    found = jacobians(system.potential, descriptor, batch)
    for component in (0, found.shape[1] - 1):
        expected = -descent(lambda r, c=component: evaluate(system, r, None).descriptors[:, c].sum(), positions)
        torch.testing.assert_close(found[:, component].reshape(-1, 3), expected, atol=1e-7, rtol=1e-6)


def standing_particles(system):
    """The structures of ``system`` but the first as the standing particles of one ensemble."""
    found = evaluate(system, system.template.positions, None)
    count = system.n_structures
    batch, _ = graph_of(system, system.template.positions, None)
    identity = system.descriptor.identity
    j = torch.zeros(count, 0, 0) if identity else jacobians(system.potential, system.descriptor, batch)
    n = len(system.structures[0])
    return Standing(
        positions=system.template.positions.reshape(1, count, n, 3)[:, 1:],
        energies=found.evaluation.energies.reshape(1, count)[:, 1:],
        forces=found.evaluation.forces.reshape(1, count, n, 3)[:, 1:],
        descriptors=found.descriptors.reshape(1, count, -1)[:, 1:],
        jacobians=j.reshape(1, count, *j.shape[1:])[:, 1:],
        shortest=torch.zeros(1, count - 1),
    ), found.descriptors[:1]


def stein_force(system, alignment, kernel, length, kT, forces=True):
    """Σ_j [k F_j + kT ∇_{r_j} k] (n, 3) on the first structure of ``system``, and the rotations used."""
    standing, here = standing_particles(system)
    if not forces:
        standing = standing._replace(forces=torch.zeros_like(standing.forces))
    n = len(system.structures[0])
    apart, rotations = differences(
        system.template.positions[:n][None], here, standing, alignment, system.descriptor.identity
    )
    total = stein_sum(
        apart, rotations, standing, torch.ones(1, system.n_structures - 1, dtype=torch.float64),
        SteinKernel(kernel=kernel, bandwidth=fixed_bandwidth(length)),
        bandwidth=torch.tensor([length], dtype=torch.float64), amplitude=torch.tensor([1.3], dtype=torch.float64),
        kT_eV=kT, identity=system.descriptor.identity,
    )  # fmt: skip
    return total[0], rotations


@pytest.mark.parametrize("kernel", [GAUSSIAN, INVERSE_MULTIQUADRIC])
@pytest.mark.parametrize("case", ["molecule", "molecule, Kabsch", "crystal", "coordinates, Kabsch"])
def test_the_repulsion_is_the_gradient_of_the_kernel_in_the_standing_particles(case, kernel):
    kT, length = 0.3, 0.5
    structures = shaken(crystal(), 3, 0.08) if case == "crystal" else water(3)
    if "Kabsch" in case:
        for k, atoms in enumerate(structures):
            atoms.positions = atoms.positions @ Rotation.random(rng=k).as_matrix().T + [k, 0, 0]
    system = mace_system(structures)
    n = len(structures[0])
    alignment = kabsch(torch.ones(n, dtype=torch.float64)) if "Kabsch" in case else unaligned
    if case.startswith("coordinates"):
        system = make_system(system.potential, structures, descriptor=Coordinates())
    ours, rotations = stein_force(system, alignment, kernel, length, kT, forces=False)

    def kernels(r):
        """Σ_j k(r_j, r) with r, the first structure, where it is in the system, and the others taken from ``r``."""
        if system.descriptor.identity:
            aligned = alignment(r[None, :n], r[None, n:].reshape(1, 2, n, 3)).positions[0]
            squared = (r[:n] - aligned).square().sum((1, 2))
        else:
            d = evaluate(system, r, None).descriptors
            squared = (d[0] - d[1:]).square().sum(1)
        if kernel is GAUSSIAN:
            return (1.3 * torch.exp(-squared / (2 * length**2))).sum()
        return (1.3 / torch.sqrt(1 + squared / length**2)).sum()

    gradients = -descent(kernels, system.template.positions)[n:].reshape(2, n, 3)
    if rotations is not None:  # each in its own frame, turned into that of the moving particle
        gradients = torch.einsum("mxy,mny->mnx", rotations[0], gradients)
    torch.testing.assert_close(ours, kT * gradients.sum(0), atol=1e-7, rtol=1e-5)
    assert ours.abs().max() > 1e-3


@pytest.mark.parametrize("case", ["molecule", "crystal", "Kabsch"])
def test_the_stein_bias_of_invariant_descriptors_exerts_no_net_force(case):
    structures = shaken(crystal(), 4, 0.08) if case == "crystal" else water(4)
    system = mace_system(structures)
    n = len(structures[0])
    alignment = kabsch(system.masses[:n, 0]) if case == "Kabsch" else unaligned
    total, _ = stein_force(system, alignment, GAUSSIAN, 0.5, 0.3)
    assert total.abs().max() > 1e-2
    assert total.sum(0).abs().max() < 1e-12


def test_a_rotated_copy_of_a_standing_particle_acts_as_the_copy_in_the_frame_of_the_moving_one():
    structures = water(3)
    turned = [atoms.copy() for atoms in structures]
    for k, atoms in enumerate(turned[1:]):
        atoms.positions = atoms.positions @ Rotation.random(rng=k).as_matrix().T + [3.0, -k, 1.0]
    system = mace_system(structures)
    weights = system.masses[:3, 0]
    expected, _ = stein_force(system, kabsch(weights), GAUSSIAN, 0.5, 0.3)
    found, _ = stein_force(mace_system(turned), kabsch(weights), GAUSSIAN, 0.5, 0.3)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-9)
    # as the paper adds them, they are not
    plain, _ = stein_force(mace_system(turned), unaligned, GAUSSIAN, 0.5, 0.3)
    assert (plain - expected).abs().max() > 1e-3
    # and a rotated moving particle feels the rotated force
    rotation = Rotation.random(rng=7).as_matrix()
    turned[0].positions = turned[0].positions @ rotation.T
    found, _ = stein_force(mace_system(turned), kabsch(weights), GAUSSIAN, 0.5, 0.3)
    torch.testing.assert_close(found, expected @ torch.from_numpy(rotation.T), atol=1e-10, rtol=1e-9)


def test_kabsch_finds_the_rotation_of_least_distance_and_never_a_reflection():
    random = np.random.default_rng(0)
    moving = torch.from_numpy(random.normal(size=(1, 5, 3)))
    mirrored = moving * torch.tensor([1.0, 1.0, -1.0])
    noisy = moving + 0.2 * torch.from_numpy(random.normal(size=(1, 5, 3)))
    masses = torch.tensor([1.0, 12.0, 16.0, 1.0, 1.0], dtype=torch.float64)
    standing = torch.stack([mirrored, noisy], dim=1)
    aligned = kabsch(masses)(moving, standing)
    torch.testing.assert_close(torch.linalg.det(aligned.rotations), torch.ones(1, 2, dtype=torch.float64))
    for k in range(2):
        rotation, _ = Rotation.align_vectors(
            (moving[0] - (masses[:, None] * moving[0]).sum(0) / masses.sum()).numpy(),
            (standing[0, k] - (masses[:, None] * standing[0, k]).sum(0) / masses.sum()).numpy(),
            weights=masses.numpy(),
        )
        np.testing.assert_allclose(aligned.rotations[0, k].numpy(), rotation.as_matrix(), atol=1e-10)


def test_the_minimum_image_does_not_see_lattice_translations_nor_a_common_drift():
    atoms = crystal()
    random = np.random.default_rng(0)
    cell = torch.from_numpy(atoms.cell.array)
    moving = torch.from_numpy(atoms.positions)[None]
    standing = moving[:, None] + torch.from_numpy(random.normal(0, 0.1, (1, 3, 4, 3)))
    align = minimum_image(cell, torch.ones(3, dtype=torch.bool))
    expected = moving[:, None] - align(moving, standing).positions
    drift = (standing - moving[:, None]).mean(2, keepdim=True)
    torch.testing.assert_close(expected, moving[:, None] - standing + drift)
    images = torch.from_numpy(random.integers(-2, 3, (1, 3, 4, 3)).astype(float)) @ cell
    found = moving[:, None] - align(moving, standing + images + torch.tensor([0.05, -0.02, 0.03])).positions
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    # a direction that is not periodic has no images
    open_in_z = minimum_image(cell, torch.tensor([True, True, False]))
    shifted = standing.clone()
    shifted[0, 0, 0] += cell[2]
    assert (open_in_z(moving, shifted).positions - align(moving, shifted).positions).abs().max() > 1.0


def test_a_bias_pulls_a_trajectory_towards_disagreement():
    # harmonic in x for all members; in y one wants out: the committee disagrees the more the larger |y|
    members = [Harmonic([1.0, 0.9]), Harmonic([1.0, 1.1])]
    starts = np.random.default_rng(0).normal(0, 0.3, (400, 2))
    system = plane(members[0], starts)
    spreads = []
    for field in (Unbiased(system), CommitteeField(system, members, uncertainty_driven(height_eV=0.4, width_eV=0.02))):
        state, _ = run(brownian(field, kT_eV=0.1, step_size=0.05, seed=1), 150)
        spreads.append(state.positions.var(0))
    assert float(spreads[1][1] / spreads[0][1]) > 1.3
    assert 0.7 < float(spreads[1][0] / spreads[0][0]) < 1.3
