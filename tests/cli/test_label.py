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
