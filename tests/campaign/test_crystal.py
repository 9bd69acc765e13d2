"""Periodic systems from start to export: cells, periodicity and stress stay with every structure, a kill costs nothing."""

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import read, write
from quick_campaign import begin_in, prepare
from test_durability import assert_as_undisturbed, kill_until_done

from selectron.campaign.export import export_campaign
from selectron.campaign.history import read_campaign
from small_maces import small_mace

SAMPLING = {
    "starts": ["crystal.extxyz"],
    "method": "skmd",
    "particles": 3,
    "temperature_K": 600.0,
    "iterations": 6,
    "initial": {"burn_in_steps": 10, "snapshot_every": 5},
    "stopping": [{"kind": "fixed-steps", "steps": 10}],
    "checkpoint_every": 15,
}
COORDINATES = {
    "sampling": {**SAMPLING, "kernel": {"alignment": "minimum-image"}, "descriptor": {"name": "coordinates"}}
}


def copper(count, seed):
    """Labelled triclinic cells of eight atoms, strained and rattled; every other one with a vacancy."""
    random = np.random.default_rng(seed)
    frames = []
    for i in range(count):
        atoms = bulk("Cu", "fcc", a=3.59) * (2, 2, 2)
        strain = random.uniform(-0.03, 0.03, (3, 3))
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + (strain + strain.T) / 2), scale_atoms=True)
        atoms.positions += random.normal(0, 0.05, atoms.positions.shape)
        if i % 2:
            del atoms[0]
        atoms.calc = EMT()
        atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
        frames.append(atoms)
    return frames


def files_of(folder, **changes):
    """The YAML of a campaign on copper in ``folder``, with its files."""
    import torch

    folder.mkdir()
    model = small_mace(hidden_irreps="6x0e", num_elements=1, atomic_numbers=[29], atomic_energies=np.array([0.0]))
    torch.save(model, folder / "made.model")
    path = prepare(folder, folder / "made.model", pool=None, features={"name": "joint-ntk", "dim": 16}, **changes)
    for seed, name in enumerate(("train", "test", "validation")):
        write(folder / f"{name}.extxyz", copper(4, seed))
    write(folder / "crystal.extxyz", bulk("Cu", "fcc", a=3.59) * (2, 2, 2))
    return path


def assert_labels_hold(atoms):
    """Energy, forces and stress are those of effective-medium theory for exactly this cell."""
    assert atoms.pbc.all()
    again = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc, calculator=EMT())
    assert atoms.info["REF_energy"] == pytest.approx(again.get_potential_energy(), abs=1e-5)
    np.testing.assert_allclose(atoms.arrays["REF_forces"], again.get_forces(), atol=1e-5)
    np.testing.assert_allclose(atoms.info["REF_stress"], again.get_stress(), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"sampling": SAMPLING}, COORDINATES], ids=["node features", "minimum image"])
def test_cells_and_stress_survive_and_a_kill_while_sampling_changes_nothing(server, tmp_path, changes):
    yaml_path = files_of(tmp_path / "files", **changes)
    whole, folder = tmp_path / "whole", tmp_path / "run"
    begin_in(yaml_path, whole)
    server.start(whole)
    assert server.wait() == 0, Path(f"{whole}.said").read_text()
    begin_in(yaml_path, folder)
    kills, _ = kill_until_done(server, folder, seed=5, longest_s=1.5)
    assert kills >= 2
    assert_as_undisturbed(whole, folder, kills)

    record = read_campaign(folder)
    cell = (bulk("Cu", "fcc", a=3.59) * (2, 2, 2)).cell
    assert [arm.labels for arm in record.arms] == [6, 6]
    for arm in record.arms:
        assert all(one.sampled.candidates == one.sampled.acquired > 0 for one in arm.rounds)
        for pick in (pick for one in arm.rounds for pick in one.picks):
            np.testing.assert_allclose(pick.structure.cell, cell, atol=1e-7)
            assert pick.structure.pbc.all()
            assert "stress" in pick.structure.calc.results

    export_campaign(record, tmp_path / "exported")
    for name, count in {"train": 10, "test": 4, "validation": 4}.items():
        exported = read(tmp_path / "exported" / f"{name}.extxyz", ":")
        assert len(exported) == count
        for atoms in exported:
            assert_labels_hold(atoms)
