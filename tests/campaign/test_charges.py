"""Charge and multiplicity through a campaign: from the pool's spelling to labels, status and report."""

import numpy as np
import pytest
from ase import Atoms
from ase.io import write
from quick_campaign import begin_in, prepare, rattled, run_quickly
from rich.console import Console

from selectron.campaign.context import Unwatched, bare
from selectron.campaign.history import read_campaign
from selectron.campaign.labelling import states_line
from selectron.cli.status import summarise
from selectron.oracles import OracleFailure, make_oracle, parse_oracle
from selectron.report.campaign_page import write_campaign_report


class Heard(Unwatched):
    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


def test_labels_are_for_the_charges_that_the_pool_states(tmp_path, tiny_model, capsys):
    yaml_path = prepare(
        tmp_path, tiny_model, oracle={"kind": "gfn2-xtb"}, baseline=None, budget={"labels": 6, "per_round": 6}
    )
    pool = rattled(6, 1)
    for atoms in pool[:3]:
        atoms.info |= {"total_charge": 1, "mult": "2"}
    neutral = pool[0].copy()
    neutral.info = {"charge": 0}
    write(tmp_path / "pool.extxyz", [*pool, neutral])
    begin_in(yaml_path, tmp_path / "run")
    heard = Heard()
    run_quickly(tmp_path / "run", heard)
    assert any(
        "1 structure of the data differs from an earlier one in charge or multiplicity alone" in line
        for line in heard.lines
    )
    record = read_campaign(tmp_path / "run")
    picks = [pick for one in record.selected.rounds for pick in one.picks]
    assert len(picks) == 6
    oracle = make_oracle(parse_oracle("gfn2-xtb"))
    for pick in picks:
        stated = pick.source.index < 3
        assert (pick.state, pick.assumed) == (((1, 2), False) if stated else ((0, 1), True))
        assert (pick.structure.info["charge"], pick.structure.info["multiplicity"]) == pick.state
        bare_atoms = Atoms(
            pick.structure.numbers, pick.structure.positions, info={"charge": int(stated), "spin": 1 + stated}
        )
        expected = oracle.label(bare_atoms)
        assert pick.structure.get_potential_energy() == pytest.approx(expected.energy_eV, abs=1e-5)
    said = "Charge and multiplicity: 0 1 for 3 labels (assumed), 1 2 for 3."
    assert states_line(picks) in (said, "Charge and multiplicity: 1 2 for 3 labels, 0 1 for 3 (assumed).")
    summarise(record, Console(width=300))
    assert states_line(picks) in capsys.readouterr().out
    write_campaign_report(record, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert states_line(picks) in page
    assert page.count("charge 1, multiplicity 2") == 3


def test_what_cannot_be_read_is_kept_for_the_oracle_to_refuse():
    atoms = Atoms("O2", [[0, 0, 0], [0, 0, 1.2]])
    for info, says in [
        ({"charge": 0, "total_charge": -2}, "contradict"),
        ({"q": -2}, "q is -2"),
        ({"spin": "up"}, "spin is"),
    ]:
        atoms.info = {**info, "energy": 1.0, "source": "x"}
        kept = bare(atoms)
        assert kept.info == info
        with pytest.raises(OracleFailure, match=says):
            parse_oracle("gfn2-xtb").state(kept)
    atoms.info = {"net_charge": -2.0, "smiles": "[O-][O-]", "mulliken_charges": np.array([-0.9, -1.1])}
    assert bare(atoms).info == {"smiles": "[O-][O-]", "net_charge": -2.0, "charge": -2}


def test_campaigns_whose_oracle_sees_no_electrons_say_nothing():
    assert states_line([]) is None
