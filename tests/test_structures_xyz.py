"""Extended XYZ: the index, random access, damage."""

import gzip
import os
import tracemalloc

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator

from selectron.errors import SelectronError
from selectron.structures import Pool, UnreadableFrame, write_extxyz, xyz_index

FRAME = (
    "2\nProperties=species:S:1:pos:R:3 energy=-1.5 tag={tag}\nH 0.00000000 0.00000000 {z:.8f}\nO 0.0 0.0 1.00000000\n"
)


def labelled(seed: int, name: str = "CH3OH") -> Atoms:
    rng = np.random.default_rng(seed)
    atoms = molecule(name)
    atoms.rattle(0.05, rng=rng)
    atoms.info["tag"] = seed
    atoms.calc = SinglePointCalculator(atoms, energy=rng.normal(), forces=rng.normal(size=(len(atoms), 3)))
    return atoms


def assert_same(one: Atoms, other: Atoms, labels: bool = True) -> None:
    assert (one.numbers == other.numbers).all()
    assert (one.pbc == other.pbc).all()
    np.testing.assert_allclose(one.positions, other.positions, atol=1e-8)
    np.testing.assert_allclose(one.cell.array, other.cell.array)
    if labels:
        assert one.get_potential_energy() == pytest.approx(other.get_potential_energy(), abs=1e-8)
        np.testing.assert_allclose(one.get_forces(), other.get_forces(), atol=1e-8)


@pytest.mark.parametrize("name", ["t1x32.xyz", "oc22_32.xyz", "rgd1_10rxn_geom.xyz", "alanine_dipeptide_vacuum.xyz"])
def test_random_access_equals_ase(shared_data, name):
    expected = ase.io.read(shared_data / name, ":")
    with Pool.open([shared_data / name]) as pool:
        assert len(pool) == len(expected)
        for i in np.random.default_rng(0).permutation(len(expected)).tolist():
            assert_same(pool[i], expected[i], labels=expected[i].calc is not None)
            assert pool[i].info.keys() == expected[i].info.keys()
            assert pool[i].arrays.keys() == expected[i].arrays.keys()
        assert pool.warnings == []


@pytest.mark.parametrize("suffix", ["xyz", "extxyz", "xyz.gz"])
def test_round_trip(tmp_path, suffix):
    frames = [labelled(seed) for seed in range(7)]
    path = tmp_path / f"some.{suffix}"
    assert write_extxyz(path, iter(frames)) == 7
    pool = Pool.open([path])
    for i in (6, 0, 3, 3):
        assert_same(pool[i], frames[i])
        assert pool[i].info["tag"] == i
    assert [index for chunk in pool.chunks(3) for index, _ in chunk] == list(range(7))


def test_large_gzip_goes_through_a_temporary_file_that_is_gone_after_close(tmp_path, monkeypatch):
    monkeypatch.setattr("selectron.structures.xyz._IN_MEMORY_BYTES", 100)
    monkeypatch.setenv("SELECTRON_CACHE", str(tmp_path / "cache"))
    write_extxyz(tmp_path / "some.xyz.gz", (labelled(seed) for seed in range(5)))
    with Pool.open([tmp_path / "some.xyz.gz"]) as pool:
        assert_same(pool[4], labelled(4))
        assert_same(pool[1], labelled(1))
    assert list((tmp_path / "cache").iterdir()) == []
    assert_same(pool[2], labelled(2))  # a closed pool opens again what it needs


def test_stale_results_are_not_written_and_twins_once(tmp_path):
    moved, twice = labelled(0), labelled(1)
    moved.positions[0] += 0.1
    twice.info["energy"] = 7.0
    with pytest.warns(UserWarning, match="left out, as they are of another geometry"):
        write_extxyz(tmp_path / "some.xyz", [moved, twice])
    pool = Pool.open([tmp_path / "some.xyz"])
    assert pool[0].calc is None
    assert_same(pool[1], twice)


def test_windows_line_ends_blank_lines_and_no_last_line_end(tmp_path):
    text = FRAME.format(tag=0, z=0.1) + "\n  \n" + FRAME.format(tag=1, z=0.2) + "\n" + FRAME.format(tag=2, z=0.3)
    for name, content in {
        "windows.xyz": text.replace("\n", "\r\n").encode(),
        "trailing.xyz": (text + "\n\n \n").encode(),
        "bare.xyz": text.rstrip().encode(),
    }.items():
        (tmp_path / name).write_bytes(content)
        pool = Pool.open([tmp_path / name])
        assert [atoms.info["tag"] for atoms in pool] == [0, 1, 2]
        np.testing.assert_allclose([atoms.positions[0, 2] for atoms in pool], [0.1, 0.2, 0.3])


def test_plain_xyz_with_a_number_as_comment(tmp_path):
    (tmp_path / "plain.xyz").write_text("2\n17\nH 0 0 0\nH 0 0 0.74\n" * 3)
    pool = Pool.open([tmp_path / "plain.xyz"])
    assert len(pool) == 3
    assert not pool[2].pbc.any()
    assert pool[2].get_distance(0, 1) == pytest.approx(0.74)


def test_constraints_and_other_arrays_survive(tmp_path):
    from ase.constraints import FixAtoms

    atoms = labelled(0)
    atoms.set_constraint(FixAtoms([1, 3]))
    atoms.new_array("fixed", np.arange(len(atoms)) % 2)
    write_extxyz(tmp_path / "some.xyz", [atoms])
    back = Pool.open([tmp_path / "some.xyz"])[0]
    assert back.constraints[0].index.tolist() == [1, 3]
    assert (back.arrays["fixed"] == atoms.arrays["fixed"]).all()
    np.testing.assert_allclose(
        back.get_forces(apply_constraint=False), atoms.get_forces(apply_constraint=False), atol=1e-8
    )


@pytest.mark.parametrize("packed", [False, True])
def test_truncation_anywhere_in_the_last_frame_keeps_all_whole_frames(tmp_path, packed):
    write_extxyz(tmp_path / "whole.xyz", [labelled(seed, "H2O") for seed in range(3)])
    content = (tmp_path / "whole.xyz").read_bytes()
    last = content.rindex(b"3\nProperties")
    path = tmp_path / ("cut.xyz.gz" if packed else "cut.xyz")
    for size in range(last + 1, len(content) - 1, 7 if packed else 1):
        path.write_bytes(gzip.compress(content[:size], 1) if packed else content[:size])
        pool = Pool.open([path])
        assert len(pool) == 2, content[last:size]
        assert len(pool.warnings) == 1
        assert "truncated" in pool.warnings[0]
        assert "cut.xyz" in pool.warnings[0]
        assert_same(pool[1], labelled(1, "H2O"))
    for size in (last, len(content) - 1, len(content)):
        path.write_bytes(gzip.compress(content[:size], 1) if packed else content[:size])
        pool = Pool.open([path])
        assert len(pool) == (2 if size == last else 3)
        assert pool.warnings == []


def test_truncated_gzip_stream(tmp_path):
    frames = [labelled(seed) for seed in range(200)]
    path = tmp_path / "cut.xyz.gz"
    write_extxyz(path, frames)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    pool = Pool.open([path])
    assert 60 < len(pool) < 140
    assert len(pool.warnings) == 1
    assert "truncated" in pool.warnings[0]
    assert_same(pool[len(pool) - 1], frames[len(pool) - 1])


def test_last_number_that_may_be_cut_is_told(tmp_path):
    (tmp_path / "free.xyz").write_text("3\n\nH 0 0 0.25\nH 0 0 1.5\nH 0 0 3.75")
    (tmp_path / "doubt.xyz").write_text("3\n\nH 0 0 0.25\nH 0 0 1.5\nH 0 0 3.7512")
    for name in ("free.xyz", "doubt.xyz"):
        pool = Pool.open([tmp_path / name])
        assert len(pool) == 1
        assert "no line end" in pool.warnings[0]


def damaged(frames: list[str], where: int, change) -> str:
    return "".join(change(frame) if i == where else frame for i, frame in enumerate(frames))


@pytest.mark.parametrize(
    ("change", "lost", "reason"),
    [
        (lambda f: f.replace("1.00000000", "1.0x"), [2], "could not convert"),
        (lambda f: f.replace("O 0.0", "Qq 0.0"), [2], "Qq"),
        (lambda f: "".join(f.splitlines(keepends=True)[:-1]), [2], "promises 2 atoms"),
        (lambda f: f + "C 0.0 0.0 5.0\n", [2], "promises 2 atoms"),
        (lambda f: "twenty" + f[1:], [2], "no number of atoms"),
    ],
)
def test_one_bad_frame_in_the_middle_costs_only_itself(tmp_path, change, lost, reason):
    frames = [FRAME.format(tag=i, z=0.1 * i) for i in range(6)]
    (tmp_path / "bad.xyz").write_text(damaged(frames, 2, change))
    pool = Pool.open([tmp_path / "bad.xyz"])
    entries = [entry for chunk in pool.chunks(4) for _, entry in chunk]
    assert [i for i, entry in enumerate(entries) if isinstance(entry, UnreadableFrame)] == lost
    assert reason in entries[2].reason
    assert [entry.info["tag"] for entry in entries if isinstance(entry, Atoms)] == [0, 1, 3, 4, 5]
    with pytest.raises(UnreadableFrame, match=reason):
        pool[2]


def test_random_damage_costs_the_frames_it_touches(tmp_path):
    rng = np.random.default_rng(3)
    count = 8
    write_extxyz(tmp_path / "whole.xyz", [labelled(seed, "H2O") for seed in range(count)])
    whole = (tmp_path / "whole.xyz").read_bytes()
    for _ in range(150):
        content = bytearray(whole)
        at = int(rng.integers(2, len(content)))
        new = rng.integers(9, 127, rng.integers(0, 4)).astype(np.uint8).tobytes()
        content[at : at + int(rng.integers(0, 60))] = new
        (tmp_path / "bad.xyz").write_bytes(content)
        entries = [entry for chunk in Pool.open([tmp_path / "bad.xyz"]).chunks(5) for _, entry in chunk]
        whole_tags = {str(entry.info.get("tag")) for entry in entries if isinstance(entry, Atoms)}
        assert len(whole_tags & {str(seed) for seed in range(count)}) >= count - 2, (at, new)


def test_not_xyz_at_all(tmp_path):
    for name, content in {"a.xyz": b"hello\nworld\n", "b.xyz": b"", "c.xyz": b"\n\n", "d.xyz.gz": b"3\n\n"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SelectronError, match=name):
            Pool.open([tmp_path / name])


def test_large_file_is_indexed_without_holding_it(tmp_path):
    frame = FRAME.format(tag=0, z=0.1)
    path = tmp_path / "large.xyz"
    count = 120_000
    with open(path, "w") as stream:
        for _ in range(count // 1000):
            stream.write(frame * 1000)
    tracemalloc.start()
    pool = Pool.open([path])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(pool) == count
    assert peak < 16 * count + (6 << 20)  # offsets and buffers, not the 13 MB of text
    assert pool[count - 1].info["tag"] == 0


def test_saved_index_is_used_while_the_file_stays_and_only_then(tmp_path, monkeypatch):
    monkeypatch.setattr(xyz_index, "SAVE_ABOVE_BYTES", 0)
    scans = []
    scan = xyz_index.scan
    monkeypatch.setattr(xyz_index, "scan", lambda path: scans.append(path) or scan(path))
    path = tmp_path / "big.xyz"
    write_extxyz(path, [labelled(seed) for seed in range(4)])
    assert len(Pool.open([path])) == len(Pool.open([path])) == 4
    assert len(scans) == 1
    assert (tmp_path / "big.xyz.selectron-index.npy").exists()
    assert len(Pool.open([tmp_path])) == 4  # the index is no structure file
    path.write_bytes(path.read_bytes() + FRAME.format(tag=9, z=0.2).encode())
    pool = Pool.open([path])
    assert len(scans) == 2
    assert len(pool) == 5
    assert pool[4].info["tag"] == 9
    saved = path.stat()
    path.write_bytes(path.read_bytes().replace(b"tag=9", b"tag=8"))  # same size, another time
    os.utime(path, ns=(saved.st_atime_ns, saved.st_mtime_ns + 1))
    assert Pool.open([path])[4].info["tag"] == 8
    assert len(scans) == 3
    (tmp_path / "big.xyz.selectron-index.npy").write_bytes(b"rubbish")
    assert len(Pool.open([path])) == 5


def test_index_goes_to_the_cache_where_the_folder_is_closed(tmp_path, monkeypatch):
    monkeypatch.setattr(xyz_index, "SAVE_ABOVE_BYTES", 0)
    monkeypatch.setenv("SELECTRON_CACHE", str(tmp_path / "cache"))
    real = xyz_index.atomic_output

    def refuse(path, mode="w"):
        if path.parent == tmp_path:
            raise SelectronError("read only")
        return real(path, mode)

    monkeypatch.setattr(xyz_index, "atomic_output", refuse)
    write_extxyz(tmp_path / "big.xyz", [labelled(0)])
    Pool.open([tmp_path / "big.xyz"])
    assert len(list((tmp_path / "cache").glob("*.selectron-index.npy"))) == 1
    assert not list(tmp_path.glob("*.npy"))
