"""MACE as a potential: the exchanged layers against plain mace-torch, symmetries, derivatives, files."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.io import read

from selectron.errors import SelectronError
from selectron.potentials import MacePotential, load_potential
from selectron.potentials.mace_files import load_mace
from small_maces import ATOMIC_ENERGIES, CASES, ELEMENTS, VARIANTS, model_of, small_mace, stock_evaluation, structures

STRUCTURES = structures()
EXACT = {torch.float64: 1e-12, torch.float32: 1e-5}
DTYPES = [torch.float64, torch.float32]


@pytest.fixture(scope="module")
def potential():
    return MacePotential(model_of("L=1"), dtype=torch.float64)


def relative(found, expected):
    return float((found.detach() - expected).abs().max() / expected.abs().max())


def assert_equal_to_stock(found, expected, structures, dtype, isolated_energy):
    """Energies are compared without the atomic reference energies, which would hide errors."""
    tolerance = EXACT[dtype]
    rounding = torch.finfo(dtype).eps * float(expected["energy"].abs().max())
    interaction = (expected["energy"] - isolated_energy).abs().max()
    assert float((found.energies - expected["energy"]).abs().max()) <= tolerance * float(interaction) + 4 * rounding
    assert relative(found.forces, expected["forces"]) <= tolerance
    bulk = torch.tensor([bool(atoms.pbc.all()) for atoms in structures])
    if bool(bulk.any()):
        assert relative(found.stress[bulk], expected["stress"][bulk]) <= tolerance
    assert bool(found.stress[~bulk].isnan().all())


@pytest.mark.parametrize(("variant", "dtype"), CASES)
def test_it_is_the_function_of_plain_mace_torch(variant, dtype):
    stock = model_of(variant).to(dtype)
    head = stock.heads[-1]
    potential = MacePotential(model_of(variant), dtype=dtype, head=head)
    expected = stock_evaluation(stock, STRUCTURES, head=head)
    found = potential.evaluate(potential.batch(STRUCTURES), stress=True, node_features=True)
    shift = len(stock.heads) - 1
    references = dict(zip(ELEMENTS, ATOMIC_ENERGIES, strict=True))
    isolated = torch.tensor([sum(references[z] + shift for z in atoms.numbers) for atoms in STRUCTURES])
    assert_equal_to_stock(found, expected, STRUCTURES, dtype, isolated)
    assert relative(found.node_features, potential.invariants(expected["node_feats"])) <= EXACT[dtype]
    # and not only the invariant ones
    potential.compose(potential.batch(STRUCTURES))
    everything = potential.fast_model(potential.inputs(potential.batch(STRUCTURES)), compute_force=False)["node_feats"]
    assert relative(everything, expected["node_feats"]) <= EXACT[dtype]


REAL = [
    ("MACE-OFF23_small.model", "ani1x_1000.xyz", slice(0, 1000, 150)),
    ("mace_test_f32_mace-md.model", "t1x32.xyz", slice(0, 32, 8)),
    ("mace_spice_2022_converted_f32.model", "t1x32.xyz", slice(0, 32, 8)),
    ("mace_mp_small.model", "oc20_traj30_sub.xyz", slice(0, 1183, 500)),
    ("committee/mace02_com1.model", "dataset_acac_test_H_transfer.xyz", slice(0, 4)),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("model", "data", "frames"), REAL, ids=[model for model, _, _ in REAL])
def test_real_models_are_the_function_of_plain_mace_torch(shared_models, shared_data, model, data, frames, dtype):
    some = read(shared_data / data, frames)
    stock = load_mace(shared_models / model).to(dtype)
    potential = load_potential(shared_models / model, dtype=str(dtype).removeprefix("torch."))
    expected = stock_evaluation(stock, some)
    found = potential.evaluate(potential.batch(some), stress=True, node_features=True)
    references = stock.atomic_energies_fn.atomic_energies.double().flatten()
    index = {int(z): i for i, z in enumerate(stock.atomic_numbers)}
    isolated = torch.stack([sum(references[index[int(z)]] for z in atoms.numbers) for atoms in some])
    assert_equal_to_stock(found, expected, some, dtype, isolated)
    assert relative(found.node_features, potential.invariants(expected["node_feats"])) <= EXACT[dtype]


def evaluation_of(potential, structures):
    return potential.evaluate(potential.batch(structures), stress=True, node_features=True)


def test_a_structure_does_not_feel_its_batch_mates(potential):
    together = evaluation_of(potential, STRUCTURES)
    start = 0
    for i, atoms in enumerate(STRUCTURES):
        alone = evaluation_of(potential, [atoms])
        own = slice(start, start + len(atoms))
        start += len(atoms)
        torch.testing.assert_close(alone.energies[0], together.energies[i], rtol=0, atol=1e-10)
        torch.testing.assert_close(alone.forces, together.forces[own], rtol=0, atol=1e-10)
        torch.testing.assert_close(alone.stress[0], together.stress[i], rtol=0, atol=1e-10, equal_nan=True)
        torch.testing.assert_close(alone.node_features, together.node_features[own], rtol=0, atol=1e-10)


def rotation(seed=3):
    """A proper rotation as a matrix that multiplies row vectors from the right."""
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.sign(np.linalg.det(q))


@pytest.mark.parametrize("variant", ["L=0", "L=1", "L=2", "nonlinear"])
def test_turning_a_structure_turns_its_forces_and_leaves_invariants(variant):
    potential = MacePotential(model_of(variant), dtype=torch.float64)
    turn = rotation()
    turned = [Atoms(a.numbers, a.positions @ turn, cell=a.cell.array @ turn, pbc=a.pbc) for a in STRUCTURES]
    before, after = evaluation_of(potential, STRUCTURES), evaluation_of(potential, turned)
    matrix = torch.from_numpy(turn)
    torch.testing.assert_close(after.energies, before.energies, rtol=0, atol=1e-8)
    torch.testing.assert_close(after.forces, before.forces @ matrix, rtol=0, atol=1e-8)
    torch.testing.assert_close(after.stress, matrix.T @ before.stress @ matrix, rtol=0, atol=1e-8, equal_nan=True)
    torch.testing.assert_close(after.node_features, before.node_features, rtol=0, atol=1e-8)


@pytest.mark.parametrize("variant", ["L=1", "L=2", "nonlinear", "three layers"])
def test_invariants_are_exactly_the_channels_that_a_turn_leaves_alone(variant):
    potential = MacePotential(model_of(variant), dtype=torch.float64)
    turn = rotation()
    atoms = STRUCTURES[0]
    turned = Atoms(atoms.numbers, atoms.positions @ turn)
    full = []
    for each in (atoms, turned):
        batch = potential.batch([each])
        potential.compose(batch)
        full.append(potential.fast_model(potential.inputs(batch), compute_force=False)["node_feats"].detach())
    left_alone = torch.isclose(full[0], full[1], rtol=0, atol=1e-10).all(dim=0)
    assert not bool(left_alone.all())
    assert int(left_alone.sum()) == potential.feature_dim
    torch.testing.assert_close(potential.invariants(full[0]), full[0][:, left_alone], rtol=0, atol=0)


def test_moving_wrapping_and_another_choice_of_cell_change_nothing(potential):
    random = np.random.default_rng(5)
    changed = []
    for atoms in STRUCTURES:
        other = atoms.copy()
        other.positions += random.normal(size=3) * 10
        images = random.integers(-2, 3, (len(atoms), 3)) * atoms.pbc
        other.positions += images @ atoms.cell.array
        if atoms.pbc[:2].all():  # the same lattice, other vectors
            cell = atoms.cell.array.copy()
            cell[1] += 2 * cell[0]
            other.set_cell(cell)
        changed.append(other)
    before, after = evaluation_of(potential, STRUCTURES), evaluation_of(potential, changed)
    torch.testing.assert_close(after.energies, before.energies, rtol=0, atol=1e-8)
    torch.testing.assert_close(after.forces, before.forces, rtol=0, atol=1e-8)
    torch.testing.assert_close(after.stress, before.stress, rtol=0, atol=1e-8, equal_nan=True)
    torch.testing.assert_close(after.node_features, before.node_features, rtol=0, atol=1e-8)


def test_reordering_atoms_reorders_forces_and_features(potential):
    random = np.random.default_rng(6)
    orders = [random.permutation(len(atoms)) for atoms in STRUCTURES]
    shuffled = [atoms[order] for atoms, order in zip(STRUCTURES, orders, strict=True)]
    starts = np.cumsum([0, *(len(atoms) for atoms in STRUCTURES[:-1])])
    order = torch.from_numpy(np.concatenate([o + s for o, s in zip(orders, starts, strict=True)]))
    before, after = evaluation_of(potential, STRUCTURES), evaluation_of(potential, shuffled)
    torch.testing.assert_close(after.energies, before.energies, rtol=0, atol=1e-8)
    torch.testing.assert_close(after.forces, before.forces[order], rtol=0, atol=1e-8)
    torch.testing.assert_close(after.node_features, before.node_features[order], rtol=0, atol=1e-8)


@pytest.mark.parametrize("repeat", [(2, 1, 1), (1, 2, 2)])
def test_a_supercell_has_so_many_times_the_energy_and_the_same_stress(potential, repeat):
    cell = STRUCTURES[4]
    times = int(np.prod(repeat))
    one, many = evaluation_of(potential, [cell]), evaluation_of(potential, [cell * repeat])
    torch.testing.assert_close(many.energies, times * one.energies, rtol=0, atol=1e-8)
    torch.testing.assert_close(many.forces, one.forces.repeat(times, 1), rtol=0, atol=1e-8)
    torch.testing.assert_close(many.stress, one.stress, rtol=0, atol=1e-8)


@pytest.mark.parametrize("variant", ["L=0", "L=1", "nonlinear", "ZBL and Agnesi"])
def test_forces_are_the_finite_difference_of_the_energy(variant):
    potential = MacePotential(model_of(variant), dtype=torch.float64)
    random, step = np.random.default_rng(7), 1e-4
    directions = [random.normal(size=(len(atoms), 3)) for atoms in STRUCTURES]

    def energies(sign):
        moved = [atoms.copy() for atoms in STRUCTURES]
        for atoms, direction in zip(moved, directions, strict=True):
            atoms.positions += sign * step * direction
        return potential.evaluate(potential.batch(moved), forces=False).energies

    slope = (energies(+1) - energies(-1)) / (2 * step)
    forces = potential.evaluate(potential.batch(STRUCTURES)).forces
    work = (forces * torch.from_numpy(np.concatenate(directions))).sum(dim=1)
    expected = torch.zeros(len(STRUCTURES), dtype=torch.float64)
    expected.index_add_(0, potential.batch(STRUCTURES).system_idx, -work)
    torch.testing.assert_close(slope, expected, rtol=1e-6, atol=1e-6)
    assert float(expected.abs().max()) > 1e-3


def test_stress_is_the_finite_difference_of_the_energy_under_strain(potential):
    crystals = [atoms for atoms in STRUCTURES if atoms.pbc.all()]
    stress = potential.evaluate(potential.batch(crystals), stress=True).stress
    step = 1e-5
    for a, b in [(0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)]:
        energies = []
        for sign in (1, -1):
            strain = np.zeros((3, 3))
            strain[a, b] += sign * step / 2
            strain[b, a] += sign * step / 2
            strained = [atoms.copy() for atoms in crystals]
            for atoms in strained:
                atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
            energies.append(potential.evaluate(potential.batch(strained), forces=False).energies)
        volumes = torch.tensor([atoms.get_volume() for atoms in crystals], dtype=torch.float64)
        torch.testing.assert_close(
            (energies[0] - energies[1]) / (2 * step * volumes), stress[:, a, b], rtol=0, atol=1e-7
        )
    assert float(stress.abs().max()) > 1e-3


def test_stress_without_a_volume_is_not_a_number(potential):
    result = potential.evaluate(potential.batch(STRUCTURES), stress=True)
    bulk = torch.tensor([bool(atoms.pbc.all()) for atoms in STRUCTURES])
    assert bool(result.stress[~bulk].isnan().all())
    assert not bool(result.stress[bulk].isnan().any())


def test_heads_differ_and_one_must_be_chosen():
    heads = {head: MacePotential(model_of("two heads"), head=head, dtype=torch.float64) for head in ("first", "second")}
    energies = {head: p.evaluate(p.batch(STRUCTURES), forces=False).energies for head, p in heads.items()}
    assert float((energies["first"] - energies["second"]).abs().min()) > 0.1
    assert heads["first"].fingerprint != heads["second"].fingerprint
    with pytest.raises(SelectronError, match=r"the heads first, second: choose one with --head"):
        MacePotential(model_of("two heads"))
    with pytest.raises(SelectronError, match=r"no head 'third'; it has first, second"):
        MacePotential(model_of("two heads"), head="third")
    MacePotential(small_mace(hidden_irreps="4x0e", heads=["other", "Default"], correlation=1))


def test_elements_it_does_not_know_are_named(potential):
    with pytest.raises(SelectronError, match="does not know the element N"):
        potential.evaluate(potential.batch([molecule("NH3")]))
    with pytest.raises(SelectronError, match="does not know the element U"):
        potential.evaluate(potential.batch([Atoms("U")]))
    assert potential.elements == {1, 6, 8}


def test_nothing_at_all_gives_nothing_of_the_right_shape(potential):
    result = evaluation_of(potential, [])
    assert result.energies.shape == (0,)
    assert result.forces.shape == (0, 3)
    assert result.stress.shape == (0, 3, 3)
    assert result.node_features.shape == (0, potential.feature_dim)


def test_what_is_not_asked_for_is_not_there(potential):
    result = potential.evaluate(potential.batch(STRUCTURES[:2]), forces=False)
    assert result.forces is result.stress is result.node_features is None
    assert not result.energies.requires_grad


def test_fingerprints_tell_models_dtypes_and_heads_apart():
    base = MacePotential(model_of("L=0"), dtype=torch.float64)
    assert MacePotential(model_of("L=0"), dtype=torch.float64).fingerprint == base.fingerprint
    assert MacePotential(model_of("L=0"), dtype=torch.float32).fingerprint != base.fingerprint
    nudged = model_of("L=0")
    with torch.no_grad():
        list(nudged.parameters())[-1].flatten()[0] += 1e-12
    assert MacePotential(nudged, dtype=torch.float64).fingerprint != base.fingerprint


class TestRandomControl:
    def test_it_is_the_same_architecture_with_other_parameters(self):
        potential = MacePotential(model_of("L=1"), dtype=torch.float64)
        before = {name: p.clone() for name, p in potential.model.named_parameters()}
        control = potential.randomly_initialised(41)
        for name, parameter in control.model.named_parameters():
            assert parameter.shape == before[name].shape
            if bool(before[name].any()):
                assert not torch.equal(parameter, before[name]), name
        for name, parameter in potential.model.named_parameters():
            assert torch.equal(parameter, before[name]), "the model it came from changed"
        assert control.fingerprint != potential.fingerprint
        buffers = dict(control.model.named_buffers())
        assert all(torch.equal(value, buffers[name]) for name, value in potential.model.named_buffers())

    def test_the_seed_fixes_it(self):
        potential = MacePotential(model_of("nonlinear"))
        assert potential.randomly_initialised(1).fingerprint == potential.randomly_initialised(1).fingerprint
        assert potential.randomly_initialised(1).fingerprint != potential.randomly_initialised(2).fingerprint

    @pytest.mark.slow
    @pytest.mark.parametrize("variant", ["density", "nonlinear", "bias readout"])
    def test_parameters_have_the_spread_that_mace_torch_gives_them(self, variant):
        """Trained parameters of any scale, drawn anew, against an untouched model, pooled over seeds."""
        seeds = 3
        fresh = [small_mace(**VARIANTS[variant], seed=100 + seed, untouched=True) for seed in range(seeds)]
        trained = small_mace(**VARIANTS[variant])
        with torch.no_grad():
            for parameter in trained.parameters():
                parameter.mul_(7.0)
        potential = MacePotential(trained, dtype=torch.float64)
        drawn = [potential.randomly_initialised(seed).model for seed in range(seeds)]
        for name, parameter in trained.named_parameters():
            expected, found = (
                torch.cat([model.get_parameter(name).detach().flatten() for model in models]).square().mean().sqrt()
                for models in (fresh, drawn)
            )
            count = parameter.numel() * seeds
            if bool(expected == 0):
                assert bool(found == 0), name
                continue
            # the relative standard error of a standard deviation is 1/√(2n), here of two of them
            assert abs(float(found / expected) - 1.0) < 5.0 / count**0.5, name


class TestFiles:
    def test_a_saved_model_comes_back(self, tmp_path):
        torch.save(model_of("L=0"), tmp_path / "small.model")
        loaded = load_potential(tmp_path / "small.model", dtype="float64")
        assert loaded.name == "small"
        assert loaded.fingerprint == MacePotential(model_of("L=0"), dtype=torch.float64).fingerprint
        assert torch.get_default_dtype() == torch.float32

    def test_other_files_are_refused_in_one_sentence(self, tmp_path):
        model = model_of("L=0")
        torch.save(torch.nn.Linear(2, 2), tmp_path / "linear.model")
        torch.save(model.state_dict(), tmp_path / "state.model")
        (tmp_path / "text.model").write_text("not a model\n")
        (tmp_path / "empty.model").write_bytes(b"")
        torch.save(model, tmp_path / "whole.model")
        content = (tmp_path / "whole.model").read_bytes()
        for i, fraction in enumerate((0.01, 0.5, 0.99)):
            (tmp_path / f"cut{i}.model").write_bytes(content[: int(len(content) * fraction)])
        (tmp_path / "folder.model").mkdir()
        (tmp_path / "whole.model").unlink()
        for path in [*tmp_path.iterdir(), tmp_path / "absent.model"]:
            with pytest.raises(SelectronError) as caught:
                load_potential(path)
            text = str(caught.value)
            assert path.stem in text, text
            assert "\n" not in text.strip(), text

    def test_a_model_that_wants_charges_is_refused(self):
        specs = {"total_charge": {"type": "continuous", "emb_dim": 4, "per": "graph", "in_dim": 1}}
        model = small_mace(hidden_irreps="4x0e", correlation=1, embedding_specs=specs)
        with pytest.raises(SelectronError, match="total_charge"):
            MacePotential(model)

    @pytest.mark.parametrize("device", ["tpu", "cuda:99999", "mps"])
    def test_devices_that_are_not_there(self, device):
        with pytest.raises(SelectronError, match="device"):
            MacePotential(model_of("L=0"), device=device)

    def test_an_unknown_dtype_or_name(self):
        with pytest.raises(SelectronError, match="float32 or float64"):
            load_potential("embedded", dtype="float16")
        with pytest.raises(SelectronError, match="no such file"):
            load_potential("mace-off23-gigantic")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_the_processor():
    here = MacePotential(model_of("L=1"), dtype=torch.float64)
    there = MacePotential(model_of("L=1"), dtype=torch.float64, device="cuda")
    found, expected = evaluation_of(there, STRUCTURES), evaluation_of(here, STRUCTURES)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-10, atol=1e-10, equal_nan=True)
