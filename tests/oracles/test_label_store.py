"""The store: what goes in comes out, for several processes, and a full disk harms nothing."""

import subprocess
import sys

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
