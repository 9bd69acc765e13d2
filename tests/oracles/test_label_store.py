"""The store: what goes in comes out, for several processes, and a full disk harms nothing."""

import json
import sqlite3
import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from selectron.errors import SelectronError
from selectron.oracles import ElectronicState, Label, LabelStore, make_oracle, parse_oracle, structure_key
from selectron.oracles.worker import Outcome

ORACLE = make_oracle(parse_oracle("gfn2-xtb"))


def outcome(atoms, energy_eV=-1.5, stress=None):
    random = np.random.default_rng(len(atoms))
    return Outcome(Label(energy_eV, random.normal(size=(len(atoms), 3)), stress), None, 1, 2.0, 3.0, {"tblite": "9"})


def put(store, atoms, result, state=ElectronicState()):  # noqa: B008  immutable
    store.put(atoms, structure_key(atoms, state), ORACLE.fingerprint, result)


def test_what_goes_in_comes_out_bit_for_bit_also_after_reopening(tmp_path):
    atoms, crystal = molecule("CH3OH"), bulk("MgO", "rocksalt", a=4.2)
    stress = np.arange(9.0).reshape(3, 3)
    with LabelStore(tmp_path / "l.db") as store:
        store.register(ORACLE)
        put(store, atoms, outcome(atoms))
        put(store, crystal, outcome(crystal, stress=stress))
    with LabelStore(tmp_path / "l.db") as store:
        for each, tensor in [(atoms, None), (crystal, stress)]:
            stored = store.get(structure_key(each, ElectronicState()).key, ORACLE.fingerprint)
            expected = outcome(each).label
            assert stored.label.energy_eV == expected.energy_eV
            assert (stored.label.forces == expected.forces).all()
            assert (stored.label.stress is None) if tensor is None else (stored.label.stress == tensor).all()
            assert (stored.attempts, stored.wall_s, stored.core_s) == (1, 2.0, 3.0)
            assert stored.versions == {"tblite": "9"}
        assert store.oracles() == {ORACLE.fingerprint: ("gfn2-xtb", ORACLE.settings)}
        assert store.spent().core_s == 6.0


def test_export_gives_the_structures_back(tmp_path):
    slab = bulk("MgO", "rocksalt", a=4.2)
    slab.pbc = [True, False, True]
    ion = molecule("CH3OH")
    with LabelStore(tmp_path / "l.db") as store:
        put(store, ion, outcome(ion), ElectronicState(1, 2))
        put(store, slab, outcome(slab, energy_eV=7.0))
        first, second = store.export(ORACLE.fingerprint)
    assert (first.numbers == ion.numbers).all()
    assert (first.positions == ion.positions).all()
    assert (first.info["charge"], first.info["multiplicity"]) == (1, 2)
    assert (second.pbc == slab.pbc).all()
    assert (second.cell.array == slab.cell.array).all()
    assert second.get_potential_energy() == 7.0
    assert (second.get_forces() == outcome(slab).label.forces).all()


def test_the_key_tells_charges_multiplicities_and_magnetic_moments_apart():
    atoms = molecule("O2")
    plain = atoms.copy()
    plain.arrays.pop("initial_magmoms", None)
    keys = {structure_key(plain, ElectronicState(*state)).key for state in [(0, 1), (0, 3), (1, 2), (1, 4)]}
    plain.set_initial_magnetic_moments([1.0, 1.0])
    keys.add(structure_key(plain, ElectronicState(0, 1)).key)
    plain.set_initial_magnetic_moments([1.0, -1.0])
    keys.add(structure_key(plain, ElectronicState(0, 1)).key)
    assert len(keys) == 6
    plain.set_initial_magnetic_moments([0.0, 0.0])
    unmagnetic = Atoms(plain.numbers, plain.positions)
    assert structure_key(plain, ElectronicState()).key == structure_key(unmagnetic, ElectronicState()).key


def test_lattice_vectors_of_open_directions_are_part_of_the_key_where_the_engine_sees_them():
    water, crystal = molecule("H2O"), bulk("MgO", "rocksalt", a=4.2)
    for ordinary in (water, crystal):  # whose labels are in stores that there are
        assert structure_key(ordinary, ElectronicState(), open_vectors=True) == structure_key(
            ordinary, ElectronicState()
        )
    for pbc in ([True, True, False], [False, False, False]):
        keys = []
        for length in (12.0, 12.00000001, 30.0, 30.000000001):
            slab = Atoms("BN", [[0, 0, 5], [1.25, 0.7, 5]], cell=[2.5, 2.5, length], pbc=pbc)
            keys.append([structure_key(slab, ElectronicState(), open_vectors=seen).key for seen in (False, True)])
        assert len({unseen for unseen, _ in keys}) == 1
        assert [len({seen for _, seen in keys[:n]}) for n in (1, 2, 3, 4)] == [1, 2, 3, 3]


def test_a_claim_keeps_others_away_until_its_process_is_gone(tmp_path):
    path = tmp_path / "l.db"
    claim = f"from selectron.oracles import LabelStore; print(LabelStore({str(path)!r}).claim('s', 'o', 'other'))"
    with LabelStore(path) as store:
        assert store.claim("s", "o", "me")
        assert store.claim("s", "o", "me")
        done = subprocess.run([sys.executable, "-c", claim], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "False"
        store.release("me")
        done = subprocess.run([sys.executable, "-c", claim], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "True"
        assert store.claim("s", "o", "me")  # the process that held it has ended


def test_a_full_disk_is_one_sentence_and_harms_no_label(tmp_path):
    """The limit on the size of files makes writes fail in the middle of a transaction as a full disk does."""
    path = tmp_path / "l.db"
    script = f"""
import resource, signal, sys
sys.path[:0] = {sys.path!r}
from test_label_store import *
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
store = LabelStore({str(path)!r})
for count in range(1, 2000):
    atoms = Atoms("H" * 50, np.random.default_rng(count).normal(size=(50, 3)))
    try:
        put(store, atoms, outcome(atoms, energy_eV=float(count)))
    except SelectronError as error:
        print(count - 1, error)
        break
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    count, _, sentence = done.stdout.partition(" ")
    assert int(count) > 30
    assert "disk is full" in sentence
    with LabelStore(path) as store:
        assert store.spent().labels == int(count)
        energies = [atoms.get_potential_energy() for atoms in store.export(ORACLE.fingerprint)]
        assert energies == [float(i + 1) for i in range(int(count))]
        water = molecule("H2O")
        put(store, water, outcome(water))
        assert store._connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_file_that_is_no_store_is_refused(tmp_path):
    path = tmp_path / "l.db"
    path.write_text("something else, and long enough to be looked at " * 100)
    with pytest.raises(SelectronError, match="no label store, or damaged"):
        LabelStore(path)
    assert path.read_text().startswith("something else")
    with pytest.raises(SelectronError, match="does not exist"):
        LabelStore(tmp_path / "nowhere" / "l.db")


MOLECULES = [molecule(name) for name in ("CH3OH", "H2O", "CO2", "NH3")]


def filled(path):
    """A store of four labels and a failure; gives the number that it was asked to keep for each structure."""
    with LabelStore(path) as store:
        store.register(ORACLE)
        for number, atoms in enumerate(MOLECULES):
            put(store, atoms, outcome(atoms, energy_eV=-float(number)))
        broken = molecule("C2H6")
        put(store, broken, Outcome(None, "it did not converge", 3, 1.0, 1.0, {"tblite": "9"}))
    return path


def got(store, atoms):
    return store.get(structure_key(atoms, ElectronicState()).key, ORACLE.fingerprint)


def change(path, sql, *values):
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(sql, values)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("energy_eV", "abc"),
        ("energy_eV", float("inf")),
        ("energy_eV", -0.0000001),
        ("energy_eV", b"\x00\x01"),
        ("forces", b"short"),
        ("forces", b""),
        ("forces", np.zeros((3, 3)).tobytes()),
        ("forces", 7),
        ("stress", b"1234"),
        ("stress", np.eye(3).tobytes()),
        ("attempts", "many"),
        ("wall_s", 2.5),
        ("versions", "{not json"),
        ("versions", '{"tblite": "8"}'),
        ("time", 5),
        ("checksum", None),
        ("checksum", "text"),
    ],
)
def test_a_label_that_is_not_what_was_written_is_never_used(tmp_path, column, value):
    """Whatever a column holds: told, set aside, bought again; the other labels are as they were."""
    path = filled(tmp_path / "l.db")
    change(path, f"UPDATE labels SET {column} = ? WHERE id = 2", value)
    with LabelStore(path) as store:
        assert got(store, MOLECULES[1]) is None
        (told,) = store.warnings
        assert told.startswith("Label 2 (")
        assert str(path) in told
        assert "damaged" in told
        assert "bought again" in told
        assert [got(store, atoms).label.energy_eV for atoms in (MOLECULES[0], *MOLECULES[2:])] == [0.0, -2.0, -3.0]
        origin, kept = store._connection.execute("SELECT origin, content FROM damaged").fetchone()
        assert origin == "labels"
        if column == "versions":
            assert value == json.loads(kept)["versions"]
        put(store, MOLECULES[1], outcome(MOLECULES[1], energy_eV=-1.0))
        assert got(store, MOLECULES[1]).label.energy_eV == -1.0
        assert store.spent().labels == 4
    with LabelStore(path) as store:
        assert got(store, MOLECULES[1]).label.energy_eV == -1.0
        assert store.warnings == []


def test_every_flipped_bit_of_a_label_is_noticed(tmp_path):
    """The bytes of the numbers themselves, in the file: SQLite reads them as other numbers and says nothing."""
    path = filled(tmp_path / "l.db")
    expected = {number: got(LabelStore(path), atoms) for number, atoms in enumerate(MOLECULES)}
    place = path.read_bytes().index(expected[2].label.forces.tobytes())
    random = np.random.default_rng(4)
    for bit in random.choice(8 * expected[2].label.forces.nbytes, 40, replace=False).tolist():
        damaged = tmp_path / f"{bit}.db"
        content = bytearray(path.read_bytes())
        content[place + bit // 8] ^= 1 << bit % 8
        damaged.write_bytes(content)
        with LabelStore(damaged) as store:
            assert [got(store, atoms) is None for atoms in MOLECULES] == [False, False, True, False]
            assert len(store.warnings) == 1


def test_failures_oracles_and_structures_that_are_damaged_are_set_aside(tmp_path):
    path = filled(tmp_path / "l.db")
    change(path, "UPDATE failures SET reason = 'it has converged'")
    change(path, "UPDATE oracles SET settings = '[]'")
    change(path, "UPDATE structures SET charge = 1 WHERE hash = ?", structure_key(MOLECULES[0], ElectronicState()).hash)
    with LabelStore(path) as store:
        assert store.failures() == []
        assert store.oracles() == {}
        store.register(ORACLE)
        assert store.oracles() == {ORACLE.fingerprint: ("gfn2-xtb", ORACLE.settings)}
        assert [len(atoms) for atoms in store.export(ORACLE.fingerprint)] == [3, 3, 4]
        assert [line.split()[0] for line in store.warnings] == ["Failure", "Oracle", "Structure", "Label"]
        put(store, MOLECULES[0], outcome(MOLECULES[0]))  # whoever has the structure puts it back
        assert len(list(store.export(ORACLE.fingerprint))) == 4


def without_checksums(path):
    """The file as earlier versions wrote it."""
    with closing(sqlite3.connect(path)) as connection, connection:
        for table in ("labels", "failures", "structures", "oracles"):
            connection.execute(f"ALTER TABLE {table} DROP COLUMN checksum")


def test_a_store_from_before_checksums_gets_them_and_what_cannot_be_right_is_set_aside(tmp_path):
    path = filled(tmp_path / "l.db")
    without_checksums(path)
    change(path, "UPDATE labels SET energy_eV = 'abc' WHERE id = 1")
    change(path, "UPDATE labels SET forces = ? WHERE id = 3", np.zeros((2, 3)).tobytes())
    with LabelStore(path) as store:
        assert store.warnings == [
            f"{path} is from before rows had checksums: 9 rows got one; 2 rows that cannot be right are set aside."
        ]
        assert [got(store, atoms) is None for atoms in MOLECULES] == [True, False, True, False]
    change(path, "UPDATE labels SET energy_eV = 5 WHERE id = 2")
    with LabelStore(path) as store:
        assert got(store, MOLECULES[1]) is None
        assert len(store.warnings) == 1
        assert got(store, MOLECULES[3]).label.energy_eV == -3.0


def test_an_index_that_does_not_fit_is_made_anew(tmp_path):
    """A flipped bit in an index hides a label, which would be bought twice."""
    path = filled(tmp_path / "l.db")
    key = structure_key(MOLECULES[1], ElectronicState()).key.encode()
    content = bytearray(path.read_bytes())
    places = [place for place in range(len(content)) if content.startswith(key + ORACLE.fingerprint.encode(), place)]
    table, index = sorted(places, key=lambda place: content[place - 1] == len(content))[:2]
    for place in (table, index):
        damaged = tmp_path / f"{place}.db"
        changed = content.copy()
        changed[place + 3] ^= 1
        damaged.write_bytes(changed)
        with LabelStore(damaged) as store:
            told = " ".join(store.warnings)
            assert "index" in told
            assert "made anew" in told
            found = got(store, MOLECULES[1])
            assert found is None or found.label.energy_eV == -1.0
            assert (found is None) == ("Label 2" in told)
            assert [got(store, atoms).label.energy_eV for atoms in (MOLECULES[0], *MOLECULES[2:])] == [0.0, -2.0, -3.0]


def test_damage_beyond_rows_is_one_sentence(tmp_path):
    path = filled(tmp_path / "l.db")
    content = path.read_bytes()
    cut = tmp_path / "cut.db"
    cut.write_bytes(content[: len(content) // 2])
    zeroed = tmp_path / "zeroed.db"
    zeroed.write_bytes(content[:8192] + bytes(8192) + content[16384:])
    for damaged in (cut, zeroed):
        with pytest.raises(SelectronError, match=f"{damaged}.*(damaged|put it back)"):
            LabelStore(damaged)


def test_a_claim_that_is_damaged_keeps_nobody_away(tmp_path):
    path = tmp_path / "l.db"
    with LabelStore(path) as store:
        assert store.claim("s", "o", "other")
        change(path, "UPDATE claims SET pid = 'x', beat = 'soon', host = 5")
        assert store.claim("s", "o", "me")


def test_a_table_with_other_columns_is_one_sentence(tmp_path):
    path = tmp_path / "l.db"
    change(path, "CREATE TABLE labels (id INTEGER PRIMARY KEY, energy REAL)")
    with pytest.raises(SelectronError, match=r"label store .*no such column"), LabelStore(path) as store:
        store.get("a", "b")
