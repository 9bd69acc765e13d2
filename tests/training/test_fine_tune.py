"""Fine-tuning with mace-torch's trainer in another process, on real GFN2-xTB labels."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read

from selectron.embedded import model_path
from selectron.errors import SelectronError
from selectron.potentials import load_potential
from selectron.potentials.mace_files import load_mace
from selectron.structures import Pool, write_extxyz
from selectron.training.evaluate import errors
from selectron.training.fine_tune import OUTPUT, TrainingFailed, fine_tune
from selectron.training.options import TrainOptions
from small_maces import small_mace, stock_evaluation

WEIGHTS = {"energy_weight": 40.0, "forces_weight": 1000.0}
QUICK = {"epochs": 4, "threads": 1, "references": "keep", "learning_rate": 0.003, **WEIGHTS}


@pytest.fixture(scope="module")
def reactive():
    """Reactive structures that the embedded model does not know, with GFN2-xTB labels."""
    with Pool.open(["embedded"]) as pool:
        return [pool[i] for i in range(44)]


@pytest.fixture(scope="module")
def full(reactive, tmp_path_factory):
    seen = []
    folder = tmp_path_factory.mktemp("full")
    result = fine_tune("embedded", reactive[:24], reactive[24:], TrainOptions(**QUICK), folder, on_progress=seen.append)
    return result, seen


@pytest.fixture(scope="module")
def lora(reactive, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    options = TrainOptions(**QUICK | {"method": "lora", "rank": 2, "stage_two_start": 2, "learning_rate": 0.01})
    return fine_tune("embedded", reactive[:24], reactive[24:], options, folder)


def stopped_at_once(folder, train, valid=None, **options):
    """What a training leaves behind that ran out of time before its first step."""
    with pytest.raises(TrainingFailed, match=r"longer than 0\.01 s"):
        fine_tune("embedded", train, valid, TrainOptions(**QUICK | {"time_limit_s": 0.01} | options), folder)
    assert not (Path(folder) / OUTPUT).exists()
    return Path(folder) / "run"


def test_errors_fall_on_structures_that_were_held_out(full):
    result, seen = full
    assert result.after.force_rmse < 0.97 * result.before.force_rmse
    assert result.before == result.untouched
    assert [one.epoch for one in seen] == [-1, 0, 1, 2, 3]
    assert seen == result.history
    assert seen[-1].train_loss < seen[1].train_loss
    assert (result.n_train, result.n_valid) == (24, 20)
    assert result.core_s > 0


def test_what_mace_torch_validates_is_what_we_measure(full):
    result, _ = full
    first, kept = result.history[0], result.history[result.kept_epoch + 1]
    for epoch, found in ((first, result.before), (kept, result.after)):
        assert epoch.force_rmse == pytest.approx(found.force_rmse, rel=1e-3)
        assert epoch.force_mae == pytest.approx(found.force_mae, rel=1e-3)
        assert epoch.energy_rmse_meV_atom == pytest.approx(found.energy_rmse_meV_atom, abs=0.2)


def pulled_away(reactive, factor):
    """Structures whose force labels pull the model away from the truth, so that its validation loss rises."""
    wrong = [atoms.copy() for atoms in reactive[:12]]
    for copy, atoms in zip(wrong, reactive, strict=False):
        copy.calc = SinglePointCalculator(copy, energy=atoms.get_potential_energy(), forces=factor * atoms.get_forces())
    return wrong


@pytest.mark.parametrize(("keep", "ema", "patience"), [("last", 0.9, None), ("best", None, None), ("last", None, 1)])
def test_the_model_is_that_of_the_epoch_that_is_asked_for(reactive, tmp_path, keep, ema, patience):
    options = TrainOptions(**QUICK | {"epochs": 3, "ema": ema, "keep": keep, "patience": patience})
    result = fine_tune("embedded", pulled_away(reactive, -1), reactive[24:], options, tmp_path)
    losses = [one.valid_loss for one in result.history[1:]]
    assert min(losses) == losses[0] < losses[-1] < 1.1 * losses[0]
    assert len(losses) == (2 if patience else 3)
    assert result.kept_epoch == (len(losses) - 1 if keep == "last" else 0)
    assert result.warnings == []
    kept, other = (result.history[epoch].force_mae for epoch in ((-1, 1) if keep == "last" else (1, -1)))
    assert abs(kept / other - 1) > 0.005
    assert result.after.force_mae == pytest.approx(kept, rel=1e-3)


def test_a_last_epoch_whose_loss_rose_by_more_than_a_tenth_is_not_kept(reactive, tmp_path):
    options = TrainOptions(**QUICK | {"epochs": 3, "divergence_factor": 100.0, "ema": None, "final_rate": 1.0})
    result = fine_tune("embedded", pulled_away(reactive, -3), reactive[24:], options, tmp_path)
    losses = [one.valid_loss for one in result.history[1:]]
    assert losses[-1] > 1.1 * min(losses)
    assert result.kept_epoch == np.argmin(losses) < 2
    assert result.after.force_rmse == pytest.approx(result.history[result.kept_epoch + 1].force_rmse, rel=1e-3)
    (line,) = result.warnings
    assert f"rose by {100 * (losses[-1] / min(losses) - 1):.0f} % after epoch {result.kept_epoch + 1} of 3" in line


def test_the_loss_counts_absolute_errors_of_energies_per_atom_and_lengths_of_force_errors(full, reactive):
    result, _ = full
    potential, held = load_potential("embedded", dtype="float64"), reactive[24:]
    found = [potential.evaluate(potential.batch([atoms])) for atoms in held]
    energies = [
        abs(float(one.energies[0]) - atoms.get_potential_energy()) / len(atoms)
        for one, atoms in zip(found, held, strict=True)
    ]
    lengths = np.concatenate(
        [
            np.linalg.norm(one.forces.numpy() - atoms.get_forces(), axis=1)
            for one, atoms in zip(found, held, strict=True)
        ]
    )
    expected = WEIGHTS["energy_weight"] * np.mean(energies) + WEIGHTS["forces_weight"] * np.mean(lengths)
    assert result.history[0].valid_loss == pytest.approx(expected / len(held), rel=1e-4)  # mace-torch divides once more


def test_the_new_file_is_a_plain_mace_torch_model_of_the_same_kind(full, reactive):
    result, _ = full
    model, before = load_mace(result.model_path), load_mace(model_path())
    assert type(model) is type(before)
    assert {k: (v.shape, v.dtype) for k, v in model.state_dict().items()} == {
        k: (v.shape, v.dtype) for k, v in before.state_dict().items()
    }
    assert torch.equal(model.atomic_energies_fn.atomic_energies, before.atomic_energies_fn.atomic_energies)
    ours = errors(load_potential(result.model_path, dtype="float64"), reactive[24:])
    assert ours.force_rmse == pytest.approx(result.after.force_rmse)
    stock = stock_evaluation(model, reactive[24:26])["energy"].numpy()
    labels = [atoms.get_potential_energy() for atoms in reactive[24:26]]
    np.testing.assert_allclose(stock - labels, ours.energy_errors_eV[:2], atol=2e-3)


def test_lora_changes_linear_layers_by_low_rank_and_nothing_else(lora):
    from e3nn import o3

    after, before = load_mace(lora.model_path), load_mace(model_path())
    assert not [name for name, _ in after.named_parameters() if "lora" in name]
    ranks, dense = {}, set()
    for name, layer in before.named_modules():
        other = after.get_submodule(name)
        if isinstance(layer, o3.Linear):
            for one, two in zip(layer.weight_views(), other.weight_views(), strict=True):
                ranks[f"{name}.weight"] = int(torch.linalg.matrix_rank((two - one).double(), rtol=1e-4))
        elif type(layer).__name__ == "_Layer":
            ranks[f"{name}.weight"] = int(torch.linalg.matrix_rank((other.weight - layer.weight).double(), rtol=1e-4))
            dense.add(name)
    assert dense
    assert max(ranks.values()) == 2
    changed = {k for k, v in after.state_dict().items() if not torch.equal(v, before.state_dict()[k])}
    assert changed
    assert changed <= ranks.keys()


def test_two_stages_are_seen_and_the_last_is_kept(lora):
    assert [one.stage for one in lora.history] == [1, 1, 1, 2, 2]
    assert lora.kept_epoch in (2, 3)
    assert lora.after.force_rmse < lora.before.force_rmse


def test_a_training_that_diverges_keeps_what_was_there(reactive, tmp_path):
    (tmp_path / OUTPUT).write_bytes(b"the previous model")
    options = TrainOptions(**QUICK | {"learning_rate": 1e6, "clip_grad": None})
    with pytest.raises(TrainingFailed, match=r"diverged.*is kept"):
        fine_tune("embedded", reactive[:12], reactive[24:], options, tmp_path)
    assert (tmp_path / OUTPUT).read_bytes() == b"the previous model"
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".model"] == [OUTPUT]


def trainers_of(process):
    """Children of a process, by number."""
    return [int(p) for p in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_a_killed_trainer_is_a_failure_with_its_reason(reactive, tmp_path):
    def kill(epoch):
        for child in trainers_of(os.getpid()):
            if "mace_runner" in Path(f"/proc/{child}/cmdline").read_text():
                os.kill(child, signal.SIGKILL)

    with pytest.raises(TrainingFailed, match="signal 9"):
        fine_tune("embedded", reactive[:12], reactive[12:24], TrainOptions(**QUICK), tmp_path, on_progress=kill)
    assert not (tmp_path / OUTPUT).exists()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_the_trainer_ends_when_its_parent_is_killed_and_nothing_looks_finished(tmp_path):
    code = (
        "from selectron.structures import Pool; from selectron.training.fine_tune import fine_tune; "
        "from selectron.training.options import TrainOptions; pool = Pool.open(['embedded']); "
        "fine_tune('embedded', [pool[i] for i in range(30)], None, TrainOptions(epochs=2000, threads=1), 'work')"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    deadline = time.monotonic() + 200
    while not list(tmp_path.glob("work/run/results/*")) and time.monotonic() < deadline:
        time.sleep(0.2)
    (trainer,) = trainers_of(parent.pid)
    parent.kill()
    parent.wait()
    while Path(f"/proc/{trainer}").exists() and time.monotonic() < deadline:
        if Path(f"/proc/{trainer}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            break  # ended, and nobody there to bury it
        time.sleep(0.2)
    else:
        assert not Path(f"/proc/{trainer}").exists()
    assert not (tmp_path / "work" / OUTPUT).exists()


def test_old_data_joins_and_its_energies_move_with_the_references_where_it_has_the_models_level(reactive, tmp_path):
    write_extxyz(tmp_path / "old.extxyz", reactive[30:40])
    common = {"replay": [str(tmp_path / "old.extxyz")], "replay_count": 6}
    plain = read(stopped_at_once(tmp_path / "a", reactive[:12], reactive[12:20], **common) / "train.xyz", ":")
    assert len(plain) == 18
    assert [len(atoms) for atoms in plain[:12]] == [len(atoms) for atoms in reactive[:12]]
    old = {round(atoms.get_potential_energy(), 6) for atoms in reactive[30:40]}
    assert {round(atoms.info["REF_energy"], 6) for atoms in plain[12:]} <= old
    zero = {"H": 0.0, "C": 0.0, "N": 0.0, "O": 0.0}
    shifted = {
        "references": "atoms",
        "atom_energies_eV": {"H": 0.5, "C": -1.0, "N": 0.0, "O": 2.0},
        "model_atom_energies_eV": zero,
        "replay_level": "model",
    }
    run = stopped_at_once(tmp_path / "b", reactive[:12], reactive[12:20], **common, **shifted)
    moved = read(run / "train.xyz", ":")
    by_element = {1: 0.5, 6: -1.0, 7: 0.0, 8: 2.0}
    for before, after in zip(plain[12:], moved[12:], strict=True):
        expected = sum(by_element[int(z)] for z in before.numbers)
        assert after.info["REF_energy"] - before.info["REF_energy"] == pytest.approx(expected, abs=1e-6)
    start, base = load_mace(run / "start.model"), load_mace(model_path())
    difference = start.atomic_energies_fn.atomic_energies - base.atomic_energies_fn.atomic_energies
    np.testing.assert_allclose(difference.squeeze().numpy(), [0.5, -1.0, 0.0, 2.0], atol=1e-5)


def test_isolated_atoms_give_references_and_are_not_trained_on(reactive, tmp_path):
    energies = {"H": -10.0, "C": -50.0, "N": -70.0, "O": -105.0}
    alone = [Atoms(symbol) for symbol in energies]
    for atoms, energy in zip(alone, energies.values(), strict=True):
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=np.zeros((1, 3)))
    train = [*alone, *reactive[:8]]
    run = stopped_at_once(tmp_path, train, reactive[8:12], references="atoms")
    assert min(len(atoms) for atoms in read(run / "train.xyz", ":")) > 1
    references = load_mace(run / "start.model").atomic_energies_fn.atomic_energies.squeeze()
    np.testing.assert_allclose(references.numpy(), list(energies.values()), rtol=1e-6)
    with pytest.raises(SelectronError, match="isolated-atom energy of O is missing"):
        fine_tune("embedded", train[:3] + reactive[:8], None, TrainOptions(**QUICK | {"references": "atoms"}), tmp_path)


def test_a_validation_set_is_set_aside_where_none_is_given(reactive, tmp_path):
    run = stopped_at_once(tmp_path, reactive[:10], None, validation_fraction=0.3, seed=4)
    train, valid = read(run / "train.xyz", ":"), read(run / "valid.xyz", ":")
    assert (len(train), len(valid)) == (7, 3)
    energies = sorted(atoms.info["REF_energy"] for atoms in [*train, *valid])
    assert energies == pytest.approx(sorted(atoms.get_potential_energy() for atoms in reactive[:10]))


def test_the_batch_size_leaves_no_structure_out_that_it_need_not(reactive, tmp_path):
    """mace-torch drops a last batch that is not full: a training set smaller than a batch would teach nothing."""
    settings = (stopped_at_once(tmp_path, reactive[:7], reactive[7:10]) / "settings.json").read_text()
    assert "--batch_size=7" in settings
    settings = (stopped_at_once(tmp_path, reactive[:21], reactive[21:24]) / "settings.json").read_text()
    assert "--batch_size=7" in settings


def test_what_cannot_be_trained_is_refused_in_a_sentence(reactive, tmp_path, tiny_model):
    options = TrainOptions(**QUICK)
    bare = Atoms("CO", [[0, 0, 0], [1.1, 0, 0]])
    energy_only = bare.copy()
    energy_only.calc = SinglePointCalculator(energy_only, energy=-1.0)
    unknown = Atoms("CS", [[0, 0, 0], [1.5, 0, 0]])
    unknown.calc = SinglePointCalculator(unknown, energy=-1.0, forces=np.zeros((2, 3)))
    endless = bare.copy()
    endless.calc = SinglePointCalculator(endless, energy=float("nan"), forces=np.zeros((2, 3)))
    for structures, sentence in (
        ([bare], "Structure 0 of the training set has no energy and no forces"),
        ([reactive[0], energy_only], "Structure 1 of the training set has no forces"),
        ([reactive[0], unknown], "does not know S"),
        ([reactive[0], endless], "Structure 1 .* not a finite number"),
        ([reactive[0]], "at least two structures"),
        ([], "at least two structures"),
    ):
        with pytest.raises(SelectronError, match=sentence):
            fine_tune("embedded", structures, None, options, tmp_path)
    with pytest.raises(SelectronError, match="does not know N"):
        fine_tune(tiny_model, reactive[:8], reactive[8:12], options, tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_interpreter_that_cannot_train_is_named(reactive, tmp_path):
    missing = TrainOptions(**QUICK, interpreter="/nowhere/python")
    with pytest.raises(SelectronError, match=r"/nowhere/python .* cannot be started"):
        fine_tune("embedded", reactive[:4], reactive[4:8], missing, tmp_path)
    useless = TrainOptions(**QUICK, interpreter="false")
    with pytest.raises(TrainingFailed, match="exit code 1"):
        fine_tune("embedded", reactive[:4], reactive[4:8], useless, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"threads": 2}, {"method": "lora"}, {"dtype": "float64", "ema": 0.9}])
def test_the_same_seed_gives_the_same_model_bit_for_bit(reactive, tmp_path, options):
    made = [
        fine_tune(
            "embedded", reactive[:12], reactive[12:20], TrainOptions(**QUICK | {"epochs": 2} | options), tmp_path / name
        )
        for name in ("one", "two")
    ]
    one, two = (load_mace(result.model_path).state_dict() for result in made)
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.slow
def test_another_level_of_theory_is_corrected_before_the_training_and_stays_in_the_model(reactive, tmp_path):
    shift = {1: -0.4, 6: 1.1, 7: 1.5, 8: -0.9}
    moved = []
    for atoms in reactive:
        copy = atoms.copy()
        energy = atoms.get_potential_energy() + sum(shift[int(z)] for z in atoms.numbers)
        copy.calc = SinglePointCalculator(copy, energy=energy, forces=atoms.get_forces())
        moved.append(copy)
    result = fine_tune("embedded", moved[:24], moved[24:], TrainOptions(**QUICK | {"references": "auto"}), tmp_path)
    assert result.untouched.energy_mae_meV_atom > 3 * result.before.energy_mae_meV_atom
    assert result.after.energy_mae_meV_atom < 1.5 * result.before.energy_mae_meV_atom
    assert any("another level of theory" in line for line in result.warnings)
    assert result.history[0].energy_mae_meV_atom == pytest.approx(result.before.energy_mae_meV_atom, abs=0.3)
    references = load_mace(result.model_path).atomic_energies_fn.atomic_energies.squeeze()
    base = load_mace(model_path()).atomic_energies_fn.atomic_energies.squeeze()
    np.testing.assert_allclose((references - base).numpy(), result.references.shift_eV, atol=1e-4)


@pytest.mark.slow
def test_one_head_of_a_model_with_several_is_trained(tmp_path):
    torch.save(small_mace(heads=["first", "second"]), tmp_path / "two.model")
    random = np.random.default_rng(0)
    train = []
    for _ in range(12):
        atoms = Atoms("OCH", [[0, 0, 0], [1.2, 0, 0], [1.8, 0.9, 0]])
        atoms.positions += random.normal(0, 0.1, (3, 3))
        atoms.calc = SinglePointCalculator(atoms, energy=-9.0 + random.normal(0, 0.1), forces=np.zeros((3, 3)))
        train.append(atoms)
    options = TrainOptions(**QUICK, head="second", patience=1)
    result = fine_tune(tmp_path / "two.model", train, None, options, tmp_path)
    assert load_potential(result.model_path).heads == ["second"]
    assert result.history[0].force_rmse == pytest.approx(result.before.force_rmse, rel=1e-5)
