"""Whatever a structure carries reads back as it was, with ASE and with a pool, or is named in a sentence."""

import re
from ast import literal_eval
from collections.abc import Callable
from datetime import date
from typing import Any

import ase.db
import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixBondLength, FixCartesian, Hookean
from ase.io.extxyz import all_properties

from selectron.structures import Pool, structure_hash, write_extxyz
from selectron.structures.comment_line import entry, pure
from selectron.structures.constraints import free_coordinates

NAMED = re.compile(
    r"""(?:as it was:|;) (?:info|array|result|constraint) ('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\w+) (?:left|written)"""
)
SPACES_QUOTES = (
    "a b",
    'say "no"',
    "it's",
    "x=y",
    "=",
    "y=",
    "{a}",
    "[b]",
    "back\\slash",
    "end\\",
    "tab\there",
    "é Å 原",
    "😀",
)
LIKE_NUMBERS = (
    "-2",
    "1 2 3",
    "1,2",
    "T",
    "F T",
    "true",
    "nan",
    "-inf",
    "1e5",
    "1_000",
    " ",
    ",",
    "007",
    "0x10",
    "+1",
    ".5",
    "_JSON 1",
)
TEXTS = (
    "",
    "ethanol",
    "CC(=O)[O-]",
    *SPACES_QUOTES,
    *LIKE_NUMBERS,
    "two\nlines",
    "cr\rlf\r\n",
    "\x00",
    "\x85 ",
    "\ud800",
    "x" * 9_000,
)
KEYS = (
    "name",
    "my key",
    "1st",
    "a=b",
    'q"q',
    "it's",
    "{k}",
    "k]",
    "a,b",
    "b\\",
    "ü",
    "T",
    "-",
    " edge ",
    "uid",
    "_x",
    "tab\tkey",
)
BAD_KEYS = ("", "two\nlines", "pbc", "Lattice", "Properties")


def numbers(rng: np.random.Generator) -> Any:
    kinds: list[Callable[[], Any]] = [
        lambda: int(rng.integers(-5, 5)),
        lambda: float(rng.normal() * 10.0 ** rng.integers(-300, 300)),
        lambda: bool(rng.integers(2)),
        lambda: [float("nan"), float("inf"), -float("inf"), -0.0, 2**63 - 1, -(2**63), 2**63, 10**30][rng.integers(8)],
        lambda: np.float32(rng.normal()),
        lambda: np.float64(rng.normal()),
        lambda: np.int32(rng.integers(9)),
        lambda: np.uint8(rng.integers(9)),
        lambda: np.bool_(rng.integers(2)),
        lambda: np.float16(1.5),
    ]
    return kinds[rng.integers(len(kinds))]()


def arrays(rng: np.random.Generator) -> np.ndarray:
    shape = [(), (1,), (2,), (9,), (6,), (0,), (3, 3), (1, 1), (2, 3), (2, 2, 2)][rng.integers(10)]
    values = rng.normal(size=shape)
    kinds = ["float64", "float32", "int64", "int8", "uint64", "bool", "U4"]
    return np.asarray(values).astype(kinds[rng.integers(len(kinds))]) if values.ndim else np.array(1.25)


def values(rng: np.random.Generator, deep: int = 0) -> Any:
    kind = rng.integers(7 if deep < 2 else 4)
    if kind == 0:
        return TEXTS[rng.integers(len(TEXTS))]
    if kind in (1, 2):
        return numbers(rng)
    if kind == 3:
        return None
    if kind == 4:
        return arrays(rng) if deep == 0 else numbers(rng)
    inner = [values(rng, deep + 1) for _ in range(rng.integers(4))]
    if kind == 5:
        return inner if rng.integers(2) else tuple(inner)
    return {KEYS[rng.integers(len(KEYS))]: one for one in inner}


def same(read: Any, given: Any) -> bool:
    """Equal values and, for arrays, shapes; text stays text, truth values stay truth values, None None."""
    if isinstance(given, np.ndarray) and np.shape(read) != given.shape:
        return False
    return repr(_canonical(pure(read))) == repr(_canonical(pure(given)))


def _canonical(value: Any) -> Any:
    if isinstance(value, list):
        return [_canonical(one) for one in value]
    if isinstance(value, dict):
        return {key: _canonical(value[key]) for key in sorted(value)}
    if isinstance(value, int) and not isinstance(value, bool) and float(value) == value:
        return float(value)
    return value


def read_back(path, atoms: Atoms) -> tuple[list[Atoms], set[str], list[str]]:
    """What ASE and a pool read of the written ``atoms``, the names of what is said to be lost, and the sentences."""
    said: list[str] = []
    assert write_extxyz(path, [atoms], tell=said.append) == 1
    names = [name for line in said for name in NAMED.findall(line)]
    lost = {literal_eval(name) if name[0] in "'\"" else name for name in names}
    with Pool.open([path]) as pool:
        assert len(pool) == 1
        return [ase.io.read(path), pool[0]], lost, said


def assert_equal(read: Atoms, given: Atoms, lost: set[str]) -> None:
    assert (read.numbers == given.numbers).all()
    np.testing.assert_allclose(read.positions, given.positions, atol=5.1e-9)
    assert (read.cell.array == given.cell.array).all()
    assert (read.pbc == given.pbc).all()
    for key, value in given.info.items():
        if key not in lost and key not in all_properties:
            assert key in read.info, key
            assert same(read.info[key], value), (key, value, read.info[key])
    assert read.info.keys() <= given.info.keys()
    for name, array in given.arrays.items():
        if name not in lost and name not in ("numbers", "positions", *all_properties):
            assert same(read.arrays[name], array), (name, array, read.arrays[name])
    assert (read.arrays.keys() - {"initial_charges"}) <= given.arrays.keys()


@pytest.mark.parametrize("seed", range(8))
def test_any_info_reads_back_or_is_named(tmp_path, seed):
    rng = np.random.default_rng(seed)
    for number in range(60):
        atoms = molecule("H2O") if rng.integers(2) else bulk("NaCl", "rocksalt", a=5.64)
        atoms.pbc = rng.integers(0, 2, 3).astype(bool)
        for _ in range(rng.integers(1, 6)):
            atoms.info[KEYS[rng.integers(len(KEYS))]] = values(rng)
        atoms.info["last"] = -2
        found, lost, _ = read_back(tmp_path / f"{number}.xyz", atoms)
        for read in found:
            assert_equal(read, atoms, lost)
            assert read.info["last"] == -2


@pytest.mark.parametrize("text", TEXTS, ids=[f"{i}-{text[:12]!r}" for i, text in enumerate(TEXTS)])
def test_every_text_under_every_key_reads_back_without_a_loss(tmp_path, text):
    atoms = molecule("H2O")
    atoms.info = {key: text for key in KEYS if key != "uid"}
    atoms.info["charge"] = -2
    found, lost, said = read_back(tmp_path / "a.xyz", atoms)
    assert not lost
    assert said == []
    for read in found:
        assert read.info == atoms.info


def test_keys_that_cannot_be_written_are_named_and_harm_nothing(tmp_path):
    atoms = bulk("Cu")
    atoms.info = {**dict.fromkeys(BAD_KEYS, "9 9 9"), 7: 1, "charge": -2}
    found, _, said = read_back(tmp_path / "a.xyz", atoms)
    for read in found:
        assert read.info == {"charge": -2}
        assert (read.cell.array == atoms.cell.array).all()
        assert read.pbc.all()
    assert len(said) == 1
    for key in (*BAD_KEYS, 7):
        assert f"info {key!r} left out" in said[0]
    assert "(1 structure)" in said[0]


@pytest.mark.parametrize(
    ("value", "became"),
    [
        ([[1], [1, 2]], "[[1], [1, 2]]"),
        (date(2026, 1, 2), "2026-01-02"),
        (1 + 2j, "(1+2j)"),
        (b"bytes", None),
        (object(), None),
        ({"a": b"bytes"}, None),
        ({1: "x"}, {"1": "x"}),
        ({"a": np.arange(2)}, {"a": [0, 1]}),
    ],
)
def test_what_has_no_form_is_written_as_text_or_left_out_and_said(tmp_path, value, became):
    atoms = molecule("H2O")
    atoms.info = {"odd": value, "charge": 1}
    found, lost, said = read_back(tmp_path / "a.xyz", atoms)
    assert lost == {"odd"}
    assert ("left out" in said[0]) == (became is None)
    for read in found:
        assert read.info == ({"charge": 1} if became is None else {"odd": became, "charge": 1})


@pytest.mark.parametrize("shape", [(6,), (9,), (3, 3)])
def test_tensors_in_info_do_not_make_a_frame_unreadable(tmp_path, shape):
    atoms = bulk("Cu")
    full = np.array([[1.0, 2, 3], [2, 4, 5], [3, 5, 6]])
    given = {(6,): np.array([1.0, 4, 6, 5, 3, 2]), (9,): full.ravel(), (3, 3): full}[shape]
    atoms.info = {"virial": given.tolist(), "stress": given}
    for read in read_back(tmp_path / "a.xyz", atoms)[0]:
        assert (read.info["virial"] == full).all()
        np.testing.assert_array_equal(read.calc.results["stress"], [1, 4, 6, 5, 3, 2])
    atoms.info = {"virial": "none", "stress": [1.0, 2.0], "dipole": "large", "charge": 1}
    found, lost, _ = read_back(tmp_path / "b.xyz", atoms)
    assert lost == {"virial", "stress", "dipole"}
    for read in found:
        assert read.info == {"charge": 1}
        assert read.calc is None


def some_arrays(rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    return {
        "plain": rng.normal(size=n) * 1e-12,
        "vector": rng.normal(size=(n, 3)).astype(np.float32),
        "truth": rng.integers(0, 2, n).astype(bool),
        "truths": rng.integers(0, 2, (n, 3)).astype(bool),
        "int8": rng.integers(-100, 100, n).astype(np.int8),
        "uint8": rng.integers(0, 255, (n, 2)).astype(np.uint8),
        "with spaces": rng.normal(size=n),
        "a=b,c": rng.integers(0, 9, n),
        "it's": rng.integers(0, 9, n),
        "words": np.array([f"w{i}" for i in range(n)]),
        "objects": np.array([f"Å{i}" for i in range(n)], dtype=object),
        "holes": np.where(np.arange(n) % 2, np.nan, np.inf),
        "tags": rng.integers(0, 3, n),
        "momenta": rng.normal(size=(n, 3)),
        "masses": rng.random(n) + 1,
        "initial_magmoms": rng.normal(size=n),
        "initial_charges": rng.normal(size=n),
        "nine": rng.normal(size=(n, 9)),
    }


@pytest.mark.parametrize("formula", ["H2O", "C6H6", "H"])
def test_arrays_of_every_type_read_back_exactly(tmp_path, formula):
    atoms = molecule(formula) if formula != "H" else Atoms("H")
    for name, array in some_arrays(np.random.default_rng(0), len(atoms)).items():
        atoms.set_array(name, array)
    atoms.info["plain"] = "also a key"
    found, lost, said = read_back(tmp_path / "a.xyz", atoms)
    assert said == []
    for read in found:
        assert_equal(read, atoms, lost)
        assert read.arrays.keys() == atoms.arrays.keys()


def test_arrays_that_cannot_stand_in_columns_are_named_and_harm_nothing(tmp_path):
    atoms = molecule("H2O")
    kept = {"a": np.arange(9.0).reshape(3, 3), "kept": np.arange(3)}
    left = {
        "": np.arange(3),
        "a:b": np.arange(3),
        "a1": np.arange(3),  # the reader calls the second column of "a" so
        "pos0": np.arange(3),
        "species": np.arange(3),
        "Z": np.arange(3),
        "energy": np.arange(3.0),
        "imaginary": np.arange(3) * 1j,
        "empty words": np.array(["a", "", "b"]),
        "spaces": np.array(["a b", "c", "d"]),
        "mixed": np.array([1, "a", None], dtype=object),
        "huge": np.arange(3) + 2**60,
        "nothing": np.zeros((3, 0)),
    }
    for name, array in (kept | left).items():
        atoms.arrays[name] = array
    found, _, said = read_back(tmp_path / "a.xyz", atoms)
    assert said[0].count("left out") == 8
    assert f"and {len(left) - 8} more" in said[0]
    for read in found:
        assert set(read.arrays) == {"numbers", "positions", *kept}
        assert read.calc is None
        for name, array in kept.items():
            assert (read.arrays[name] == array).all()


def test_arrays_that_change_shape_or_type_are_written_and_named(tmp_path):
    atoms = molecule("H2O")
    given = {"tensors": np.arange(27.0).reshape(3, 3, 3), "one": np.arange(3.0)[:, None], "ids": np.arange(3) + 2**40}
    for name, array in given.items():
        atoms.arrays[name] = array
    found, lost, said = read_back(tmp_path / "a.xyz", atoms)
    assert lost == set(given)
    assert "left out" not in said[0]
    for read in found:
        for name, array in given.items():
            assert (read.arrays[name] == array.reshape(read.arrays[name].shape)).all()


def test_all_results_of_a_calculator_read_back(tmp_path):
    rng = np.random.default_rng(1)
    atoms = bulk("NaCl", "rocksalt", a=5.64)
    results = {
        "energy": -1.5, "free_energy": -1.6, "forces": rng.normal(size=(2, 3)), "stress": rng.normal(size=6),
        "dipole": rng.normal(size=3), "charges": rng.normal(size=2), "magmom": 0.25, "magmoms": rng.normal(size=2),
        "energies": rng.normal(size=2), "stresses": rng.normal(size=(2, 6)), "dielectric_tensor": rng.normal(size=(3, 3)),
        "polarization": rng.normal(size=3),
    }  # fmt: skip
    atoms.calc = SinglePointCalculator(atoms, **results)
    atoms.arrays["forces"] = np.zeros((2, 3))  # what a calculator holds too is written once: the calculator's
    for read in read_back(tmp_path / "a.xyz", atoms)[0]:
        assert read.calc.results.keys() == results.keys()
        for name, value in results.items():
            np.testing.assert_allclose(read.calc.results[name], value, rtol=0, atol=1e-8 if name == "forces" else 0)
    atoms.calc.results["born_effective_charges"] = rng.normal(size=(2, 3, 3))
    atoms.calc.results["node_energy"] = np.zeros(2)
    atoms.calc.results["dipole"] = None
    found, lost, _ = read_back(tmp_path / "b.xyz", atoms)
    assert lost == {"born_effective_charges", "node_energy"}
    assert "dipole" not in found[0].calc.results
    atoms.positions[0] += 0.1
    del atoms.arrays["forces"]
    found, _, said = read_back(tmp_path / "c.xyz", atoms)
    assert found[0].calc is None
    assert "results of a calculator left out, as they are of another geometry" in said[0]


def test_constraints_read_back_or_are_named(tmp_path):
    rng = np.random.default_rng(2)
    for number in range(20):
        atoms = molecule("C6H6")
        constraints = [FixAtoms(rng.choice(12, rng.integers(0, 12), replace=False))]
        if number % 2:
            mask = [rng.integers(0, 2, 3).astype(bool) for _ in range(2)]
            constraints += [FixCartesian(int(rng.integers(12)), mask[0]), FixCartesian([1, 2], mask[1])]
        atoms.set_constraint(constraints)
        expected = free_coordinates(atoms)
        found, lost, said = read_back(tmp_path / f"{number}.xyz", atoms)
        assert said == []
        for read in found:
            free = free_coordinates(read)
            assert (free is None) == (expected is None)
            assert free is None or (free == expected).all()
        assert len(found[1].constraints) <= 8  # one for each set of directions, not one an atom
    atoms.set_constraint([FixAtoms([0]), FixBondLength(0, 1), Hookean(2, 3, 5.0, 1.0)])
    found, lost, said = read_back(tmp_path / "odd.xyz", atoms)
    assert lost == {"FixBondLength", "Hookean"} or "FixBondLengths" in lost
    assert found[1].constraints[0].index.tolist() == [0]
    assert "left out" in said[0]


def test_losses_are_counted_by_structure(tmp_path):
    frames = [molecule("H2O") for _ in range(5)]
    for atoms in frames[:3]:
        atoms.info["tensor"] = b"x"
    said: list[str] = []
    write_extxyz(tmp_path / "a.xyz", frames, tell=said.append)
    assert said == [
        "Not everything is written as it was: info 'tensor' left out, as text cannot hold a bytes (3 structures)."
    ]
    with pytest.warns(UserWarning, match="info 'tensor' left out"):
        write_extxyz(tmp_path / "a.xyz", frames)


def test_an_ase_database_with_empty_texts_keeps_its_charges(tmp_path):
    with ase.db.connect(tmp_path / "a.db") as database:
        for index in range(4):
            data = {"name": "", "charge": -2, "label": "-2", "list": [1, 2], "deep": {"a": [None, "T"]}, "none": None}
            database.write(molecule("H2O"), key_value_pairs={"origin": "T1x"}, data={**data, "number": index})
    with Pool.open([tmp_path / "a.db"]) as pool:
        given = pool[:]
    assert given[0].info["name"] == ""
    assert write_extxyz(tmp_path / "a.xyz", given, tell=pytest.fail) == 4
    with Pool.open([tmp_path / "a.xyz"]) as pool:
        for before, after in zip(given, pool, strict=True):
            assert structure_hash(before) == structure_hash(after)
            assert_equal(after, before, set())
            assert after.info["charge"] == -2


@pytest.mark.parametrize("suffix", ["traj", "json", "cif", "extxyz"])
def test_what_other_readers_put_into_info_survives(tmp_path, suffix):
    atoms = bulk("NaCl", "rocksalt", a=5.64)
    if suffix != "cif":
        atoms.info = {"name": "", "charge": -2} if suffix != "extxyz" else {"charge": -2}
    ase.io.write(tmp_path / f"a.{suffix}", atoms)
    with Pool.open([tmp_path / f"a.{suffix}"]) as pool:
        given = pool[0]
    found, lost, _ = read_back(tmp_path / "b.xyz", given)
    assert lost <= {"spacegroup"}  # an object of ASE, of which the symbol is written
    for read in found:
        assert_equal(read, given, lost)


def test_ordinary_entries_are_written_as_ase_writes_them(tmp_path):
    atoms = bulk("NaCl", "rocksalt", a=5.64)
    atoms.info = {
        "charge": -1,
        "energy_above_hull": 0.25,
        "name": "rock salt",
        "smiles": "[Na+].[Cl-]",
        "done": True,
        "k": np.arange(3),
    }
    atoms.calc = SinglePointCalculator(atoms, energy=-1.5, forces=np.full((2, 3), 0.125))
    atoms.set_constraint(FixAtoms([1]))
    write_extxyz(tmp_path / "ours.xyz", [atoms])
    ase.io.write(tmp_path / "ase.xyz", atoms)
    assert (tmp_path / "ours.xyz").read_text().split() == (tmp_path / "ase.xyz").read_text().split()


def test_entries_are_one_line_of_text_whatever_they_hold():
    for text in TEXTS:
        written, lost = entry("key", text)
        assert not lost
        assert len(written.splitlines()) == 1 or "\x85" not in text
        written.encode()
