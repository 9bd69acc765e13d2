"""Labels are never lost and never bought twice, whatever the engine, a person or another process does."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

from selectron.errors import SelectronError
from selectron.execution import ExecutionOptions, make_executor
from selectron.oracles import Label, LabelStore, label_structures, make_oracle, parse_oracle, structure_key
from selectron.oracles.worker import Outcome

HERE = Path(__file__).parent


@pytest.fixture
def store(tmp_path):
    with LabelStore(tmp_path / "labels.db") as opened:
        yield opened


@pytest.fixture
def note(tmp_path):
    return tmp_path / "asked.txt"


def strange(note, *, seconds=0.0, **options):
    arguments = {"note": str(note), "seconds": seconds}
    return parse_oracle({"kind": "ase", "calculator": "strange_calculators:Strange", "arguments": arguments, **options})


def points(count, element="H"):
    """As many different structures."""
    return [Atoms(element, [[1.0 + i, 0.0, 0.0]]) for i in range(count)]


def asked(note):
    """How often the calculator was asked, by structure."""
    lines = note.read_text().splitlines() if note.exists() else []
    return Counter(" ".join(line.split()[:2]) for line in lines)


def gone(pid, seconds=20.0):
    """Whether the process ends in time (a zombie has ended)."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def by_index(found):
    return {one.index: one for one in found}


@pytest.mark.parametrize("kind", ["serial", "threads", "processes"])
def test_every_executor_gives_the_labels_of_the_oracle(store, kind):
    structures = [molecule(name) for name in ("H2O", "CH4", "NH3", "H2CO")]
    options = parse_oracle("gfn2-xtb")
    with make_executor(ExecutionOptions(kind=kind, workers=2, threads=1)) as executor:
        found = by_index(label_structures(structures, options, store, executor=executor))
    oracle = make_oracle(options)
    assert sorted(found) == [0, 1, 2, 3]
    for index, atoms in enumerate(structures):
        expected = oracle.label(atoms)
        assert found[index].label.energy_eV == pytest.approx(expected.energy_eV, abs=1e-8)
        np.testing.assert_allclose(found[index].label.forces, expected.forces, atol=1e-8)
        assert not found[index].reused
        assert found[index].core_s > 0
        assert found[index].attempts == 1


def test_known_labels_are_reused_and_twins_are_bought_once(store, note):
    structures = [*points(5), *points(5), *points(3)]
    options = strange(note)
    with make_executor(ExecutionOptions(workers=2)) as executor:
        first = list(label_structures(structures, options, store, executor=executor))
        again = list(label_structures(points(6), options, store, executor=executor))
    assert sum(one.reused for one in first) == 8
    assert {one.index for one in first} == set(range(13))
    assert [one.reused for one in sorted(again, key=lambda one: one.index)] == [True] * 5 + [False]
    assert set(asked(note).values()) == {1}
    assert len(asked(note)) == 6
    assert all(one.label.energy_eV == 0.5 * (1 + one.index) ** 2 for one in again)
    assert all(one.wall_s == one.core_s == 0 for one in again if one.reused)


def test_other_settings_charge_or_multiplicity_are_other_labels(store):
    water = molecule("H2O")
    assert not next(label_structures([water], parse_oracle("gfn2-xtb"), store)).reused
    for spec, options in [
        ("gfn1-xtb", {}),
        ("gfn2-xtb", {"charge": 1, "multiplicity": 2}),
        ("gfn2-xtb", {"multiplicity": 3}),
    ]:
        (one,) = label_structures([water], parse_oracle(spec, **options), store)
        assert one.label is not None
        assert not one.reused
    water.info = {"charge": 1, "spin": 2}
    assert next(label_structures([water], parse_oracle("gfn2-xtb"), store)).reused


def slabs(*open_vectors):
    """A layer whose lattice vector in the open direction is as long as each of these."""
    return [Atoms("H", [[0, 0, 5.0]], cell=[3.0, 3.0, z], pbc=[True, True, False]) for z in open_vectors]


def test_what_the_engine_sees_of_an_open_direction_tells_labels_apart(store):
    """An ASE calculator gets the whole cell (plane waves fill it): two cells, two labels."""
    options = parse_oracle("ase:strange_calculators:Volume")
    found = by_index(label_structures(slabs(12.0, 30.0, 12.0), options, store))
    assert [found[i].label.energy_eV for i in range(3)] == [pytest.approx(9 * z) for z in (12.0, 30.0, 12.0)]
    assert [found[i].reused for i in range(3)] == [False, False, True]


def test_what_the_engine_does_not_see_of_an_open_direction_buys_no_second_label(store):
    sheets = slabs(12.0, 30.0)
    found = by_index(label_structures(sheets, parse_oracle("gfn2-xtb?vacuum_A=12&multiplicity=2"), store))
    assert [found[i].reused for i in range(2)] == [False, True]
    assert found[0].label.energy_eV == found[1].label.energy_eV


def test_a_slab_that_an_older_store_has_a_label_of_is_refused_all_the_same(store):
    (slab,) = slabs(12.0)
    options = parse_oracle("gfn2-xtb?multiplicity=2")
    key = structure_key(slab, options.state(slab))
    label = Label(-13.0, np.zeros((1, 3)))
    store.put(slab, key, make_oracle(options).fingerprint, Outcome(label, None, 1, 1.0, 1.0, {}))
    (one,) = label_structures([slab], options, store)
    assert one.label is None
    assert "periodic in 2 of 3 directions" in one.failure


def test_a_hang_is_stopped_with_all_that_it_started_and_the_next_structure_goes_on(store, note):
    structures = [Atoms("Xe"), *points(2)]
    found = by_index(label_structures(structures, strange(note, time_limit_s=2.0), store))
    assert found[0].failure == "stopped at the time limit of 2 s"
    assert found[0].wall_s >= 2.0
    assert found[1].label is not None
    assert found[2].label is not None
    child = next(line for line in note.read_text().splitlines() if line.startswith("child"))
    assert gone(int(child.split()[2]))


def test_a_crash_is_a_failure_with_the_signal_and_the_last_words(store, note):
    found = by_index(label_structures([Atoms("Ne"), *points(1)], strange(note), store))
    assert "killed by SIGSEGV" in found[0].failure
    assert "about to crash" in found[0].failure
    assert found[1].label is not None


def test_failures_are_kept_with_their_reason_and_not_bought_again_unless_asked(store, note):
    structures, options = [Atoms("Kr"), Atoms("Ar"), Atoms("H", [[np.nan, 0, 0]]), Atoms()], strange(note)
    first = by_index(label_structures(structures, options, store))
    assert "licence server" in first[0].failure
    assert "not finite" in first[1].failure
    assert "not finite" in first[2].failure
    assert "no atoms" in first[3].failure
    again = by_index(label_structures(structures, options, store))
    assert {index: one.failure for index, one in again.items()} == {index: one.failure for index, one in first.items()}
    assert again[0].reused
    assert set(asked(note).values()) == {1}
    with make_executor(ExecutionOptions()) as executor:  # a fresh engine, whose word counts
        list(label_structures(structures[:2] * 3, options, store, executor=executor, retry_failures=True))
    assert set(asked(note).values()) == {2}
    assert len(store.failures()) == 4


def test_a_label_with_a_large_force_is_kept_and_not_given_out(store, note):
    structures = points(3)  # forces of 1, 2 and 3 eV/Å
    options = strange(note, max_force_eV_A=2.0)
    found = by_index(label_structures(structures, options, store))
    assert [found[i].label is not None for i in range(3)] == [True, True, False]
    assert found[2].failure == "the force on atom 0 is 3.0 eV/Å, above max_force_eV_A of 2"
    assert found[2].refused
    assert not store.failures()
    assert found[2].wall_s > 0
    (again,) = label_structures(structures[2:], options, store)
    assert (again.refused, again.reused, again.failure) == (True, True, found[2].failure)
    (given,) = label_structures(structures[2:], strange(note, max_force_eV_A=None), store)
    assert given.label is not None
    assert given.reused
    assert set(asked(note).values()) == {1}


def test_attempts_are_used_until_one_works_and_a_retry_can_mend_a_failure(store, note):
    (one,) = label_structures([Atoms("Rn")], strange(note, attempts=3), store)
    assert one.label is not None
    assert one.attempts == 2
    second = Atoms("RnH", [[0, 0, 0], [1, 0, 0]])
    (failed,) = label_structures([second], strange(note, attempts=1), store)
    assert "not at the first time" in failed.failure
    (mended,) = label_structures([second], strange(note, attempts=1), store, retry_failures=True)
    assert mended.label is not None
    assert next(label_structures([second], strange(note), store)).reused


def test_a_final_failure_costs_one_attempt(store):
    (one,) = label_structures([molecule("CH3")], parse_oracle("gfn2-xtb", attempts=5, multiplicity=1), store)
    assert one.attempts == 1
    assert "contradict multiplicity 1" in one.failure


def test_an_oracle_that_cannot_start_is_said_before_anything_is_marked_as_failed(store):
    options = parse_oracle({"kind": "ase", "calculator": "strange_calculators:Strange", "arguments": {"springs": 1}})
    with pytest.raises(SelectronError, match="cannot be made"):
        list(label_structures(points(3), options, store))
    assert store.failures() == []


def test_each_label_is_in_the_store_when_it_is_yielded_and_no_more_than_the_workers_are_ahead(store, note, tmp_path):
    options = strange(note, seconds=0.05)
    with make_executor(ExecutionOptions(workers=2)) as executor, LabelStore(tmp_path / "labels.db") as other:
        for seen, one in enumerate(label_structures(points(8), options, store, executor=executor), start=1):
            assert one.label is not None
            committed = other.spent().labels
            assert committed >= seen
            assert sum(asked(note).values()) <= committed + 2


def test_leaving_early_stops_the_engines_and_keeps_what_there_is(store, note):
    structures = [*points(2), Atoms("He"), *points(9)[2:]]
    with make_executor(ExecutionOptions(workers=2)) as executor:
        results = label_structures(structures, strange(note), store, executor=executor)
        next(results)
        next(results)
        results.close()
    again = by_index(label_structures(points(2), strange(note), store))
    assert again[0].reused
    assert again[1].reused


COMMAND = """
import sys
from ase import Atoms
from selectron.oracles import LabelStore, label_structures, parse_oracle
from selectron.execution import ExecutionOptions, make_executor
import json
if __name__ == "__main__":
    count, kind, options = int(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
    structures = [Atoms("H", [[1.0 + i, 0.0, 0.0]]) for i in range(count)]
    with LabelStore(sys.argv[1]) as store, make_executor(ExecutionOptions(kind=kind, workers=2, threads=1)) as executor:
        reused = sum(one.reused for one in label_structures(structures, parse_oracle(options), store, executor=executor))
    print(reused)
"""


def start(folder, note, *, count, kind="threads", seconds=0.1):
    script = folder / "command.py"
    script.write_text(COMMAND)
    options = {
        "kind": "ase",
        "calculator": "strange_calculators:Strange",
        "arguments": {"note": str(note), "seconds": seconds},
    }
    return subprocess.Popen(
        [sys.executable, str(script), str(folder / "labels.db"), str(count), kind, json.dumps(options)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("kind", ["threads", pytest.param("processes", marks=pytest.mark.slow)])
def test_a_kill_in_the_middle_loses_nothing_repeats_nothing_and_leaves_no_engine(tmp_path, note, kind):
    process = start(tmp_path, note, count=24, kind=kind)
    while process.poll() is None and sum(asked(note).values()) < 9:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    engines = {int(line.split()[2]) for line in note.read_text().splitlines()}
    assert all(gone(pid) for pid in engines)
    begun = asked(note)
    with LabelStore(tmp_path / "labels.db") as store:
        kept = store.spent().labels
    assert len(begun) - 2 <= kept <= len(begun)  # all but what two workers had in hand
    second = start(tmp_path, note, count=24, kind=kind)
    assert second.communicate()[0].strip() == str(kept)
    assert second.returncode == 0
    assert len(asked(note)) == 24
    assert sum(asked(note).values()) == 24 + len(begun) - kept


def test_two_processes_at_once_buy_each_label_once(tmp_path, note):
    both = [start(tmp_path, note, count=20), start(tmp_path, note, count=20)]
    reused = [int(process.communicate()[0]) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert len(asked(note)) == 20
    assert set(asked(note).values()) == {1}
    assert sum(reused) == 20
