"""What happens around a structure is not charged to it: folders, disks, programs, memory, what others left in the engine."""

import sys
from pathlib import Path

import pytest
from ase import Atoms
from test_oracle_convergence import hydrogen, orca, program

from selectron.errors import SelectronError
from selectron.execution import ExecutionOptions, make_executor
from selectron.oracles import LabelStore, label_structures, make_oracle, parse_oracle
from selectron.oracles.surroundings import missing_program


@pytest.fixture
def store(tmp_path):
    with LabelStore(tmp_path / "labels.db") as opened:
        yield opened


def vandal(tmp_path, **options):
    arguments = {"note": str(tmp_path / "asked.txt"), "room": str(tmp_path / "room")}
    return parse_oracle({"kind": "ase", "calculator": "strange_calculators:Vandal", "arguments": arguments, **options})


def atoms(*symbols):
    """Atoms one by one, each at another place."""
    return [Atoms(symbol, [[1.0 + i, 0.0, 0.0]]) for i, symbol in enumerate(symbols)]


def run(structures, options, store, **others):
    """What comes of each, from an engine that nobody has used."""
    with make_executor(ExecutionOptions()) as executor:
        found = list(label_structures(structures, options, store, executor=executor, **others))
    return sorted(found, key=lambda one: one.index)


def asked(tmp_path):
    """(formula, process) of each call."""
    return [tuple(line.split()[::2]) for line in (tmp_path / "asked.txt").read_text().splitlines()]


@pytest.mark.parametrize("culprit", ["Li", "Na"])
def test_what_one_structure_does_to_the_engine_is_not_charged_to_those_behind_it(culprit, store, tmp_path):
    found = run(atoms("H", culprit, "H", "H"), vandal(tmp_path), store)
    assert [one.label.energy_eV for one in found] == [0.5 * (1 + i) ** 2 for i in range(4)]
    assert [one.attempts for one in found] == [1, 1, 1, 1]
    assert store.spent()[:2] == (4, 0)
    processes = [process for _, process in asked(tmp_path)]
    assert len(set(processes)) == 2
    assert processes[-1] != processes[0]


def test_a_structure_that_fails_in_a_fresh_engine_too_has_failed(store, tmp_path):
    found = run(atoms("H", "Be", "H"), vandal(tmp_path), store)
    assert [one.label is not None for one in found] == [True, False, True]
    assert "where am I?" in found[1].failure
    assert not found[1].blameless
    assert found[1].attempts == 1
    calls = asked(tmp_path)
    assert [formula for formula, _ in calls] == ["H", "Be", "Be", "H"]
    assert calls[1][1] != calls[2][1]
    assert len(store.failures()) == 1


def test_a_crash_of_a_used_engine_is_decided_by_a_fresh_one(store, tmp_path):
    found = run(atoms("H", "Ne", "H"), vandal(tmp_path), store)
    assert [one.label is not None for one in found] == [True, False, True]
    assert "killed by SIGSEGV" in found[1].failure
    assert [formula for formula, _ in asked(tmp_path)] == ["H", "Ne", "Ne", "H"]


def test_an_engine_that_grows_beyond_its_limit_is_started_anew_and_nobody_fails(store, tmp_path):
    found = run(atoms(*["K"] * 8), vandal(tmp_path, memory_limit_MB=350), store)
    assert all(one.label is not None for one in found)
    processes = [process for _, process in asked(tmp_path)]
    assert len(processes) == 8
    assert len(set(processes)) >= 2
    assert max(map(processes.count, processes)) >= 2  # and not each time
    again = tmp_path / "again"
    again.mkdir()
    with LabelStore(again / "labels.db") as other:
        run(atoms(*["K"] * 8), vandal(again, memory_limit_MB=None), other)
    assert len({process for _, process in asked(again)}) == 1


def test_an_engine_that_needs_more_than_the_limit_from_the_beginning_is_kept(store, tmp_path):
    run(atoms(*["H"] * 4), vandal(tmp_path, memory_limit_MB=1), store)
    assert len({process for _, process in asked(tmp_path)}) == 1


def test_a_full_disk_is_no_failure_of_the_structure(store, tmp_path):
    structures, options = atoms("Mg", "H"), vandal(tmp_path)
    first, second = run(structures, options, store)
    assert "No space left on device" in first.failure
    assert first.blameless
    assert second.label is not None
    assert store.failures() == []
    (tmp_path / "room").touch()
    assert run(structures, options, store)[0].label is not None


def test_a_program_that_vanishes_half_way_is_no_failure_of_the_structures_behind_it(store, tmp_path):
    options = orca(tmp_path, "SCF CONVERGED AFTER 7 CYCLES")
    there = tmp_path / "program"
    text = there.read_text()
    there.write_text(text + "\npathlib.Path(__file__).unlink()\n")
    structures = [hydrogen(pbc=False), hydrogen(pbc=False)]
    structures[1].positions += 1.0
    with pytest.raises(SelectronError, match="there is no program"):  # as the fresh engine says
        run(structures, options, store)
    assert store.spent()[:2] == (1, 0)
    program(tmp_path, text)
    assert [one.label is not None for one in run(structures, options, store)] == [True, True]


def test_the_shell_says_by_its_exit_code_that_there_is_no_program(store, tmp_path):
    """ASE's older classes give a line to the shell; here the program that the line begins with is there."""
    script = program(tmp_path, f"#!/bin/sh\n{tmp_path}/nowhere\n")
    arguments = {"command": f"{script} PREFIX.com > PREFIX.log"}
    options = parse_oracle({"kind": "ase", "calculator": "ase.calculators.gaussian:Gaussian", "arguments": arguments})
    (one,) = run([hydrogen(pbc=False)], options, store)
    assert one.blameless
    assert "error code 127" in one.failure
    assert store.failures() == []


def test_a_missing_program_is_told_once_before_anything(store, tmp_path, monkeypatch):
    for variable in ("ASE_VASP_COMMAND", "VASP_COMMAND", "VASP_SCRIPT"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(SelectronError, match=r"Vasp has no program to run: .*VASP_COMMAND"):
        run([hydrogen()], parse_oracle("ase:ase.calculators.vasp:Vasp"), store)
    monkeypatch.setenv("VASP_COMMAND", "no-such-vasp -n 4")
    with pytest.raises(SelectronError, match="runs 'no-such-vasp -n 4', and there is no program 'no-such-vasp'"):
        run([hydrogen()], parse_oracle("ase:ase.calculators.vasp:Vasp"), store)
    shell = {"kind": "ase", "calculator": "ase.calculators.cp2k:CP2K", "arguments": {"command": "no-such-cp2k -s"}}
    with pytest.raises(SelectronError, match="there is no program 'no-such-cp2k' here"):
        run([hydrogen()], parse_oracle(shell), store)
    options = orca(tmp_path, "")
    (tmp_path / "program").unlink()
    with pytest.raises(SelectronError, match="there is no program"):
        run([hydrogen(pbc=False)], options, store)
    assert store.failures() == []


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        (f"{sys.executable} run.py", None),
        ("OMP_NUM_THREADS=4 no-such-program < in > out", "no-such-program"),
        ("/no/such/orca PREFIX.inp", "/no/such/orca"),
        ("./relative PREFIX.inp", None),
        ("cd there && vasp", None),
        ("$BIN/vasp", None),
        ("'unfinished", None),
        ("", None),
    ],
)
def test_what_can_be_told_of_a_command(command, missing):
    assert missing_program(command) == missing


def test_what_a_program_left_is_looked_at_although_its_folder_is_gone(tmp_path, monkeypatch):
    """Only in that nothing breaks: there is nothing to see."""
    from selectron.oracles import OracleFailure

    monkeypatch.chdir(tmp_path)
    options = orca(tmp_path, "")
    there = tmp_path / "program"
    there.write_text(f"#!{sys.executable}\nimport os, shutil\nshutil.rmtree(os.getcwd())\n")
    with pytest.raises(OracleFailure, match=r"orca\.out"):
        make_oracle(options).label(hydrogen(pbc=False))
    assert not list(Path(tmp_path).glob("run-*"))
