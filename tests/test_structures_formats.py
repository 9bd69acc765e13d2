"""Every format gives back what was written, and bad files give one sentence."""

import gzip
import json
import pickle
import zlib

import ase.db
import ase.io
import h5py
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db.row import AtomsRow
from ase.io.jsonio import encode
from ase.units import Hartree

from selectron.errors import SelectronError
from selectron.structures import Pool, Source, UnreadableFrame, pool, write_extxyz

lmdb = pytest.importorskip("lmdb")


def mixed() -> list[Atoms]:
    """A molecule, a surface and a crystal, with labels."""
    rng = np.random.default_rng(1)
    frames = [molecule("CH3OH"), fcc111("Cu", (2, 2, 3), vacuum=6.0), bulk("NaCl", "rocksalt", a=5.6), molecule("H2O")]
    for atoms in frames:
        atoms.rattle(0.05, rng=rng)
        atoms.info = {}
        atoms.calc = SinglePointCalculator(atoms, energy=rng.normal(), forces=rng.normal(size=(len(atoms), 3)))
    return frames


def assert_same(one: Atoms, other: Atoms) -> None:
    assert (one.numbers == other.numbers).all()
    assert (one.pbc == other.pbc).all()
    np.testing.assert_allclose(one.positions, other.positions, atol=1e-8)
    np.testing.assert_allclose(one.cell.array, other.cell.array, atol=1e-12)
    assert one.get_potential_energy() == pytest.approx(other.get_potential_energy(), abs=1e-8)
    np.testing.assert_allclose(one.get_forces(), other.get_forces(), atol=1e-8)


def write_lmdb(path, frames, layout: str, deleted=(), subdir=False) -> None:
    """As fairchem does it (plain lists) or as ase-db-backends does it (marked arrays)."""
    with lmdb.open(str(path), subdir=subdir, map_size=1 << 24) as environment, environment.begin(write=True) as out:
        for number, atoms in enumerate(frames, start=1):
            row = AtomsRow(atoms)
            content = {key: row[key] for key in row.__dict__ if key[0] != "_" and key != "id"}
            content |= {"mtime": 1.0, "key_value_pairs": {"place": number - 1}, "data": {"sid": f"s{number}"}}
            if layout == "fairchem":
                packed = json.dumps(content, default=lambda value: np.asarray(value).tolist()).encode()
            else:
                packed = encode(content).encode()
            if number not in deleted:
                out.put(str(number).encode(), zlib.compress(packed))
        out.put(b"nextid", zlib.compress(str(len(frames) + 1).encode()))
        out.put(b"deleted_ids", zlib.compress(str(list(deleted)).encode()))
        out.put(b"metadata", zlib.compress(b"{}"))


def write_all(folder) -> list:
    frames = mixed()
    write_extxyz(folder / "a.extxyz.gz", frames)
    with ase.db.connect(folder / "b.db") as database:
        for place, atoms in enumerate(frames):
            database.write(atoms, place=place)
    ase.io.write(folder / "c.traj", frames)
    write_lmdb(folder / "d.aselmdb", frames, "fairchem")
    write_lmdb(folder / "e.lmdb", frames, "backends")
    ase.io.write(folder / "f.json", frames)
    return frames


def test_all_formats_in_one_pool(tmp_path):
    frames = write_all(tmp_path)
    with Pool.open([tmp_path]) as everything:
        assert len(everything) == 6 * len(frames)
        for i in np.random.default_rng(0).permutation(len(everything)).tolist():
            assert_same(everything[i], frames[i % len(frames)])
            assert everything.source(i).index == i % len(frames)
        names = [everything.source(i).path.rsplit("/")[-1] for i in range(0, len(everything), len(frames))]
        assert names == ["a.extxyz.gz", "b.db", "c.traj", "d.aselmdb", "e.lmdb", "f.json"]
        assert everything[5].info["place"] == 1
        assert everything[13].info == {"place": 1, "sid": "s2"}
        assert_same(everything[-1], frames[-1])
        assert len(everything[2:5]) == 3
        with pytest.raises(IndexError):
            everything[len(everything)]
        assert everything.warnings == []
    with Pool.open([tmp_path / "d.aselmdb"]) as one, Pool.open([tmp_path / "d.aselmdb"]) as other:
        assert_same(one[0], other[0])  # LMDB itself refuses to open a file twice
    copy = pickle.loads(pickle.dumps(everything))
    assert_same(copy[9], frames[1])


def test_few_files_are_open_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "_OPEN_AT_ONCE", 2)
    frames = write_all(tmp_path)
    everything = Pool.open([tmp_path])
    for i in np.random.default_rng(0).permutation(len(everything)).tolist():
        assert_same(everything[i], frames[i % len(frames)])
        assert len(everything._used) <= 2


def test_gaps_in_ids(tmp_path):
    frames = mixed()
    with ase.db.connect(tmp_path / "a.db") as database:
        for atoms in frames:
            database.write(atoms)
        database.delete([2])
    write_lmdb(tmp_path / "b.lmdb", frames, "fairchem", deleted=(2,))
    write_lmdb(tmp_path / "folder", frames, "fairchem", deleted=(2,), subdir=True)
    for name in ("a.db", "b.lmdb", "folder"):
        some = Pool.open([tmp_path / name])
        assert len(some) == 3
        for i, expected in enumerate([frames[0], frames[2], frames[3]]):
            assert_same(some[i], expected)


def write_transition1x(path, rng) -> list[tuple[np.ndarray, float]]:
    """The published layout on two reactions; positions and energies in the order in which they should come."""
    expected = []
    with h5py.File(path, "w") as file:
        for formula, reaction, numbers, images in [
            ("C1H4", "rxn0000", [6, 1, 1, 1, 1], 70),
            ("H2O1", "rxn0001", [8, 1, 1], 3),
        ]:
            group = file.create_group(f"data/{formula}/{reaction}")
            for name, count in {"": images, "product": 1, "reactant": 1, "transition_state": 1}.items():
                block = group.require_group(name) if name else group
                positions, energies = rng.normal(size=(count, len(numbers), 3)), rng.normal(size=count)
                block["atomic_numbers"] = numbers
                block["positions"] = positions
                block["wB97x_6-31G(d).energy"] = energies
                block["wB97x_6-31G(d).atomization_energy"] = energies
                block["wB97x_6-31G(d).forces"] = -positions
                expected += list(zip(positions, energies, strict=True))
        file["train/C1H4"] = file["data/C1H4"]
    return expected


def test_transition1x_layout(tmp_path):
    expected = write_transition1x(tmp_path / "t1x.h5", np.random.default_rng(0))
    some = Pool.open([tmp_path / "t1x.h5"])
    assert len(some) == len(expected) == 79
    for i in (0, 78, 69, 70, 63, 64, 74):
        positions, energy = expected[i]
        np.testing.assert_allclose(some[i].positions, positions)
        np.testing.assert_allclose(some[i].get_forces(), -positions)
        assert some[i].get_potential_energy() == pytest.approx(energy)
    assert some[70].info["block"] == "data/C1H4/rxn0000/product"
    assert some[78].numbers.tolist() == [8, 1, 1]


def test_ani1x_layout_and_missing_numbers(tmp_path):
    rng = np.random.default_rng(0)
    positions = rng.normal(size=(4, 3, 3))
    with h5py.File(tmp_path / "ani.hdf5", "w") as file:
        group = file.create_group("H2O1")
        group["atomic_numbers"] = np.array([8, 1, 1], dtype=np.uint8)
        group["coordinates"] = positions.astype(np.float32)
        group["wb97x_dz.energy"] = np.array([-76.0, np.nan, -75.9, -75.8])
        group["wb97x_dz.forces"] = np.where(np.arange(4)[:, None, None] == 2, np.nan, 0.1 * np.ones((4, 3, 3)))
    some = Pool.open([tmp_path / "ani.hdf5"])
    np.testing.assert_allclose(some[3].positions, positions[3], rtol=1e-6)
    assert some[0].get_potential_energy() == pytest.approx(-76.0 * Hartree)
    np.testing.assert_allclose(some[0].get_forces(), 0.1 * Hartree)
    assert "energy" not in some[1].calc.results
    assert "forces" not in some[2].calc.results


def test_truncated_trajectory_keeps_whole_frames(tmp_path):
    frames = mixed() * 3
    ase.io.write(tmp_path / "whole.traj", frames)
    content = (tmp_path / "whole.traj").read_bytes()
    (tmp_path / "cut.traj").write_bytes(content[: len(content) * 3 // 4])
    some = Pool.open([tmp_path / "cut.traj"])
    assert 0 < len(some) < len(frames)
    assert len(some.warnings) == 1
    assert "truncated" in some.warnings[0]
    for i, atoms in enumerate(some):
        assert_same(atoms, frames[i])


def test_damaged_row_is_a_value(tmp_path):
    write_lmdb(tmp_path / "a.lmdb", mixed(), "fairchem")
    with lmdb.open(str(tmp_path / "a.lmdb"), subdir=False) as environment, environment.begin(write=True) as out:
        out.put(b"2", b"rubbish")
        out.delete(b"3")
    entries = [entry for chunk in Pool.open([tmp_path / "a.lmdb"]).chunks(2) for _, entry in chunk]
    assert [isinstance(entry, UnreadableFrame) for entry in entries] == [False, True, True, False]
    assert "row 2" in entries[1].reason
    assert "missing" in entries[2].reason


def test_pickled_lmdb_is_refused_without_loading_it(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("the pickle was loaded",))

    with lmdb.open(str(tmp_path / "old.lmdb"), subdir=False) as environment, environment.begin(write=True) as out:
        out.put(b"0", pickle.dumps(Bomb()))
        out.put(b"length", pickle.dumps(1))
    with pytest.raises(SelectronError, match="pickled"):
        Pool.open([tmp_path / "old.lmdb"])


def test_bad_files_give_one_sentence_with_their_name(tmp_path):
    write_all(tmp_path)
    write_transition1x(tmp_path / "g.h5", np.random.default_rng(0))
    for good in ("b.db", "c.traj", "d.aselmdb", "g.h5", "f.json"):
        content = (tmp_path / good).read_bytes()
        for kind, part in {"cut": content[: len(content) // 3], "rubbish": b"rubbish" * 99, "empty": b""}.items():
            bad = tmp_path / f"{kind}_{good}"
            bad.write_bytes(part)
            if (kind, good) == ("cut", "c.traj"):
                continue  # whole frames may be left
            with pytest.raises(SelectronError, match=bad.name) as caught:
                Pool.open([bad])
            assert "\n" not in str(caught.value)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = [1]
    (tmp_path / "notes.foo").write_text("nothing that anybody knows\n")
    (tmp_path / "nothing").mkdir()
    with ase.db.connect(tmp_path / "void.db"):
        pass
    for name in ("other.h5", "notes.foo", "nothing", "absent.xyz", "absent*.xyz", "void.db"):
        with pytest.raises(SelectronError, match=name.replace("*", r"\*")):
            Pool.open([tmp_path / name])
    with pytest.raises(SelectronError, match="at least one"):
        Pool.open([])


def test_globs_order_and_files_named_twice(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.xyz", "a[1].xyz", "deep/c.xyz"):
        write_extxyz(tmp_path / name, [molecule("H2O")])
    some = Pool.open([str(tmp_path / "**" / "*.xyz")])
    assert [some.source(i).path.rsplit("/")[-1] for i in range(3)] == ["a[1].xyz", "b.xyz", "c.xyz"]
    twice = Pool.open([tmp_path / "a[1].xyz", str(tmp_path / "*.xyz")])
    assert len(twice) == 2
    assert len(twice.warnings) == 1
    assert twice.source(-1) == Source(str(tmp_path / "b.xyz"), 0)


def test_words_for_the_pools_of_the_package(tmp_path, monkeypatch):
    from selectron import embedded

    for word, name in {"embedded": "pool_path", "embedded-train": "train_path"}.items():
        write_extxyz(tmp_path / f"{word}.xyz", [molecule("H2O")])
        monkeypatch.setattr(embedded, name, lambda word=word: tmp_path / f"{word}.xyz")
        assert Pool.open([word]).source(0).path == str(tmp_path / f"{word}.xyz")


def test_truncated_to_nothing(tmp_path):
    (tmp_path / "a.xyz").write_text("3\n\nH 0 0 0\n")
    with pytest.raises(SelectronError, match="no whole structure"):
        Pool.open([tmp_path / "a.xyz"])
    write_extxyz(tmp_path / "b.xyz", [molecule("H2O")])
    some = Pool.open([tmp_path])  # beside a good file it is a warning
    assert len(some) == 1
    assert len(some.warnings) == 1


def test_formats_are_told_by_content_where_the_name_is_silent(tmp_path):
    write_transition1x(tmp_path / "data.h5", np.random.default_rng(0))
    (tmp_path / "data.bin").write_bytes((tmp_path / "data.h5").read_bytes())
    assert len(Pool.open([tmp_path / "data.bin"])) == 79
    ase.io.write(tmp_path / "POSCAR", bulk("Cu"))
    ase.io.write(tmp_path / "a.cif", bulk("Cu"))
    (tmp_path / "b.cif.gz").write_bytes(gzip.compress((tmp_path / "a.cif").read_bytes()))
    for name in ("POSCAR", "a.cif", "b.cif.gz"):
        assert Pool.open([tmp_path / name])[0].symbols.get_chemical_formula() == "Cu"
