"""``selectron label`` as a person runs it."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write

from selectron.oracles import LabelStore, make_oracle, parse_oracle

SELECTRON = [sys.executable, "-c", "from selectron.cli.app import main; main()"]
STRANGE = Path(__file__).parents[1] / "oracles"


@pytest.fixture
def run(tmp_path, monkeypatch, command_line):
    """Runs a command line in an empty folder; gives exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    return command_line


def pool():
    structures = [molecule(name) for name in ("H2O", "CH4", "CH3", "NH3", "H2O")]
    for i, atoms in enumerate(structures):
        atoms.info = {"number": i, "energy": -999.0}
        atoms.arrays.pop("initial_magmoms", None)  # ASE's own molecules state their multiplicity
    return structures


def test_labels_failures_and_reuse(run):
    write("pool.extxyz", pool())
    code, out, err = run("label pool.extxyz --oracle gfn2-xtb -o out.extxyz --workers 2")
    assert code == 0
    assert "gfn2-xtb: 3 new, 1 reused, 1 failed" in out
    assert "labels by gfn2-xtb: 5/5 done" in err
    labelled = read("out.extxyz", ":")
    assert [atoms.info["number"] for atoms in labelled] == [0, 1, 3, 4]
    oracle = make_oracle(parse_oracle("gfn2-xtb"))
    for atoms in labelled:
        expected = oracle.label(atoms)
        assert atoms.get_potential_energy() == pytest.approx(expected.energy_eV, abs=1e-4)
        np.testing.assert_allclose(atoms.get_forces(), expected.forces, atol=1e-4)
        assert atoms.info["oracle"] == "gfn2-xtb"
    with open("out.failures.csv") as stream:
        (row,) = csv.DictReader(stream)
    assert (row["index"], row["source_index"]) == ("2", "2")
    assert "contradict multiplicity 1" in row["reason"]

    code, out, _ = run("label pool.extxyz --oracle gfn2-xtb -o out.extxyz")
    assert code == 0
    assert "0 new, 4 reused, 1 failed; 0.0 core seconds" in out
    assert "--retry-failures" in out
    code, out, _ = run("label pool.extxyz --oracle gfn2-xtb -o out.extxyz --multiplicity lowest")
    assert "1 new, 4 reused, 0 failed" in out
    assert not Path("out.failures.csv").exists()
    assert [atoms.info["multiplicity"] for atoms in read("out.extxyz", ":")] == [1, 1, 2, 1, 1]


def test_a_label_above_the_limit_on_forces_is_told_and_given_when_the_limit_is_raised(run):
    near = Atoms("H2", [[0, 0, 0], [0, 0, 0.3]])
    write("pool.extxyz", [molecule("H2"), near])
    force = np.linalg.norm(make_oracle(parse_oracle("gfn2-xtb")).label(near).forces, axis=1).max()
    code, out, _ = run(f"label pool.extxyz -o out.extxyz --max-force {0.9 * force}")
    assert code == 0
    assert "gfn2-xtb: 1 new, 0 reused, 1 failed" in out
    assert len(read("out.extxyz", ":")) == 1
    with open("out.failures.csv") as stream:
        (row,) = csv.DictReader(stream)
    assert "above max_force_eV_A" in row["reason"]
    code, out, _ = run(f"label pool.extxyz -o out.extxyz --max-force {0.9 * force}")
    assert "--retry-failures" not in out
    assert "In the store, but refused by --max-force: 1 of them." in out
    code, out, _ = run(f"label pool.extxyz -o out.extxyz --max-force {1.1 * force}")
    assert "0 new, 2 reused, 0 failed" in out
    assert len(read("out.extxyz", ":")) == 2


def test_charge_and_multiplicity_of_all_structures(run):
    write("pool.extxyz", [molecule("H2O")])
    code, _, _ = run("label pool.extxyz -o out.extxyz.gz --charge 1 --multiplicity 2 --store kept.db")
    assert code == 0
    expected = make_oracle(parse_oracle("gfn2-xtb", charge=1, multiplicity=2)).label(molecule("H2O"))
    assert read("out.extxyz.gz").get_potential_energy() == pytest.approx(expected.energy_eV, abs=1e-4)
    with LabelStore("kept.db") as store:
        assert store.spent().labels == 1


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--oracle gfn7-xtb", "is no oracle"),
        ("--oracle gfn2-xtb?colour=red", "colour"),
        ("--multiplicity two", "multiplicity is a whole number"),
        ("--workers 0", "from 1"),
        ("--time-limit -1", "greater than 0"),
        ("--store nowhere/l.db", "does not exist"),
        ("-o pool.extxyz", "written over an input"),
        ("--store out.extxyz -o out.extxyz", "another output"),
        ("--oracle dft:nonsense/sto-3g", "functional 'nonsense'"),
        ("--charge 1", "The structure got no label: labelled.failures.csv says why (the first: 9 electrons"),
        ("--parsl nothing:here", "no Parsl configuration"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(run, line, says):
    write("pool.extxyz", [molecule("H2O")])
    code, _, err = run(f"label pool.extxyz {line}")
    assert code == 2
    assert says in err
    assert "Traceback" not in err


def test_a_run_without_any_label_leaves_an_earlier_output_and_says_so(run):
    write("pool.extxyz", [molecule("H2O")])
    assert run("label pool.extxyz")[0] == 0
    before = Path("labelled.extxyz").read_text()
    code, _, err = run("label pool.extxyz --charge 1")
    assert code == 2
    assert "labelled.extxyz is of an earlier run" in err
    assert Path("labelled.extxyz").read_text() == before


def test_the_same_command_after_a_kill_goes_on(tmp_path):
    write(tmp_path / "pool.extxyz", [Atoms("H", [[1.0 + i, 0, 0]]) for i in range(16)])
    note = tmp_path / "asked.txt"
    oracle = f"ase:strange_calculators:Strange?seconds=0.1&note={note}"
    command = [*SELECTRON, "label", "pool.extxyz", "--oracle", oracle, "-o", "out.extxyz"]
    settings = {
        "cwd": tmp_path,
        "env": {**os.environ, "PYTHONPATH": os.pathsep.join([str(STRANGE), os.environ.get("PYTHONPATH", "")])},
        "text": True,
    }
    first = subprocess.Popen(command, **settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while first.poll() is None and (not note.exists() or len(note.read_text().splitlines()) < 5):
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert not (tmp_path / "out.extxyz").exists()
    with LabelStore(tmp_path / "labels.db") as store:
        kept = store.spent().labels
    assert kept >= 4
    second = subprocess.run(command, **settings, capture_output=True, check=True)
    assert f"{16 - kept} new, {kept} reused, 0 failed" in second.stdout
    assert [atoms.positions[0, 0] for atoms in read(tmp_path / "out.extxyz", ":")] == [1.0 + i for i in range(16)]


def test_interrupted_and_terminated_runs_leave_no_engine(tmp_path):
    write(tmp_path / "pool.extxyz", [Atoms("He")])
    note = tmp_path / "asked.txt"
    oracle = f"ase:strange_calculators:Strange?note={note}"
    command = [*SELECTRON, "label", "pool.extxyz", "--oracle", oracle]
    for number, code in [(signal.SIGINT, 130), (signal.SIGTERM, 143)]:
        note.unlink(missing_ok=True)
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(STRANGE), os.environ.get("PYTHONPATH", "")])},
            stderr=subprocess.PIPE,
            # a shell's background jobs, such as a test run under nohup, have it ignored
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        while process.poll() is None and (not note.exists() or not note.read_text().endswith("\n")):
            time.sleep(0.02)
        engine = int(note.read_text().split()[2])
        process.send_signal(number)
        process.communicate(timeout=30)
        assert process.returncode == code
        assert not Path(f"/proc/{engine}").exists()
    with LabelStore(tmp_path / "labels.db") as store:
        assert store.failures() == []


def sulphate(**info):
    atoms = Atoms("SO4", [[0, 0, 0], [1, 1, 1], [-1, -1, 1], [-1, 1, -1], [1, -1, -1]], info=info)
    atoms.positions *= 1.49 / np.sqrt(3)
    return atoms


def oxygen(**info):
    return Atoms("O2", [[0, 0, 0], [0, 0, 1.246]], info=info)


def test_charges_under_other_names_are_used_written_back_and_said(run):
    by_charges, by_moments = sulphate(), oxygen()
    by_charges.set_initial_charges([2, -1, -1, -1, -1])
    by_moments.set_initial_magnetic_moments([1, 1])
    charged = [sulphate(**{key: -2}) for key in ("charge", "total_charge", "Charge", "net_charge", "molecular_charge")]
    triplets = [oxygen(**{key: 3}) for key in ("spin", "total_spin", "mult", "spin_multiplicity", "multiplicity")]
    contradiction, unknown = sulphate(charge=0, total_charge=-2), sulphate(q=-2)
    write("pool.extxyz", [*charged, by_charges, *triplets, by_moments, sulphate(), oxygen(), contradiction, unknown])
    code, out, _ = run("label pool.extxyz --oracle gfn2-xtb -o out.extxyz")
    assert code == 0
    assert "Charge and multiplicity: -2 1 for 6 structures (charge, total_charge, Charge, net_charge, " in out
    assert "molecular_charge, initial_charges; multiplicity assumed), 0 3 for 6 (spin, total_spin, mult," in out
    assert "charge assumed); assumed 0 1 for 2 that state none." in out
    labelled = read("out.extxyz", ":")
    assert [(one.info["charge"], one.info["multiplicity"]) for one in labelled] == [(-2, 1)] * 6 + [(0, 3)] * 6 + [
        (0, 1)
    ] * 2
    energies = [one.get_potential_energy() for one in labelled]
    assert energies[:6] == pytest.approx([-539.125] * 6, abs=5e-4)  # from tblite itself, as are the others
    assert energies[6:12] == pytest.approx([-215.035] * 6, abs=5e-4)
    assert energies[12:] == pytest.approx([-525.181, -215.106], abs=5e-4)
    with open("out.failures.csv") as stream:
        reasons = {row["index"]: row["reason"] for row in csv.DictReader(stream)}
    assert reasons.keys() == {"14", "15"}
    assert "charge=0 and total_charge=-2 contradict each other" in reasons["14"]
    assert "q is -2, which is not read as a charge" in reasons["15"]
    code, out, _ = run("label out.extxyz -o again.extxyz")  # the same state is the same label
    assert "0 new, 14 reused" in out


def test_a_comment_line_of_charge_and_multiplicity_is_used(run):
    lines = [
        f"{symbol} {x:.6f} {y:.6f} {z:.6f}" for symbol, (x, y, z) in zip("SOOOO", sulphate().positions, strict=True)
    ]
    Path("ion.xyz").write_text("\n".join(["5", "-2 1", *lines, ""]))
    code, out, _ = run("label ion.xyz --oracle gfn2-xtb -o out.extxyz")
    assert code == 0
    assert "Charge and multiplicity: -2 1 for 1 structure (comment line)." in out
    labelled = read("out.extxyz")
    assert labelled.get_potential_energy() == pytest.approx(-539.125, abs=5e-4)
    assert labelled.info == {"charge": -2, "multiplicity": 1, "oracle": "gfn2-xtb"}


def test_a_key_that_is_not_understood_is_settled_by_naming_the_charge(run):
    write("pool.extxyz", [sulphate(q=-2)])
    code, _, err = run("label pool.extxyz -o out.extxyz")
    assert code == 2
    assert "q is -2, which is not read as a charge: state it as charge=..., or give the charge" in err
    code, out, _ = run("label pool.extxyz -o out.extxyz --charge -2")
    assert code == 0
    assert "Warning: 1 structure has q (the first: -2), which is not read as charge or multiplicity." in out
    assert read("out.extxyz").info["charge"] == -2


def test_labels_from_before_are_set_aside_and_said(run):
    """What mace_run_train reads by default must not be of another level than the label."""
    from mace.data.utils import KeySpecification, config_from_atoms

    old, sampled, plain = sulphate(charge=-2), sulphate(charge=-2), sulphate(charge=-2)
    old.info |= {"REF_energy": -3150.0, "REF_dipole": np.ones(3), "virials": np.ones(9), "config_energy_weight": 0.0}
    old.arrays["REF_forces"] = np.ones((5, 3))
    sampled.calc = SinglePointCalculator(sampled, energy=-1.0, forces=np.zeros((5, 3)))
    plain.info["dft_energy"] = -7.0
    write("pool.extxyz", [old, sampled, plain])
    code, out, _ = run("label pool.extxyz --oracle gfn2-xtb -o out.extxyz")
    assert code == 0
    assert (
        "2 structures had labels before: REF_dipole, REF_energy, REF_forces, config_energy_weight and virials are"
        in out
    )
    assert "energy and forces of a calculator are replaced in 1." in out
    labelled = read("out.extxyz", ":")
    for one in labelled:
        assert one.get_potential_energy() == pytest.approx(-539.125, abs=5e-4)
        found = config_from_atoms(one, KeySpecification.from_defaults())
        assert found.properties["energy"] is None
        assert found.properties["forces"] is None
        assert found.properties["virials"] is None
        assert found.property_weights["forces"] == 0.0
    assert labelled[0].info["old_REF_energy"] == -3150.0
    np.testing.assert_array_equal(labelled[0].arrays["old_REF_forces"], 1.0)
    assert labelled[2].info["dft_energy"] == -7.0
    from selectron.structures.label_source import RESULTS, LabelCensus

    census = LabelCensus()
    for one in labelled:
        census.add(one)
    assert census.source()[:2] == RESULTS[:2]


def test_an_oracle_that_sees_no_charge_says_so(run):
    write(
        "pool.extxyz", [sulphate(total_charge=-2), sulphate(spin=3), oxygen(charge=0, total_charge=1), oxygen(charge=0)]
    )
    Path("oracle.yaml").write_text("kind: ase\ncalculator: ase.calculators.lj:LennardJones\n")
    code, out, _ = run("label pool.extxyz --oracle oracle.yaml -o out.extxyz --max-force inf")
    assert code == 0
    told = 'is not told of: it does not enter the labels; "{charge}" among its arguments tells it.'
    assert f"Warning: 1 structure states a charge that ase:ase.calculators.lj:LennardJones {told}" in out
    assert "Warning: 1 structure states a multiplicity that" in out
    assert "Warning: charge=0 and total_charge=1 contradict each other;" in out
    assert "Charge and multiplicity" not in out
