"""What labels count for in the loss: by the file, through mace-torch's trainer, in all terms."""

import json
from importlib import import_module

import numpy as np
import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read

from selectron.errors import SelectronError
from selectron.structures import Pool
from selectron.training import mace_runner
from selectron.training.evaluate import errors
from selectron.training.fine_tune import fine_tune
from selectron.training.labels import labelled, write_for_mace
from selectron.training.options import TrainOptions

QUICK = {"epochs": 12, "threads": 1, "references": "keep", "learning_rate": 0.005, "ema": None, "batch_size": 2}


@pytest.fixture(scope="module")
def structures():
    with Pool.open(["embedded"]) as pool:
        return [pool[i] for i in range(8)]


def relabelled(atoms, energy_eV=0.0, force_factor=1.0, weight=None):
    copy = atoms.copy()
    energy = atoms.get_potential_energy() + energy_eV
    copy.calc = SinglePointCalculator(copy, energy=energy, forces=force_factor * atoms.get_forces())
    if weight is not None:
        copy.info["config_weight"] = weight
    return copy


def test_weights_are_read_and_written_under_mace_torchs_name(structures, tmp_path):
    found = labelled([relabelled(structures[0], weight=2.5), relabelled(structures[1])])
    assert [one.weight for one in found] == [2.5, 1.0]
    write_for_mace(tmp_path / "train.xyz", found)
    data = import_module("mace.data")
    _, configs = data.load_from_xyz(
        str(tmp_path / "train.xyz"), key_specification=data.KeySpecification.from_defaults(), config_type_weights={}
    )
    assert [one.weight for one in configs] == [2.5, 1.0]


@pytest.mark.parametrize("weight", [-1.0, np.nan, "heavy"])
def test_what_is_no_weight_is_one_sentence(structures, weight):
    with pytest.raises(SelectronError, match="Structure 1 of the training set has the config_weight"):
        labelled([structures[0], relabelled(structures[1], weight=weight)])


def test_the_force_term_counts_weights_and_equal_weights_change_nothing(monkeypatch):
    losses = import_module("mace.modules.loss")
    original = losses.mean_normed_error_forces
    monkeypatch.setattr(losses, "mean_normed_error_forces", original)
    mace_runner._weigh_forces()
    generator = torch.Generator().manual_seed(0)
    forces, predicted = torch.randn(2, 7, 3, generator=generator)

    class Batch(dict):
        ptr, weight, forces_weight = torch.tensor([0, 3, 7]), torch.ones(2), torch.ones(2)

    batch = Batch(forces=forces)
    prediction = {"forces": predicted}
    assert torch.equal(losses.mean_normed_error_forces(batch, prediction), original(batch, prediction))
    batch.weight = torch.tensor([2.0, 0.5])
    lengths = (forces - predicted).norm(dim=1)
    expected = (2.0 * lengths[:3].sum() + 0.5 * lengths[3:].sum()) / 7
    assert losses.mean_normed_error_forces(batch, prediction) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("loss", ["absolute", pytest.param("squares", marks=pytest.mark.slow)])
def test_of_contradicting_labels_the_heavier_ones_are_learnt(structures, tmp_path, loss):
    """Each structure twice, with energies off by ±0.5 eV and forces of 1.5 and 0.5 times the truth."""

    def said(place, weight=None):
        sign = 1 - 2 * place
        return [relabelled(atoms, 0.5 * sign, 1.0 + 0.5 * sign, weight) for atoms in structures]

    options = TrainOptions(**QUICK, loss=loss)
    found = {}
    for heavy in (0, 1):
        train = [*said(heavy, 9.0), *said(1 - heavy, 0.2)]
        result = fine_tune("embedded", train, structures, options, tmp_path / str(heavy))
        found[heavy] = [errors(result.model_path, labelled(said(place))) for place in (0, 1)]
        # what judges is not weighted
        assert all("config_weight" not in a.info for a in read(tmp_path / str(heavy) / "run" / "valid.xyz", ":"))
    for place in (0, 1):
        assert found[place][place].energy_mae_meV_atom < found[1 - place][place].energy_mae_meV_atom
        assert found[place][place].force_mae < 0.95 * found[1 - place][place].force_mae


@pytest.mark.slow
def test_equal_weights_where_that_is_asked_for(structures, tmp_path):
    weighed = [relabelled(atoms, weight=1.0 + place) for place, atoms in enumerate(structures)]
    options = TrainOptions(**QUICK | {"epochs": 1, "learning_rate": 0.001})
    runs = {}
    for name, train, changes in [
        ("given", weighed, {}),
        ("equal", weighed, {"weights": "equal"}),
        ("plain", structures, {}),
    ]:
        result = fine_tune("embedded", train, structures, options.model_copy(update=changes), tmp_path / name)
        runs[name] = [(one.train_loss, one.valid_loss) for one in result.history[1:]]
        settings = json.loads((tmp_path / name / "run" / "settings.json").read_text())
        assert settings["weighted"] is (name == "given")
    assert runs["equal"] == runs["plain"] != runs["given"]


def test_labels_of_no_weight_at_all_teach_nothing(structures, tmp_path):
    with pytest.raises(SelectronError, match="All labels have the weight 0"):
        fine_tune("embedded", [relabelled(a, weight=0) for a in structures], structures, TrainOptions(), tmp_path)
