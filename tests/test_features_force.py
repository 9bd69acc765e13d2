"""Force NTK and joint NTK: rows against finite differences of plain mace-torch, probes, invariances, screening."""

import copy
import csv
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.io import read, write
from mace.modules.loss import WeightedEnergyForcesLoss

from selectron.acquisition import Posterior, default_scale
from selectron.embedded import pool_path
from selectron.errors import SelectronError
from selectron.features import (
    EnergyNTKFeatures,
    FeatureOptions,
    FeatureStore,
    ForceNTKFeatures,
    JointNTKFeatures,
    force_rows,
    make_features,
)
from selectron.features.force_rows import ForceRows
from selectron.features.probes import colour, coloured_probes, couplings
from selectron.potentials import MacePotential, load_potential
from selectron.screening import screen, write_picks, write_scores
from selectron.screening.atoms import atom_variances
from selectron.structures import Checks, Pool
from selectron.structures.graphs import collate
from small_maces import VARIANTS, loop_gradients, small_mace, stock_batch, structures

UNSKETCHED = 10**9
FEW = ["L=0", "L=1"]
ALSO = ["nonlinear"]  # gates of their own, and parameters that no exchanged layer owns
ETHANOL, WATER, *_REST = structures()
SLAB = _REST[4]  # periodic in two directions, with many images inside the cutoff
CHAIN = _REST[6]
SYSTEMS = [WATER, SLAB]


@pytest.fixture(scope="module")
def model_of():
    made = {}

    def make(variant):
        if variant not in made:
            made[variant] = small_mace(**VARIANTS[variant])
        return copy.deepcopy(made[variant])

    return make


@pytest.fixture(scope="module")
def potential_of(model_of):
    made = {}

    def make(variant, dtype=torch.float64):
        if (variant, dtype) not in made:
            made[variant, dtype] = MacePotential(model_of(variant), dtype=dtype, head=model_of(variant).heads[0])
        return made[variant, dtype]

    return make


def exact(potential, dim=UNSKETCHED, **options):
    return ForceNTKFeatures(potential, dim=dim, probes="exact", **options)


def blocks(rows):
    return torch.split(rows.values, rows.counts.tolist())


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


# ---- exact rows ----


@pytest.mark.parametrize("variant", FEW)
def test_exact_rows_are_derivatives_of_the_forces_with_respect_to_parameters(model_of, potential_of, variant):
    """Single parameters of every kind in the plain model, moved both ways: the forces follow the column of the rows."""
    found = exact(potential_of(variant)).rows(SYSTEMS).values
    model, step, start = model_of(variant), 1e-4, 0
    random = np.random.default_rng(0)
    moving = 0
    for _, parameter in model.named_parameters():
        size = parameter.numel()
        columns = found[:, start : start + size]
        for entry in {int(columns.norm(dim=0).argmax()), int(random.integers(size))}:
            forces = []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter.view(-1)[entry] += sign * step
                    forces.append(stock_forces(model, SYSTEMS).flatten())
                    parameter.view(-1)[entry] -= sign * step
            slope = (forces[0] - forces[1]) / (2 * step)
            torch.testing.assert_close(columns[:, entry], slope, rtol=1e-5, atol=1e-7 * float(1 + slope.norm()))
            moving += bool(slope.abs().max() > 1e-4)
        start += size
    assert start == found.shape[1]
    assert moving >= 15  # parameters that forces do not feel would test nothing


def stock_forces(model, some):
    with torch.enable_grad():
        return model(stock_batch(model, some), compute_force=True)["forces"].detach()


@pytest.mark.parametrize(
    "variant", [*FEW, *ALSO, *(pytest.param(v, marks=pytest.mark.slow) for v in VARIANTS if v not in FEW + ALSO)]
)
def test_exact_rows_are_derivatives_of_energy_gradients_with_respect_to_positions(model_of, potential_of, variant):
    """All parameters at once: minus the slope of ∂E/∂θ, from a plain autograd loop, as one coordinate moves."""
    model, step = model_of(variant), 1e-4
    random = np.random.default_rng(1)
    for atoms, found in zip(SYSTEMS, blocks(exact(potential_of(variant)).rows(SYSTEMS)), strict=True):
        for component in random.choice(3 * len(atoms), 4, replace=False):
            moved = []
            for sign in (1, -1):
                one = atoms.copy()
                one.positions[component // 3, component % 3] += sign * step
                moved.append(one)
            ahead, behind = loop_gradients(model, moved, head=model.heads[0])
            assert relative(found[component], -(ahead - behind) / (2 * step)) < 1e-6


def test_float32_rows_are_those_of_float64(potential_of):
    single = exact(potential_of("L=1", torch.float32)).rows(SYSTEMS).values.double()
    assert relative(single, exact(potential_of("L=1")).rows(SYSTEMS).values) < 1e-5


def test_sketched_rows_are_the_sketch_that_energy_rows_have(potential_of):
    """A probe is a difference of sketched energy gradients; exact rows go through the same sketch."""
    potential, step = potential_of("L=1"), 1e-4
    features = exact(potential, dim=50, seed=3)
    energy = EnergyNTKFeatures(potential, dim=50, seed=3)
    moved = [WATER.copy(), WATER.copy()]
    moved[0].positions[1, 2] += step
    moved[1].positions[1, 2] -= step
    ahead, behind = energy.rows(moved).values
    assert relative(features.rows([WATER]).values[5], -(ahead - behind) / (2 * step)) < 1e-6


@pytest.mark.parametrize("probes", ["exact", 3])
def test_structures_do_not_feel_their_batch_nor_how_it_is_cut(potential_of, monkeypatch, probes):
    potential, some = potential_of("L=1"), [WATER, SLAB, Atoms("O"), CHAIN]
    features = JointNTKFeatures(potential, dim=60, probes=probes)
    together = features.rows(some)
    backwards = features.rows(some[::-1])
    for one, block, other in zip(some, blocks(together), blocks(backwards)[::-1], strict=True):
        torch.testing.assert_close(block, features.rows([one]).values, rtol=0, atol=1e-8)
        torch.testing.assert_close(block, other, rtol=0, atol=1e-8)
    batch = potential.batch(some)
    copies = torch.repeat_interleave(torch.arange(4), 3 * batch.counts)
    whole = features.force_rows._chunks(batch, copies)
    for most in (1, 100):
        monkeypatch.setattr(force_rows, "EDGES_AT_ONCE", {"cpu": most})
        chunks = features.force_rows._chunks(batch, copies)
        assert len(chunks) > len(whole) == 1
        assert [i for c in chunks for i in range(c.start, c.stop)] == list(range(len(copies)))
        for chunk in chunks:
            one = chunk.stop == chunk.start + 1
            assert one or int(batch.edge_counts[copies[chunk]].sum()) <= most
            assert one or int(batch.counts[copies[chunk]].sum()) <= most
        torch.testing.assert_close(features.rows(some).values, together.values, rtol=0, atol=1e-8)


def test_an_atom_alone_has_rows_of_zeros_and_no_structure_no_rows(potential_of):
    for probes in ("exact", 2):
        features = ForceNTKFeatures(potential_of("L=0"), dim=40, probes=probes)
        assert not bool(features.rows([Atoms("O")]).values.any())
        assert features.rows([]).values.shape == (0, 40)


def test_a_dilute_gas_is_cut_too(potential_of, monkeypatch):
    """Copies without edges hold atoms all the same."""
    gas = Atoms("O20", [[20.0 * i, 0, 0] for i in range(20)])
    features = exact(potential_of("L=0"), 10)
    monkeypatch.setattr(force_rows, "EDGES_AT_ONCE", {"cpu": 100})
    copies = torch.zeros(60, dtype=torch.int64)
    assert len(features.force_rows._chunks(potential_of("L=0").batch([gas]), copies)) == 12


# ---- probes ----


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-3), (torch.float32, 2e-2)], ids=str)
@pytest.mark.parametrize("dim", [64, UNSKETCHED])
@pytest.mark.parametrize("variant", FEW)
def test_probed_rows_are_sign_combinations_of_exact_rows(potential_of, variant, dim, dtype, tolerance):
    some, p = [ETHANOL, SLAB], 5
    potential = potential_of(variant, dtype)
    probed = ForceNTKFeatures(potential, dim=dim, probes=p).rows(some)
    assert probed.counts.tolist() == [p, p]
    reference = exact(potential_of(variant), dim).rows(some)
    for atoms, found, rows in zip(some, blocks(probed), blocks(reference), strict=True):
        signs = coloured_probes([atoms], potential.batch([atoms]), p).permute(1, 0, 2).reshape(p, -1)
        assert relative(found.double(), signs.double() @ rows) < tolerance


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-3), (torch.float32, 2e-2)], ids=str)
@pytest.mark.parametrize(
    ("model", "data", "frame"),
    [("MACE-OFF23_small.model", "ani1x_1000.xyz", 131), ("mace_mp_small.model", "oc22_32.xyz", 0)],
    ids=["MACE-OFF23-small", "MACE-MP-0-small"],
)
def test_probed_rows_of_pretrained_models(shared_models, shared_data, model, data, frame, dtype, tolerance):
    """On a molecule, and on the twelve innermost atoms of an oxide slab without its periodicity."""
    atoms = read(shared_data / data, frame)
    if len(atoms) > 12:
        order = np.argsort(np.linalg.norm(atoms.positions - atoms.positions.mean(axis=0), axis=1))
        atoms = Atoms(atoms.numbers[order[:12]], atoms.positions[order[:12]])
    potential = load_potential(shared_models / model, dtype=str(dtype).removeprefix("torch."))
    found = ForceNTKFeatures(potential, probes=4).rows([atoms]).values.double()
    rows = exact(potential, 512).rows([atoms]).values.double()
    signs = coloured_probes([atoms], potential.batch([atoms]), 4).permute(1, 0, 2).reshape(4, -1)
    assert relative(found, signs.double() @ rows) < tolerance


def signs_of(some, p, cutoff=5.0):
    return torch.split(coloured_probes(some, collate(some, cutoff), p), [len(a) for a in some])


def test_a_structure_has_the_same_probes_wherever_it_stands():
    first, second = signs_of([WATER, SLAB], 4)
    again_second, _, again_first = signs_of([SLAB, ETHANOL, WATER], 4)
    labelled = WATER.copy()
    labelled.info["energy"], labelled.arrays["forces"] = 1.0, np.ones((3, 3))
    assert torch.equal(first, again_first)
    assert torch.equal(second, again_second)
    assert torch.equal(first, signs_of([labelled], 4)[0])
    moved = WATER.copy()
    moved.positions[0, 0] += 1e-3
    assert not torch.equal(signs_of([ETHANOL], 4)[0][:3], signs_of([moved], 4)[0])


@pytest.mark.parametrize("p", [1, 4, 40])
def test_every_component_has_its_sign_in_one_probe(p):
    for signs in signs_of([WATER, ETHANOL, SLAB], p):
        assert torch.equal(signs.abs().sum(dim=1), torch.ones(len(signs), 3, dtype=signs.dtype))
        if p > 1:  # near components are apart: no probe has two components of one atom unless there are fewer probes
            assert float(signs.abs().sum(dim=2).max()) <= np.ceil(3 / p)
        members = signs.abs().sum(dim=(0, 2))
        assert float(members.max()) <= 2 * np.ceil(3 * len(signs) / p)  # and the work is shared evenly


def estimates(rows, coupling, p, draws, coloured):
    """Σ ψψᵀ-type estimates of ΦᵀΦ from independent sets of probes."""
    out = []
    for seed in range(draws):
        random = np.random.default_rng(seed)
        if coloured:
            signs = colour(coupling, p, random).transpose(1, 0, 2).reshape(p, -1)
        else:
            signs = random.choice([-1.0, 1.0], size=(p, len(rows))) * p**-0.5
        psi = torch.from_numpy(signs) @ rows
        out.append(psi.T @ psi)
    return torch.stack(out)


def test_probes_estimate_the_second_moment_of_exact_rows(potential_of):
    """The mean over sets of probes of every element of Σ ψᵀψ lies within its standard error of that of Σ φᵀφ."""
    potential = potential_of("L=0")
    rows = exact(potential, 12).rows([WATER]).values
    truth = rows.T @ rows
    coupling = couplings(potential.batch([WATER]))[0]
    for p in (1, 3):
        draws = estimates(rows, coupling, p, 400, coloured=True)
        error = draws.std(dim=0) / 400**0.5
        z = ((draws.mean(dim=0) - truth) / error.clamp(min=1e-12 * float(truth.abs().max())))[
            torch.triu_indices(12, 12).unbind()
        ]
        assert float(z.abs().max()) < 5.0
        assert 0.2 < float(z.square().mean()) < 3.0


def test_as_many_probes_as_components_are_exact(potential_of):
    potential = potential_of("L=0")
    rows = exact(potential, 12).rows([WATER]).values
    found = ForceNTKFeatures(potential, dim=12, probes=9).rows([WATER]).values
    assert relative(found.T @ found, rows.T @ rows) < 1e-3


def test_coloured_probes_scatter_less_than_plain_signs():
    """On real structures and the embedded model; 1.6 times less variance was measured on larger models."""
    potential = load_potential("embedded", dtype="float64")
    ratios = []
    for atoms in read(pool_path(), "::80"):
        rows = exact(potential, 64).rows([atoms]).values
        coupling = couplings(potential.batch([atoms]))[0]
        spread = [
            estimates(rows, coupling, 4, 100, coloured).diagonal(dim1=1, dim2=2).sum(dim=1).std()
            for coloured in (True, False)
        ]
        ratios.append(float(spread[0] / spread[1]) ** 2)
    assert np.mean(ratios) < 0.85


# ---- near the cutoff ----


@pytest.mark.parametrize("probes", ["exact", 4])
def test_rows_fade_as_a_neighbour_leaves_the_cutoff(potential_of, probes):
    potential = potential_of("L=1")
    cutoff = potential.cutoff_A

    def rows_at(distance):
        pair = Atoms("OC", [[0.0, 0.0, 0.0], [distance, 0.0, 0.0]])
        batch = potential.batch([pair])
        features = exact(potential)
        if probes == "exact":
            return features.force_rows.exact(batch)
        fixed = signs_of([WATER], 4)[0][:2]
        return features.force_rows.probed(batch, fixed)[1].flatten(0, 1)

    scale = float(rows_at(0.7 * cutoff).norm())
    inside, outside = rows_at(cutoff - 1e-3), rows_at(cutoff + 1e-3)
    assert not bool(outside.any())
    assert bool(inside.isfinite().all())
    assert float(inside.norm()) < 1e-4 * scale
    for close in (-1e-9, 0.0, 1e-9):  # a displaced atom crosses
        assert float(rows_at(cutoff + close).norm()) < 1e-4 * scale


def test_rows_of_a_molecule_are_continuous_across_the_cutoff(potential_of):
    potential = potential_of("L=1")
    features = exact(potential, 80)

    def rows_at(distance):
        atoms = molecule("H2O")
        away = np.array([0.0, 0.0, 1.0])
        return features.rows([atoms + Atoms("C", [atoms.positions[0] + away * distance])]).values

    cutoff = potential.cutoff_A
    before, inside, outside = (rows_at(cutoff + d) for d in (-3e-3, -1e-3, 1e-3))
    jump, drift = float((outside - inside).norm()), float((inside - before).norm())
    assert jump < 1e-4 * float(inside.norm())
    assert jump < 3 * drift + 1e-9 * float(inside.norm())


# ---- joint rows ----


@pytest.mark.parametrize("probes", ["exact", 4])
@pytest.mark.parametrize(("energy_weight", "force_weight"), [(1.0, 10.0), (40.0, 1000.0), (0.0, 1.0)])
def test_joint_rows_are_weighted_energy_rows_on_top_of_force_rows(potential_of, probes, energy_weight, force_weight):
    potential, some = potential_of("L=1"), [WATER, ETHANOL, SLAB]
    joint = JointNTKFeatures(
        potential, dim=70, probes=probes, energy_weight=energy_weight, force_weight=force_weight
    ).rows(some)
    energy = EnergyNTKFeatures(potential, dim=70).rows(some).values
    force = ForceNTKFeatures(potential, dim=70, probes=probes).rows(some)
    parts = zip(some, blocks(joint), energy, blocks(force), strict=True)
    for atoms, found, energy_row, force_block in parts:
        weight = (3 * energy_weight / (force_weight * len(atoms))) ** 0.5
        torch.testing.assert_close(found[0], weight * energy_row, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found[1:], force_block, rtol=1e-9, atol=1e-9)
        trace = weight**2 * float(energy_row.square().sum()) + float(force_block.square().sum())
        assert float(found.square().sum()) == pytest.approx(trace, rel=1e-9)


class _Labelled(dict):
    __getattr__ = dict.__getitem__


def loss_gradient(model, atoms, energy_error, force_error, weights):
    """∇θ of mace-torch's own training loss of one structure, whose labels miss the prediction by the given errors."""
    batch = stock_batch(model, [atoms])
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.requires_grad_(True)
    said = model(batch, training=True, compute_force=True)
    label = _Labelled(
        energy=said["energy"].detach() - energy_error,
        forces=said["forces"].detach() - force_error,
        ptr=batch["ptr"],
        weight=torch.ones(1),
        energy_weight=torch.ones(1),
        forces_weight=torch.ones(1),
    )
    loss = WeightedEnergyForcesLoss(*weights)(label, said)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    for parameter in parameters:
        parameter.requires_grad_(False)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, found, strict=True)]
    )


def test_the_joint_kernel_is_that_of_the_training_loss(model_of, potential_of):
    """Gradients of mace-torch's loss are the joint rows times the weighted errors, their products the joint kernel between."""
    weights = (7.0, 30.0)
    some = [WATER, SLAB, ETHANOL]
    features = JointNTKFeatures(
        potential_of("L=1"), dim=UNSKETCHED, probes="exact", energy_weight=weights[0], force_weight=weights[1]
    )
    rows = blocks(features.rows(some))
    generator = torch.Generator().manual_seed(0)
    model, gradients, errors = model_of("L=1"), [], []
    for atoms in some:
        n = len(atoms)
        energy_error = torch.randn(1, generator=generator, dtype=torch.float64) * n
        force_error = torch.randn(n, 3, generator=generator, dtype=torch.float64)
        gradients.append(loss_gradient(model, atoms, energy_error, force_error, weights))
        # L = (w_F / 3N) ‖c‖² with c = (√(3 w_E / (w_F N)) ΔE, ΔF), the errors in the units of force rows
        errors.append(
            torch.cat([(3 * weights[0] / (weights[1] * n)) ** 0.5 * energy_error, force_error.flatten()])
            * (2 * weights[1] / (3 * n))
        )
        assert relative(rows[len(errors) - 1].T @ errors[-1], gradients[-1]) < 1e-6
    for i in range(3):
        for j in range(3):
            of_kernel = float(errors[i] @ (rows[i] @ rows[j].T) @ errors[j])
            assert of_kernel == pytest.approx(float(gradients[i] @ gradients[j]), rel=1e-5)


@pytest.mark.parametrize("probes", ["exact", 3])
@pytest.mark.parametrize("make", [ForceNTKFeatures, JointNTKFeatures])
def test_normalisations(potential_of, make, probes):
    some = [WATER, ETHANOL]
    plain, per_atom, unit = (
        blocks(make(potential_of("L=0"), dim=50, probes=probes, normalise=n).rows(some))
        for n in ("none", "per-atom", "unit")
    )
    for atoms, one, two, three in zip(some, plain, per_atom, unit, strict=True):
        torch.testing.assert_close(two, one / len(atoms))
        torch.testing.assert_close(three, one / one.norm())


# ---- invariances ----

DIM = 96


@pytest.fixture(scope="module")
def trained(potential_of):
    """The posterior of a few structures with exact force rows, unlike those that are tested."""
    made = {}

    def make(joint=False):
        if joint not in made:
            features = (JointNTKFeatures if joint else ForceNTKFeatures)(potential_of("L=1"), dim=DIM, probes="exact")
            train = features.rows([molecule("CO2"), CHAIN])
            scale = default_scale(train)
            posterior = Posterior(DIM, prior_precision=1.0, noise_variance=scale.noise_variance)
            posterior.update(scale.apply(train))
            made[joint] = features, scale, posterior
        return made[joint]

    return make


def scores(trained, atoms):
    """Trace, and the variance of each atom."""
    features, scale, posterior = trained
    rows = features.rows([atoms])
    (by_atom,) = atom_variances(posterior, scale, rows, features)
    return float(posterior.variance(scale.apply(rows))[0]), by_atom


def turned(atoms, random):
    one = atoms.copy()
    one.rotate(float(random.uniform(20, 340)), random.normal(size=3), rotate_cell=True)
    return one, np.arange(len(atoms))


def shifted(atoms, random):
    one = atoms.copy()
    one.positions += random.uniform(-5, 5, 3)
    return one, np.arange(len(atoms))


def reordered(atoms, random):
    order = random.permutation(len(atoms))
    return atoms[order], order


def other_images(atoms, random):
    one = atoms.copy()
    steps = random.integers(-2, 3, (len(atoms), 3)) * atoms.pbc
    one.positions += steps @ atoms.cell.array
    return one, np.arange(len(atoms))


def wrapped(atoms, random):
    one, order = shifted(atoms, random)
    one.wrap()
    return one, order


@pytest.mark.parametrize("joint", [False, True], ids=["force", "joint"])
@pytest.mark.parametrize("atoms", [ETHANOL, SLAB * (2, 1, 1)], ids=["molecule", "slab"])
@pytest.mark.parametrize("change", [turned, shifted, reordered, other_images, wrapped])
def test_scores_do_not_depend_on_how_a_structure_is_written_down(trained, change, atoms, joint):
    before, by_atom = scores(trained(joint), atoms)
    other, order = change(atoms, np.random.default_rng(5))
    after, by_other_atom = scores(trained(joint), other)
    assert after == pytest.approx(before, rel=1e-6)
    np.testing.assert_allclose(by_other_atom, by_atom[order], rtol=1e-6)
    assert by_other_atom.max() == pytest.approx(by_atom.max(), rel=1e-6)
    assert by_atom.max() > 1.02 * by_atom.min()  # else nothing is tested


def test_like_atoms_that_trade_places_trade_variances(trained):
    order = np.arange(len(ETHANOL))
    hydrogens = np.flatnonzero(ETHANOL.numbers == 1)
    order[hydrogens] = np.roll(hydrogens, 1)
    before, by_atom = scores(trained(), ETHANOL)
    after, by_other_atom = scores(trained(), ETHANOL[order])
    assert after == pytest.approx(before, rel=1e-6)
    np.testing.assert_allclose(by_other_atom, by_atom[order], rtol=1e-6)


@pytest.mark.parametrize("atoms", [ETHANOL, SLAB], ids=["molecule", "slab"])
@pytest.mark.parametrize("change", [turned, reordered, other_images])
def test_probed_scores_are_invariant_in_expectation(trained, potential_of, change, atoms):
    """Each changed copy has probes of its own; the mean over many stays within 4 standard errors of the exact trace."""
    _, scale, posterior = trained()
    truth, _ = scores(trained(), atoms)
    copies = []
    for seed in range(60):
        random = np.random.default_rng(seed)
        other, _ = change(atoms, random)
        copies.append(shifted(other, random)[0])  # few reorderings and images are different; no shift comes twice
    rows = ForceNTKFeatures(potential_of("L=1"), dim=DIM, probes=4).rows(copies)
    single = posterior.variance(scale.apply(rows)).numpy()
    error = single.std(ddof=1) / len(copies) ** 0.5
    assert abs(single.mean() - truth) < 4 * error
    assert 0 < error < 0.1 * truth


@pytest.mark.parametrize("joint", [False, True], ids=["force", "joint"])
def test_variances_of_atoms_add_up_to_that_of_the_structure(trained, joint):
    features, scale, posterior = trained(joint)
    some = [ETHANOL, SLAB, WATER]
    rows = features.rows(some)
    total = posterior.variance(scale.apply(rows)).numpy()
    per_row = posterior.variance(scale.apply(rows), per="row")
    first = rows.offsets[:-1]
    of_energy = per_row[first].numpy() if joint else np.zeros(3)
    by_atom = atom_variances(posterior, scale, rows, features)
    assert [len(one) for one in by_atom] == [len(atoms) for atoms in some]
    np.testing.assert_allclose([one.sum() for one in by_atom], total - of_energy, rtol=1e-12)
    assert not joint or bool((of_energy > 0).all())
    start = int(first[0]) + int(joint)
    np.testing.assert_allclose(by_atom[0][4], per_row[start + 12 : start + 15].sum(), rtol=1e-12)


# ---- screening ----


def rattled(count, seed):
    random = np.random.default_rng(seed)
    out = []
    for i in range(count):
        atoms = molecule(["H2O", "CO2", "CH4", "H2CO"][i % 4])
        atoms.positions += random.normal(0, 0.1, atoms.positions.shape)
        out.append(atoms)
    return out


@pytest.fixture
def screened(tmp_path, potential_of):
    potential = potential_of("L=0", torch.float32)

    def run(name, probes, train_probes="exact", **options):
        write(tmp_path / "pool.extxyz", rattled(10, 1))
        write(tmp_path / "train.extxyz", rattled(3, 2))
        pool, train = (Pool.open([tmp_path / f"{part}.extxyz"]) for part in ("pool", "train"))
        features = make_features(name, potential, FeatureOptions(dim=48, probes=probes))
        of_train = make_features(name, potential, FeatureOptions(dim=48, probes=train_probes))
        stores = [FeatureStore(tmp_path / "cache", f.fingerprint, f.dim) for f in (features, of_train)]
        return screen(
            pool,
            features,
            train=train,
            train_features=of_train,
            store=stores[0],
            train_store=stores[1],
            checks=Checks(elements=potential.elements, min_distance_A=0.3),
            **options,
        )

    return run


@pytest.mark.parametrize("selector", ["lcmd", "ipv", "maxdet", "top-k"])
@pytest.mark.parametrize("name", ["force-ntk", "joint-ntk"])
def test_batches_from_probed_pools_with_exact_training_rows(screened, name, selector, tmp_path):
    screening = screened(name, 4, selector=selector, budget=4)
    assert len({pick.place for pick in screening.picks}) == 4
    assert bool((screening.variance > 0).all())
    assert bool(np.isnan(screening.max_atom).all())
    write_picks(screening, tmp_path / "picks.extxyz")
    for pick, back in zip(screening.picks, read(tmp_path / "picks.extxyz", ":"), strict=True):
        assert pick.atom_variance.shape == (len(pick.atoms),)
        assert bool((pick.atom_variance > 0).all())
        np.testing.assert_allclose(back.arrays["atom_variance"], pick.atom_variance, rtol=1e-6, atol=1e-7)


def test_probed_scores_scatter_about_exact_ones(screened):
    """Same scale, same posterior: the ratio of variances of 64 probes to exact ones is 1 within sampling."""
    truth, many = screened("force-ntk", "exact"), screened("force-ntk", 64)
    assert many.scale == truth.scale
    np.testing.assert_allclose(many.variance, truth.variance, rtol=0.5)
    assert float((many.variance / truth.variance).mean()) == pytest.approx(1.0, abs=0.1)


def test_probing_the_training_set_keeps_the_noise_of_a_row(screened):
    """σ² belongs to a force component: with few probes the training set teaches as much, not as much per probe."""
    truth, probed = screened("force-ntk", "exact"), screened("force-ntk", "exact", train_probes=16)
    assert probed.scale.noise_variance == truth.scale.noise_variance
    relative_noise = 1e-3
    components = np.mean([3 * len(a) for a in rattled(3, 2)])
    assert truth.scale.noise_variance == pytest.approx(relative_noise / components, rel=1e-12)


@pytest.mark.parametrize("name", ["force-ntk", "joint-ntk"])
def test_criteria_and_columns_of_exact_scores(screened, name, tmp_path):
    screening = screened(name, "exact", selector="top-k", budget=3, rank_by="max-atom")
    some, leading = rattled(10, 1), int(name == "joint-ntk")
    sizes = np.array([len(atoms) for atoms in some])
    assert [pick.place for pick in screening.picks] == np.argsort(-screening.max_atom, kind="stable")[:3].tolist()
    for pick in screening.picks:
        assert float(pick.atom_variance.max()) == pytest.approx(screening.max_atom[pick.place], rel=1e-5)
        if not leading:
            assert float(pick.atom_variance.sum()) == pytest.approx(pick.variance, rel=1e-5)
        else:
            assert float(pick.atom_variance.sum()) < pick.variance
    np.testing.assert_allclose(screening.criterion("per-atom"), screening.variance / sizes)
    np.testing.assert_allclose(screening.criterion("per-component"), screening.variance / (3 * sizes + leading))
    write_scores(screening, tmp_path / "scores.csv")
    with open(tmp_path / "scores.csv", newline="") as stream:
        table = list(csv.DictReader(stream))
    for column, expected in {
        "variance": screening.variance,
        "variance_per_atom": screening.variance / sizes,
        "variance_per_component": screening.variance / (3 * sizes + leading),
        "variance_max_atom": screening.max_atom,
    }.items():
        np.testing.assert_allclose([float(row[column]) for row in table], expected, rtol=1e-7)
    assert bool((screening.max_atom <= screening.variance).all())
    assert bool((screening.max_atom * sizes >= screening.variance * (0.0 if leading else 1.0 - 1e-9)).all())


@pytest.mark.parametrize("criterion", ["variance", "per-component", "per-atom"])
def test_the_shortlist_follows_the_criterion(screened, criterion):
    screening = screened("force-ntk", 4, selector="top-k", budget=3, rank_by=criterion)
    expected = np.argsort(-screening.criterion(criterion), kind="stable")[:3]
    assert [pick.place for pick in screening.picks] == expected.tolist()


def test_variances_of_picked_atoms_only_where_asked(screened):
    for options in ({"per_atom": False}, {"train_probes": 4}):
        picks = screened("force-ntk", 4, selector="top-k", budget=2, **options).picks
        assert [pick.atom_variance for pick in picks] == [None, None]


# ---- what makes no sense ----


@pytest.mark.parametrize("probes", [0, -1, "exakt", 2.5, True])
def test_probes_are_a_number_from_1_or_exact(potential_of, probes):
    for make in (ForceNTKFeatures, JointNTKFeatures):
        with pytest.raises(SelectronError, match="Probes"):
            make(potential_of("L=0"), probes=probes)


@pytest.mark.parametrize("weights", [(-1.0, 1.0), (1.0, -1.0), (1.0, 0.0), (float("nan"), 1.0), (1.0, float("inf"))])
def test_weights_of_the_loss_are_not_negative(potential_of, weights):
    with pytest.raises(SelectronError, match="weight"):
        JointNTKFeatures(potential_of("L=0"), energy_weight=weights[0], force_weight=weights[1])


def test_a_sketch_has_a_dimension(potential_of):
    with pytest.raises(SelectronError, match="at least 1"):
        ForceNTKFeatures(potential_of("L=0"), dim=0)


def test_single_atoms_need_exact_rows(screened):
    with pytest.raises(SelectronError, match="exact"):
        screened("force-ntk", 4, selector="top-k", budget=2, rank_by="max-atom")


def test_what_rows_depend_on_is_in_the_fingerprint(potential_of):
    potential = potential_of("L=0")
    made = [
        ForceNTKFeatures(potential, dim=30),
        ForceNTKFeatures(potential, dim=30, probes=5),
        ForceNTKFeatures(potential, dim=30, probes="exact"),
        ForceNTKFeatures(potential, dim=30, seed=1),
        JointNTKFeatures(potential, dim=30),
        JointNTKFeatures(potential, dim=30, energy_weight=2.0),
        EnergyNTKFeatures(potential, dim=30),
    ]
    assert len({one.fingerprint for one in made}) == len(made)
    same = JointNTKFeatures(potential, dim=30, energy_weight=2.0, force_weight=20.0)
    assert same.fingerprint == made[4].fingerprint


# ---- memory ----

_FIRST_CHUNKS = """
import sys, torch
from ase.build import add_adsorbate, fcc111
from ase import Atoms
torch.set_num_threads(1)
from selectron.features import ForceNTKFeatures
from selectron.features.force_rows import ForceRows
from selectron.potentials import load_potential
slab = fcc111("Cu", size=(5, 5, 8), vacuum=8.0)
slab.pbc = (True, True, False)
assert len(slab) == 200
potential = load_potential(sys.argv[1])
whole = ForceRows._chunks
ForceRows._chunks = lambda self, batch, copies: whole(self, batch, copies)[:2]
rows = ForceNTKFeatures(potential, probes="exact").rows([slab])
assert rows.values.shape == (600, 512) and bool(rows.values[0].any())
print([line for line in open("/proc/self/status") if line.startswith("VmHWM")][0].split()[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads the peak of memory from Linux's /proc")
def test_exact_rows_of_200_atoms_fit_in_8_GiB(shared_models):
    """The first passes of many that are alike: their size, not their number, is what memory depends on."""
    done = subprocess.run(
        [sys.executable, "-c", _FIRST_CHUNKS, str(shared_models / "mace_mp_small.model")],
        capture_output=True,
        text=True,
        check=True,
    )
    peak_GiB = int(done.stdout.split()[-1]) / 2**20
    assert 0.5 < peak_GiB < 8.0


def test_memory_is_bounded_by_the_edges_of_a_pass(potential_of, monkeypatch):
    """No pass holds more edges than allowed, unless one structure alone has more."""
    potential, most = potential_of("L=0"), 150
    monkeypatch.setattr(force_rows, "EDGES_AT_ONCE", {"cpu": most})
    seen = []
    original = MacePotential.parameter_gradient_tangents

    def recorded(self, batch, directions, parameters=None):
        seen.append((batch.n_structures, int(batch.edge_counts.sum())))
        return original(self, batch, directions, parameters)

    monkeypatch.setattr(MacePotential, "parameter_gradient_tangents", recorded)
    rows = ForceRows(exact(potential, 30).force_rows.gradient_rows).exact(potential.batch([ETHANOL, SLAB]))
    assert sum(count for count, _ in seen) == len(rows) == 3 * (len(ETHANOL) + len(SLAB))
    assert all(edges <= most or count == 1 for count, edges in seen)
