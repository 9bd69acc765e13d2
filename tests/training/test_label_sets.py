"""What a training reads: labels of one source and head, weights of single labels, isolated atoms, stresses, other arguments."""

import json
from importlib import import_module

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read
from pydantic import ValidationError

from selectron.errors import SelectronError
from selectron.structures import Pool, write_extxyz
from selectron.structures.label_source import LabelKeys
from selectron.structures.label_values import LabelSource, read_labels
from selectron.training import mace_runner
from selectron.training.data import read_sets
from selectron.training.evaluate import errors
from selectron.training.fine_tune import fine_tune
from selectron.training.labels import labelled, labelled_set, without_isolated_atoms, write_for_mace
from selectron.training.options import TrainOptions
from selectron.training.outcome import TrainingFailed
from small_maces import model_of, small_mace, stock_batch, structures


@pytest.fixture(scope="module")
def frames():
    with Pool.open(["embedded"]) as pool:
        return [pool[i] for i in range(6)]


def reference(atoms, offset_eV=0.0, affix="REF_", **info):
    """The frame with its labels under other keys, and what its sampler left beside them: other numbers."""
    copy = atoms.copy()
    copy.info |= {f"{affix}energy": atoms.get_potential_energy() + offset_eV, **info}
    copy.arrays[f"{affix}forces"] = atoms.get_forces()
    copy.calc = SinglePointCalculator(copy, energy=-1.0, forces=np.ones((len(atoms), 3)))
    return copy


def handed_over(folder, train, options=None, valid=None, **how):
    """What fine_tune hands to a trainer that ends at once: training set, validation set, settings."""
    options = (options or TrainOptions(references="auto")).model_copy(update={"interpreter": "/bin/false"})
    with pytest.raises(TrainingFailed, match="exit code 1"):
        fine_tune("embedded", train, valid, options, folder, **how)
    run = folder / "run"
    return *(read(run / name, ":") for name in ("train.xyz", "valid.xyz")), json.loads(
        (run / "settings.json").read_text()
    )


def test_reference_labels_are_what_is_trained_on(frames, tmp_path):
    said = []
    train, valid, _ = handed_over(tmp_path, [reference(atoms) for atoms in frames], say=said.append)
    expected = sorted(atoms.get_potential_energy() for atoms in frames)
    assert sorted(atoms.info["REF_energy"] for atoms in [*train, *valid]) == pytest.approx(expected, abs=1e-6)
    assert "6 structures, REF_energy and REF_forces (energy and forces stand beside them and are not read)" in said[0]


def test_training_and_validation_come_from_the_same_keys(frames, tmp_path):
    mine, theirs = [reference(a, affix="dft_") for a in frames[:4]], [reference(a, affix="dft_") for a in frames[4:]]
    keys = LabelKeys(energy="dft_energy")
    train, valid, _ = handed_over(tmp_path, mine, valid=theirs, keys=keys)
    assert [a.info["REF_energy"] for a in valid] == pytest.approx([a.get_potential_energy() for a in frames[4:]])
    assert len(train) == 4
    with pytest.raises(
        SelectronError, match=r"in REF_energy and REF_forces, the validation set in energy and .*--energy-key"
    ):
        read_sets(map(reference, frames[:4]), frames[4:], TrainOptions())


def test_replayed_structures_have_keys_of_their_own(frames, tmp_path):
    write_extxyz(tmp_path / "old.xyz", frames[3:])
    options = TrainOptions(replay=[str(tmp_path / "old.xyz")])
    data = read_sets([reference(a, affix="dft_") for a in frames[:3]], None, options, LabelKeys(energy="dft_energy"))
    assert sorted(one.energy_eV for one in data.old) == pytest.approx(
        sorted(a.get_potential_energy() for a in frames[3:])
    )
    assert "Labels of the replay set: 3 structures, energy and forces" in data.said[1]


def test_an_energy_of_weight_zero_enters_nothing(frames, tmp_path):
    """Whatever it is: the trainer gets the same files, references and start, and errors are those of the others."""
    handed = []
    for place, garbage in enumerate((37.0, -1e6, np.nan)):
        train = [
            reference(a, garbage if i % 2 else 0.0, config_energy_weight=1.0 - i % 2) for i, a in enumerate(frames)
        ]
        folder = tmp_path / str(place)
        _, _, settings = handed_over(folder, train, TrainOptions(references="fit", seed=2))
        handed.append(
            ((folder / "run" / "train.xyz").read_bytes(), (folder / "run" / "valid.xyz").read_bytes(), settings)
        )
    assert handed[0] == handed[1] == handed[2]
    whole = errors("embedded", frames)
    found = errors("embedded", train)
    assert found.energy_rmse_eV == pytest.approx(np.sqrt(np.mean(whole.energy_errors_eV[::2] ** 2)))
    assert found.force_rmse == pytest.approx(whole.force_rmse)
    assert found.finite
    assert np.isnan(found.energy_errors_eV).tolist() == [False, True] * 3


def test_forces_of_weight_zero_enter_nothing(frames, tmp_path):
    train = [reference(a, config_forces_weight=1.0 - i % 2) for i, a in enumerate(frames)]
    for atoms in train[1::2]:
        atoms.arrays["REF_forces"] *= 1e3
    whole, found = errors("embedded", frames), errors("embedded", train)
    counted = np.arange(6) % 2 == 0
    expected = np.average(whole.force_rmse_by_structure[counted] ** 2, weights=whole.atoms[counted]) ** 0.5
    assert found.force_rmse == pytest.approx(expected)
    write_for_mace(tmp_path / "train.xyz", labelled(train))
    assert ["REF_forces" in atoms.arrays for atoms in read(tmp_path / "train.xyz", ":")] == [True, False] * 3


def test_weights_of_labels_reach_mace_torch(frames, tmp_path):
    weights = {
        "config_energy_weight": 0.25,
        "config_forces_weight": 2.0,
        "config_stress_weight": 0.5,
        "config_weight": 3.0,
    }
    off = reference(frames[1], config_energy_weight=0.0)
    write_for_mace(tmp_path / "train.xyz", labelled([reference(frames[0], **weights), off]))
    data = import_module("mace.data")
    _, (first, second) = data.load_from_xyz(
        str(tmp_path / "train.xyz"), key_specification=data.KeySpecification.from_defaults(), config_type_weights={}
    )
    assert (first.weight, first.property_weights["energy"], first.property_weights["forces"]) == (3.0, 0.25, 2.0)
    assert (second.property_weights["energy"], second.property_weights["forces"]) == (0.0, 1.0)


def test_of_equal_weights_those_of_zero_stay(frames):
    train = [reference(a, config_energy_weight=i, config_weight=2.0) for i, a in enumerate(frames)]
    data = read_sets(train, train, TrainOptions(weights="equal"))
    for part in (data.training, data.validation):
        assert [one.energy_weight for one in part] == [0.0, 1.0, 1.0, 1.0, 1.0, 1.0]
        assert {one.weight for one in part} == {1.0}


class Batch(dict):
    ptr = torch.tensor([0, 3, 7])
    weight, energy_weight = torch.tensor([2.0, 0.5]), torch.tensor([1.0, 3.0])
    forces_weight, stress_weight = torch.tensor([0.0, 1.5]), torch.tensor([1.0, 0.0])


def test_the_absolute_loss_counts_weights_of_each_label_and_stresses(monkeypatch):
    losses = import_module("mace.modules.loss")
    monkeypatch.setattr(losses, "mean_normed_error_forces", losses.mean_normed_error_forces)
    mace_runner._weigh_forces()
    random = torch.Generator().manual_seed(0)
    energies, forces = torch.randn(2, 2, generator=random), torch.randn(2, 7, 3, generator=random)
    stresses = torch.randn(2, 2, 3, 3, generator=random)
    batch = Batch(energy=energies[0], forces=forces[0], stress=stresses[0])
    predicted = {"energy": energies[1], "forces": forces[1], "stress": stresses[1]}
    args = type("Arguments", (), {"energy_weight": 100.0, "forces_weight": 10.0, "stress_weight": 7.0})
    found = mace_runner._absolute_with_stress(args)(batch, predicted)
    energy = (energies[0] - energies[1]).abs() / torch.tensor([3, 4]) * batch.weight * batch.energy_weight
    lengths = (forces[0] - forces[1]).norm(dim=1)[3:] * 0.5 * 1.5
    stress = (stresses[0] - stresses[1]).abs()[0] * 2.0
    expected = 100 * energy.mean() + 10 * lengths.sum() / 7 + 7 * stress.sum() / 18
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_isolated_atoms_give_references_and_are_nowhere_else(frames, tmp_path):
    alone = [Atoms("H", info={"REF_energy": -10.7, "config_type": "IsolatedAtom"})]
    alone.append(Atoms("C", cell=[15, 15, 15], pbc=True, info={"REF_energy": -48.8}))
    alone[1].arrays["REF_forces"] = np.zeros((1, 3))
    train = [reference(a) for a in frames]
    data = read_sets([*alone, *train], [*alone, *train], TrainOptions())
    assert data.isolated_eV == {"H": -10.7, "C": -48.8}
    assert len(data.training) == len(data.validation) == 6
    assert "6 structures and 2 isolated atoms" in data.said[0]
    found, whole = errors("embedded", [*alone, *train]), errors("embedded", train)
    np.testing.assert_array_equal(found.energy_errors_eV, whole.energy_errors_eV)
    crystal = bulk("Cu")
    crystal.calc = SinglePointCalculator(crystal, energy=-3.7, forces=np.zeros((1, 3)))
    assert without_isolated_atoms(labelled([crystal]))[1] == {}


def test_isolated_atoms_of_one_element_with_two_energies_are_refused(frames):
    alone = [Atoms("O", info={"REF_energy": energy}) for energy in (-70.9, -72.9)]
    with pytest.raises(
        SelectronError, match=r"Isolated atoms of O in the training set have different energies, -70\.9"
    ):
        read_sets([*alone, *map(reference, frames)], None, TrainOptions())


def test_structures_of_several_heads_are_taken_of_one(frames, tmp_path):
    train = [reference(a, -900.0 * (i % 2), head=("wb97x", "pbe")[i % 2]) for i, a in enumerate(frames)]
    with pytest.raises(SelectronError, match=r"several heads.*wb97x in 3 and pbe in 3; name one of them with --head"):
        fine_tune("embedded", train, None, TrainOptions(), tmp_path)
    said = []
    options = TrainOptions(head="wb97x")
    found, valid, _ = handed_over(tmp_path, train, options, valid=train, say=said.append)
    expected = [a.get_potential_energy() for a in frames[::2]]
    for part in (found, valid):
        assert [a.info["REF_energy"] for a in part] == pytest.approx(expected)
    assert said[0].startswith("Of the training set 3 structures with head=wb97x of 6 structures are used")
    with pytest.raises(SelectronError, match="head"):
        fine_tune("embedded", train, None, TrainOptions(head="wb97"), tmp_path)
    with pytest.raises(SelectronError, match="head"):
        fine_tune("embedded", frames, None, TrainOptions(head="wb97"), tmp_path)
    same = labelled_set([reference(a, head="pbe") for a in frames], head="omat")
    assert len(same.structures) == 6
    assert "say head=pbe, not omat" in same.said[0]


def crystals(count, seed=0, key="REF_stress"):
    """Strained and rattled copper with the labels of effective-medium theory."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        atoms = bulk("Cu", "fcc", a=3.6, cubic=True)
        strain = random.uniform(-0.04, 0.04, (3, 3))
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + (strain + strain.T) / 2), scale_atoms=True)
        atoms.positions += random.normal(0, 0.05, atoms.positions.shape)
        atoms.calc = EMT()
        energy, forces, stress = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress(voigt=False)
        atoms.calc = None
        atoms.info["REF_energy"], atoms.arrays["REF_forces"] = energy, forces
        atoms.info[key] = -stress * atoms.cell.volume if "virial" in key else stress
        found.append(atoms)
    return found


def stress_error(path, frames):
    model = torch.load(path, weights_only=False).double()
    batch = stock_batch(model, frames)
    said = model(batch, compute_force=True, compute_stress=True)["stress"].detach().numpy()
    return float(np.abs(said - np.array([atoms.info["REF_stress"] for atoms in frames])).mean())


@pytest.mark.parametrize("loss", ["absolute", pytest.param("squares", marks=pytest.mark.slow)])
def test_a_stress_weight_fits_stresses(tmp_path, loss):
    """On selectron's layers; a crystal without a stress and a cluster stand in the set and do no harm."""
    model = small_mace(hidden_irreps="6x0e", num_elements=1, atomic_numbers=[29], atomic_energies=np.array([0.0]))
    torch.save(model, tmp_path / "start.model")
    train, test = crystals(10, key="REF_virials"), crystals(4, seed=1)
    del train[0].info["REF_virials"]
    train[1].pbc = False
    how = {"epochs": 16, "threads": 1, "learning_rate": 0.03, "batch_size": 3, "loss": loss, "divergence_factor": 1e9}
    found = {}
    for weight in (0.0, 2000.0 if loss == "absolute" else 2e5):
        options = TrainOptions(**how, stress_weight=weight, layers="fast" if weight else "auto")
        result = fine_tune(tmp_path / "start.model", train, test, options, tmp_path / f"{weight:g}")
        found[bool(weight)] = stress_error(result.model_path, test)
        if weight:
            assert any("Stresses of 8 of 10 structures are fitted" in line for line in result.labels)
    assert found[True] < 0.5 * found[False]


def test_a_stress_weight_without_stresses_is_refused(frames):
    with pytest.raises(SelectronError, match="no structure of the training set has a stress"):
        read_sets(frames, None, TrainOptions(stress_weight=10.0))


def test_a_virial_is_mace_torchs():
    """What mace-torch returns as virials is read as what it returns as stress, which is (1/V) dE/dε by central differences."""
    model = model_of("L=1")
    crystal = next(atoms for atoms in structures() if atoms.pbc.all())
    said = model(stock_batch(model, [crystal]), compute_force=True, compute_virials=True, compute_stress=True)
    given = crystal.copy()
    given.info |= {"REF_energy": 0.0, "REF_virials": said["virials"][0].detach().numpy()}
    given.arrays["REF_forces"] = np.zeros((len(crystal), 3))
    stress = read_labels(given, LabelSource("REF_energy", "REF_forces", "REF_virials"), index=0).stress
    np.testing.assert_allclose(stress, said["stress"][0].detach().numpy(), rtol=1e-9)
    strain, energies = np.array([[1.0, 0.5, 0.0], [0.5, 0.0, 0.0], [0.0, 0.0, 0.0]]), []
    for step in (1e-5, -1e-5):
        moved = crystal.copy()
        moved.set_cell(crystal.cell.array @ (np.eye(3) + step * strain), scale_atoms=True)
        energies.append(float(model(stock_batch(model, [moved]), compute_force=False)["energy"]))
    slope = (energies[0] - energies[1]) / 2e-5 / crystal.cell.volume
    assert slope == pytest.approx((stress * strain).sum(), rel=1e-5)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["--energy_key=dft_energy"], r"--energy_key is not handed to mace-torch: .*--energy-key"),
        (["--forces_key", "f"], "--forces_key is not"),
        (["--virials_k=v"], "selectron's own keys"),
        (["--E0s=average"], "atom_energies_eV"),
        (["--train_file=x.xyz"], "what was read from the training"),
        (["--name", "mine"], "finds them"),
        (["--loss=huber"], "counts a label that is missing as 0"),
        (["--loss", "virials"], r"--loss=virials is not .*stress_weight"),
        (["--loss=ef"], "squares is that loss"),
        (["--stage_two"], "stage_two_start"),
        (["--foundation_mod=x"], "prepared by selectron"),
        (["--config=mine.yaml"], "write them out"),
    ],
)
def test_arguments_that_would_train_on_something_else_are_refused(extra, said):
    with pytest.raises(ValidationError, match=said):
        TrainOptions(extra=extra)


def test_mace_torch_knows_the_arguments_that_are_refused():
    """So that a new version's names are noticed."""
    parser = import_module("mace.tools").build_default_arg_parser()
    known = {name.lstrip("-") for action in parser._actions for name in action.option_strings}
    refused = import_module("selectron.training.extra")._REFUSED.keys() | {"energy_key", "forces_key", "loss"}
    assert refused - known <= {"config"}


def test_other_arguments_are_handed_over():
    extra = [
        "--max_grad",
        "--lr_factor=0.5",
        "--loss=l1l2energyforces",
        "--multiheads_finetuning=True",
        "--beta",
        "0.8",
    ]
    assert TrainOptions(extra=extra).extra == extra


@pytest.mark.parametrize("extra", [["--loss=universal"], ["--multiheads_finetuning=True"]])
def test_a_loss_that_leaves_weights_out_is_refused_where_there_are_weights(frames, extra):
    weighed = [reference(a, config_weight=1.0 + i) for i, a in enumerate(frames)]
    with pytest.raises(SelectronError, match=r"universal.* leaves out the weights"):
        read_sets(weighed, None, TrainOptions(extra=extra))
    read_sets(weighed, None, TrainOptions(extra=extra, weights="equal"))
    read_sets([reference(a) for a in frames], None, TrainOptions(extra=extra))


def test_two_levels_of_theory_in_one_set_are_told():
    with Pool.open(["embedded"]) as pool:
        own = [pool[i] for i in range(40)]
    mixed = [reference(atoms, offset_eV=500.0 * (i % 2)) for i, atoms in enumerate(own)]
    assert not [line for line in read_sets(own, None, TrainOptions()).said if "levels of theory" in line]
    assert [line for line in read_sets(mixed, None, TrainOptions()).said if "levels of theory in one set?" in line]
