"""Output that is whole or absent, and the list of what was left out."""

import errno
import os
from contextlib import suppress

import numpy as np
import pytest
from ase.build import bulk, molecule

from selectron.errors import SelectronError
from selectron.structures import (
    Pool,
    Quarantine,
    Source,
    atomic_output,
    read_quarantine,
    structure_hash,
    write_extxyz,
)


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_output_appears_at_the_end_only(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("old")
    with atomic_output(path) as stream:
        stream.write("new, and of Å")
        stream.flush()
        assert path.read_text() == "old"
    assert path.read_text(encoding="utf-8") == "new, and of Å"
    assert names(tmp_path) == ["out.txt"]


def write_half(path, error) -> None:
    with atomic_output(path, "wb") as stream:
        stream.write(b"half of it")
        raise error


def test_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error):
            write_half(path, error)
        assert path.read_bytes() == b"old"
        assert names(tmp_path) == ["out.bin"]


def test_full_disk_while_writing_and_while_closing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(SelectronError, match="disk is full"), atomic_output(tmp_path / "a") as stream:
        full()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SelectronError, match="disk is full"), atomic_output(tmp_path / "a") as stream:
        stream.write("x")
    with pytest.raises(SelectronError, match="disk is full"):
        write_extxyz(tmp_path / "b.xyz.gz", [molecule("H2O")])
    assert names(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux' /dev/full")
def test_really_full_device():
    with pytest.raises(SelectronError, match="disk is full"):
        write_extxyz("/dev/full", [molecule("H2O")] * 1000)


def test_other_errors_inside_the_block_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_output(tmp_path / "a"):
        (tmp_path / "no such input").read_text()


def test_missing_folder_and_folder_as_file(tmp_path):
    with pytest.raises(SelectronError, match="does not exist"), atomic_output(tmp_path / "none" / "a"):
        pass
    with pytest.raises(SelectronError, match="it is a folder"), atomic_output(tmp_path):
        pass


def test_structures_that_fail_halfway_leave_no_file(tmp_path):
    def structures():
        yield molecule("H2O")
        raise RuntimeError

    for name in ("a.xyz", "a.xyz.gz"):
        with pytest.raises(RuntimeError):
            write_extxyz(tmp_path / name, structures())
    assert names(tmp_path) == []


def test_gzip_output_is_the_same_bytes_each_time(tmp_path):
    for name in ("a.xyz.gz", "b.xyz.gz"):
        write_extxyz(tmp_path / name, [molecule("H2O")])
    assert (tmp_path / "a.xyz.gz").read_bytes() == (tmp_path / "b.xyz.gz").read_bytes()


def test_quarantine_holds_what_was_added_even_after_an_error(tmp_path):
    path = tmp_path / "quarantine.csv"
    entries = [(Source("a, b.xyz", 3), 'H0 and "H1" overlap'), (Source("c.db", 0), "its cell is flat\nindeed")]
    with suppress(RuntimeError), Quarantine(path) as quarantine:
        for source, reason in entries:
            quarantine.add(source, reason)
        assert not path.exists()
        assert len(quarantine) == 2
        raise RuntimeError
    assert path.read_text().startswith("file,index,reason\n")
    assert list(read_quarantine(path)) == entries
    assert names(tmp_path) == ["quarantine.csv"]
    with Quarantine(path):
        pass
    assert names(tmp_path) == []  # a clean run leaves no list, nor an older run's


def test_hash_is_of_the_atoms_alone_and_survives_a_file(tmp_path):
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(50):
        atoms = bulk("NaCl", "rocksalt", a=5.6) * (2, 1, 1)
        atoms.rattle(0.3, rng=rng)
        atoms.pbc = rng.random(3) < 0.5
        frames.append(atoms)
    write_extxyz(tmp_path / "some.xyz", frames)
    assert [structure_hash(a) for a in Pool.open([tmp_path / "some.xyz"])] == [structure_hash(a) for a in frames]

    atoms = molecule("CH3OH")
    name = structure_hash(atoms)
    assert len(name) == 32
    assert int(name, 16) >= 0
    same = atoms.copy()
    same.info["x"] = 1
    same.new_array("charges", np.ones(len(same)))
    same.cell = [9, 9, 9]  # not periodic: the cell says nothing
    same.positions[same.positions == 0] = -0.0
    assert structure_hash(same) == name
    for change in ("position", "element", "pbc", "order"):
        other = same.copy()
        if change == "position":
            other.positions[0, 0] += 2e-8
        elif change == "element":
            other.numbers[0] = 7
        elif change == "pbc":
            other.pbc = True
        else:
            other = other[::-1]
        assert structure_hash(other) != name, change
    periodic = other = bulk("Cu")
    other = periodic.copy()
    other.cell[0, 1] += 1e-6
    assert structure_hash(other) != structure_hash(periodic)
