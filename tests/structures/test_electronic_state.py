"""Charge and multiplicity under the names that programs and data sets use."""

import ase.db
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator

from selectron.structures import Pool, write_extxyz
from selectron.structures.electronic_state import StateError, named, state_info, stated, with_state


def oxygen(info=None, **arrays):
    atoms = Atoms("O2", [[0, 0, 0], [0, 0, 1.2]], info=info or {})
    for name, values in arrays.items():
        atoms.set_array(name, np.array(values, dtype=float))
    return atoms


def state(atoms):
    found = stated(atoms)
    return found.charge, found.multiplicity


@pytest.mark.parametrize(
    "key", ["charge", "Charge", "total_charge", "net_charge", "molecular_charge", "TotalCharge", "netCharge"]
)
@pytest.mark.parametrize(
    "value", [-2, -2.0, "-2", " -2.0 ", np.int64(-2), np.float32(-2), np.array([-2]), np.array(-2)]
)
def test_a_charge_has_many_names_and_types(key, value):
    found = stated(oxygen({key: value}))
    assert (found.charge, found.multiplicity, found.charge_from) == (-2, None, (key,))


@pytest.mark.parametrize(
    "key",
    ["multiplicity", "spin_multiplicity", "molecular_multiplicity", "mult", "spin", "total_spin", "Multiplicity"],
)
def test_all_names_of_a_multiplicity_mean_2s_plus_1(key):
    assert state(oxygen({key: 3})) == (None, 3)


def test_sums_of_initial_charges_and_of_initial_moments():
    assert state(oxygen(initial_charges=[-1.5, -0.5])) == (-2, None)
    assert state(oxygen(initial_charges=[-1.0004, -0.9997])) == (-2, None)
    assert state(oxygen(initial_magmoms=[1, 1])) == (None, 3)
    assert state(oxygen(initial_magmoms=[-2, 1])) == (None, 2)
    for nothing in ([0, 0], [1, -1]):
        assert state(oxygen(initial_charges=nothing, initial_magmoms=nothing)) == (None, None)
    assert stated(molecule("O2")).multiplicity == 3  # ASE's own molecules carry their moments


def test_moments_are_a_start_and_yield_to_a_key_that_is_told_of():
    found = stated(oxygen({"multiplicity": 1}, initial_magmoms=[1, 1]))
    assert found.multiplicity == 1
    assert [one.key for one in found.unread_multiplicity] == ["initial_magmoms"]
    assert not stated(oxygen({"multiplicity": 3}, initial_magmoms=[1, 1])).unread_multiplicity


@pytest.mark.parametrize(
    ("info", "arrays", "says"),
    [
        ({"charge": 0, "total_charge": -2}, {}, "charge=0 and total_charge=-2 contradict"),
        ({"spin": 1, "mult": 3}, {}, "spin=1 and mult=3 contradict"),
        ({"comment": "-1 2", "charge": -2}, {}, 'charge=-2 and the comment line "-1 2" contradict'),
        ({"charge": -1}, {"initial_charges": [-1, -1]}, "charge=-1 and the sum -2 of initial_charges contradict"),
    ],
)
def test_contradictions_name_both_keys(info, arrays, says):
    with pytest.raises(StateError, match=says):
        stated(oxygen(info, **arrays))
    assert named(oxygen(info, **arrays)) == info


def test_several_names_may_say_the_same():
    found = stated(
        oxygen({"charge": -2, "total_charge": "-2.0", "spin": 1, "multiplicity": 1}, initial_charges=[-1, -1])
    )
    assert (found.charge, found.multiplicity) == (-2, 1)
    assert found.charge_from == ("charge", "total_charge", "initial_charges")


@pytest.mark.parametrize("value", [0.5, "two", "2-", True, float("nan"), float("inf"), [1, 2], "-2+"])
def test_a_charge_that_is_no_whole_number_is_refused(value):
    with pytest.raises(StateError, match=r"charge is .*, not a whole number"):
        stated(oxygen({"charge": value}))


@pytest.mark.parametrize("value", [None, "", "None", np.array([])])
def test_an_empty_value_states_nothing(value):
    assert state(oxygen({"charge": value, "spin": value})) == (None, None)


def test_a_multiplicity_is_at_least_one():
    with pytest.raises(StateError, match="spin is 0, but a multiplicity"):
        stated(oxygen({"spin": 0}))


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        *(
            (key, -2, "charge")
            for key in ("q", "chg", "tot_charge", "formal_charge", "Charge(e)", "REF_charge", "Q_tot")
        ),
        *((key, 2, "multiplicity") for key in ("uhf", "S", "2S", "unpaired_electrons", "spin_state", "total_magmom")),
        ("charge_state", "2-", "charge"),
        ("mulliken_charges", [-0.9, -1.1], "charge"),
    ],
)
def test_keys_that_are_not_understood_are_named(key, value, what):
    found = stated(oxygen({key: value}))
    assert (found.charge, found.multiplicity) == (None, None)
    unread = found.unread_charge if what == "charge" else found.unread_multiplicity
    assert [(one.key, one.telling) for one in unread] == [(key, True)]


@pytest.mark.parametrize(
    "info",
    [
        {"q": 0, "S": 0, "uhf": 0, "formal_charge": 0.0, "smult": 1},
        {"spin_polarized": False, "charge_model": None},
        {"config_charges_weight": 2.0, "name": "x", "energy": -3.0, "smiles": "[O][O]", "seed": 7},
    ],
)
def test_what_is_plainly_neutral_or_about_something_else_is_not_named(info):
    found = stated(oxygen(info))
    assert not found.unread_charge
    assert not found.unread_multiplicity


def test_a_setting_is_named_without_being_telling():
    (one,) = stated(oxygen({"charge_model": "Mulliken"})).unread_charge
    assert not one.telling
    (one,) = stated(oxygen({"spin_polarized": True})).unread_multiplicity
    assert not one.telling


def test_partial_charges_and_moments_of_a_calculator_count_where_nothing_else_is_known():
    atoms = oxygen()
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0, magmom=2.0, charges=np.array([-0.95, -1.02]))
    found = stated(atoms)
    assert [one.key for one in (*found.unread_charge, *found.unread_multiplicity)] == ["charges", "magmom"]
    atoms.info = {"charge": -2, "spin": 3}
    found = stated(atoms)
    assert (found.unread_charge, found.unread_multiplicity) == ((), ())


@pytest.mark.parametrize(
    ("line", "charge", "multiplicity"),
    [("-2 1", -2, 1), ("0 3", 0, 3), ("1 1", 1, 1), ("  -2\t1 ", -2, 1), ("-1, 2", -1, 2), ("+1 2", 1, 2)],
)
def test_a_comment_line_of_two_whole_numbers(tmp_path, line, charge, multiplicity):
    (tmp_path / "a.xyz").write_text(f"2\n{line}\nO 0 0 0\nO 0 0 1.2\n")
    with Pool.open([tmp_path / "a.xyz"]) as pool:
        atoms = pool[0]
    assert stated(atoms)[:4] == (charge, multiplicity, ("comment line",), ("comment line",))
    write_extxyz(tmp_path / "b.extxyz", [atoms])
    with Pool.open([tmp_path / "b.extxyz"]) as pool:
        assert state(pool[0]) == (charge, multiplicity)
    assert with_state(named(atoms), charge, multiplicity) == {"charge": charge, "multiplicity": multiplicity}


def test_the_flags_that_an_earlier_version_wrote_of_such_a_line(tmp_path):
    (tmp_path / "a.extxyz").write_text('2\nProperties=species:S:1:pos:R:3 -2=T 1=T pbc="F F F"\nO 0 0 0\nO 0 0 1.2\n')
    with Pool.open([tmp_path / "a.extxyz"]) as pool:
        assert state(pool[0]) == (-2, 1)


@pytest.mark.parametrize("line", ["-2 1 sulfate", "3 100", "1 2 3", "-2", "12 1"])
def test_other_comment_lines_of_numbers_are_named_and_not_read(tmp_path, line):
    (tmp_path / "a.xyz").write_text(f"2\n{line}\nO 0 0 0\nO 0 0 1.2\n")
    with Pool.open([tmp_path / "a.xyz"]) as pool:
        found = stated(pool[0])
    assert (found.charge, found.multiplicity) == (None, None)
    assert [(one.key, one.telling) for one in found.unread_charge] == [("comment line", True)]


@pytest.mark.parametrize("line", ["", "7", "0 1 water", "frame 12", "generated by x"])
def test_other_comment_lines_say_nothing(tmp_path, line):
    (tmp_path / "a.xyz").write_text(f"2\n{line}\nO 0 0 0\nO 0 0 1.2\n")
    with Pool.open([tmp_path / "a.xyz"]) as pool:
        assert stated(pool[0]) == (None, None, (), (), (), ())


def test_words_without_an_equals_sign_are_refused(tmp_path):
    (tmp_path / "a.xyz").write_text("2\ncharge -2 mult 1\nO 0 0 0\nO 0 0 1.2\n")
    with Pool.open([tmp_path / "a.xyz"]) as pool, pytest.raises(StateError, match="charge is True"):
        stated(pool[0])


@pytest.mark.parametrize("name", ["a.db", "a.json"])
def test_rows_of_an_ase_database_say_what_was_written(tmp_path, name):
    """row.charge of ASE 3.29 is the sum of initial charges, and hides a key-value pair of that name."""
    with ase.db.connect(tmp_path / name) as database:
        database.write(oxygen(), charge=-2, spin=3)
        database.write(oxygen(), data={"charge": -2, "multiplicity": 1})
        database.write(oxygen(initial_charges=[-1, -1], initial_magmoms=[1, 0]))
        database.write(oxygen(), total_charge=1)
        database.write(oxygen())
    with Pool.open([tmp_path / name]) as pool:
        assert [state(atoms) for atoms in pool] == [(-2, 3), (-2, 1), (-2, 2), (1, None), (None, None)]


def test_one_name_is_written_and_other_spellings_stay_beside_it():
    atoms = oxygen({"total_charge": -2, "spin": 1.0, "name": "x"})
    assert named(atoms) == {"total_charge": -2, "spin": 1.0, "name": "x", "charge": -2, "multiplicity": 1}
    assert state_info(atoms) == {"total_charge": -2, "spin": 1.0, "charge": -2, "multiplicity": 1}
    assert state_info(oxygen({"q": -2, "name": "x"})) == {"q": -2}
    assert state_info(oxygen({"comment": "0 3"})) == {"comment": "0 3", "charge": 0, "multiplicity": 3}
    assert state_info(oxygen({"comment": "of the sun"})) == {}
    assert state_info(oxygen({"comment": "0 3", "charge": 1})) == {"comment": "0 3", "charge": 1}
