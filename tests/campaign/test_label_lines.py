"""Which labels of its files a campaign reads is said, and isolated atoms among them are neither candidates nor tests."""

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from quick_campaign import begin_in, prepare, run_quickly

from selectron.campaign.context import Unwatched
from selectron.campaign.history import read_campaign
from selectron.errors import SelectronError


class Heard(Unwatched):
    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


def test_the_labels_that_are_read_are_said_and_isolated_atoms_are_no_candidates(tmp_path, tiny_model):
    yaml_path = prepare(tmp_path, tiny_model, budget={"labels": 3, "per_round": 3}, baseline=None)
    alone = Atoms("H", cell=[15, 15, 15], pbc=True)
    alone.calc = SinglePointCalculator(alone, energy=1.0, forces=np.zeros((1, 3)))
    for name in ("pool", "test"):
        write(tmp_path / f"{name}.extxyz", [*read(tmp_path / f"{name}.extxyz", ":"), alone])
    begin_in(yaml_path, tmp_path / "run")
    heard = Heard()
    run_quickly(tmp_path / "run", heard)
    assert (
        sum(line.startswith("Labels of the test set: 6 structures, energy and forces, ") for line in heard.lines) == 1
    )
    facts = read_campaign(tmp_path / "run").facts
    assert (facts["candidates"], facts["sizes"]["test"], facts["quarantined"]) == (30, 6, 2)


def test_a_test_set_with_labels_of_two_sources_is_refused(tmp_path, tiny_model):
    yaml_path = prepare(tmp_path, tiny_model)
    structures = read(tmp_path / "test.extxyz", ":")
    other = structures[0]
    other.info["REF_energy"], other.arrays["REF_forces"] = other.get_potential_energy() - 500.0, other.get_forces()
    other.calc = None
    write(tmp_path / "test.extxyz", structures)
    begin_in(yaml_path, tmp_path / "run")
    with pytest.raises(SelectronError, match=r"test set has labels of two sources.*REF_energy in 1"):
        run_quickly(tmp_path / "run")
