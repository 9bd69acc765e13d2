"""``selectron inspect`` as a person and as a script run it."""

import json
import subprocess
import sys

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.io import write

from selectron.cli import inspect_table

REFERENCES = {"H": -13.6, "C": -1030.0, "O": -2041.0}
NAMES = ("H2O", "CH4", "CO2", "CH3OH", "C2H4", "H2CO")


def labelled(count, seed=0, energy="REF_energy", forces="REF_forces"):
    """Rattled molecules with made-up labels under these keys."""
    random = np.random.default_rng(seed)
    structures = []
    for i in range(count):
        atoms = molecule(NAMES[i % len(NAMES)])
        atoms.positions += random.normal(0, 0.03, atoms.positions.shape)
        value = sum(REFERENCES[s] for s in atoms.symbols) + 0.01 * len(atoms) * random.normal()
        rows = random.normal(0, 1, (len(atoms), 3))
        if energy == "energy":
            atoms.calc = SinglePointCalculator(atoms, energy=value, forces=rows)
        else:
            atoms.info[energy], atoms.arrays[forces] = value, rows
        structures.append(atoms)
    return structures


@pytest.fixture
def run(tmp_path, monkeypatch, command_line):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SELECTRON_CACHE", str(tmp_path / "cache"))
    return command_line


@pytest.fixture
def seen(run):
    """Inspects structures with more options; gives exit code, the JSON object and standard error."""

    def look(structures, options=""):
        write("pool.extxyz", structures)
        code, out, err = run(f"inspect pool.extxyz --json {options}")
        return code, json.loads(out), err

    return look


def test_an_object_for_scripts(seen):
    structures = labelled(12)
    structures.append(structures[3].copy())
    structures.append(Atoms("H2", [[0, 0, 0], [0, 0, 0.1]], info={"REF_energy": -27.0}))
    structures[-1].arrays["REF_forces"] = np.zeros((2, 3))
    structures += [Atoms(s, info={"REF_energy": e, "config_type": "IsolatedAtom"}) for s, e in REFERENCES.items()]
    code, found, err = seen(structures)
    assert code == 0, err
    assert found["frames"] == 17
    assert found["usable"] == 13
    assert found["refused"] == [
        {"file": "pool.extxyz", "index": 13, "reason": "H0 and H1 are 0.100 Å apart, closer than 0.4 Å"}
    ]
    assert found["label_source"] == {"energy": "REF_energy", "forces": "REF_forces", "stress": None}
    assert found["trainable"] is True
    assert found["why"] is None
    assert found["isolated_atoms"] == 3
    assert found["isolated_energies_eV"] == {s: [e] for s, e in REFERENCES.items()}
    assert found["duplicates"] == 1
    assert found["elements"]["C"] == {"structures": 11, "atoms": 13}
    assert list(found["elements"]) == ["H", "C", "O"]
    assert found["atoms"] == {"count": 13, "min": 3, "median": 5, "max": 6}
    assert found["periodicity"] == {"molecule": 13}
    assert found["charges"] == found["multiplicities"] == {}
    assert found["assumed"] == {"charge": 13, "multiplicity": 13}
    energies = [one.info["REF_energy"] / len(one) for one in structures[:13]]
    assert found["energies"]["per_atom_eV"]["min"] == pytest.approx(min(energies))
    largest = [np.linalg.norm(one.arrays["REF_forces"], axis=1).max() for one in structures[:13]]
    assert found["forces"]["largest_eV_A"]["max"] == pytest.approx(max(largest), abs=1e-6)


def test_charges_and_multiplicities_are_counted_by_value(seen):
    stated = [{"charge": -1}, {"total_charge": 1, "spin_multiplicity": 2}, {"charge": 0, "multiplicity": 1}, {}]
    structures = [molecule("H2O") for _ in stated]
    for atoms, info in zip(structures, stated, strict=True):
        atoms.info |= info
    structures.append(molecule("CH4"))
    structures[-1].info |= {"charge": 0, "net_charge": -1}
    code, found, _ = seen(structures)
    assert code == 0
    assert found["charges"] == {"-1": 1, "0": 1, "1": 1}
    assert found["multiplicities"] == {"1": 1, "2": 1}
    assert found["assumed"] == {"charge": 1, "multiplicity": 2}
    assert found["charge_keys"] == {"charge": 2, "total_charge": 1, "spin_multiplicity": 1, "multiplicity": 1}
    assert found["odd_electrons"] == 1  # the anion, of which nothing says that it is a doublet
    assert found["duplicates"] == 3
    assert found["duplicates_other_charge"] == 2  # to state nothing is to be neutral
    assert [one["index"] for one in found["refused"]] == [4]
    assert "contradict" in found["refused"][0]["reason"]


def test_a_pool_without_labels_is_no_fault(seen):
    code, found, err = seen([molecule("H2O"), bulk("Cu")])
    assert code == 0, err
    assert found["label_source"] is None
    assert found["trainable"] is False
    assert found["energies"] is None
    assert found["periodicity"] == {"molecule": 1, "crystal": 1}


@pytest.mark.parametrize("case", ["two sources", "text", "not finite", "no forces", "some without", "weight"])
def test_labels_that_train_refuses_end_with_its_sentence(case, seen):
    structures = labelled(6)
    if case == "two sources":
        structures[3:] = labelled(3, energy="energy", forces="forces")
    elif case == "text":
        structures[2].info["REF_energy"] = "-5.0 eV"
    elif case == "not finite":
        structures[2].arrays["REF_forces"][0, 0] = np.nan
    elif case == "weight":
        structures[2].info["config_weight"] = -1.0
    else:
        for atoms in structures if case == "no forces" else structures[2:3]:
            del atoms.arrays["REF_forces"]
    code, found, err = seen(structures)
    assert code == 2
    assert found["frames"] == 6
    assert found["trainable"] is False
    assert f"Error: {found['why']}\n" in err
    assert "REF_energy" in err or "REF_forces" in err or "config_weight" in err
    if case in ("text", "not finite", "weight"):
        assert [one["index"] for one in found["refused"]] == [2]
        assert found["usable"] == 5
        assert "tructure 2 of the training set" in found["why"]


def test_what_cannot_be_read_is_refused(run, tmp_path):
    write("pool.extxyz", labelled(3))
    text = (tmp_path / "pool.extxyz").read_text().split("\n")
    text[2] = "X" + text[2]
    (tmp_path / "pool.extxyz").write_text("\n".join(text))
    code, out, err = run("inspect pool.extxyz --json")
    found = json.loads(out)
    assert code == 2
    assert found["usable"] == 2
    assert [one["index"] for one in found["refused"]] == [0]
    assert "cannot be read" in err


def test_keys_are_named_as_train_has_them(seen):
    structures = labelled(6)
    for atoms in structures:
        atoms.info["dft_energy"] = 2 * atoms.info["REF_energy"]
        atoms.arrays["dft_forces"] = atoms.arrays["REF_forces"]
    code, found, _ = seen(structures, "--energy-key dft_energy")
    assert code == 0
    assert found["label_source"] == {"energy": "dft_energy", "forces": "dft_forces", "stress": None}
    assert found["energies"]["per_atom_eV"]["max"] == pytest.approx(
        max(2 * one.info["REF_energy"] / len(one) for one in structures)
    )
    code, found, err = seen(structures, "--energy-key pbe_energy")
    assert code == 2
    assert "pbe_energy" in err


def test_structures_of_several_heads_are_what_train_refuses(seen):
    structures = labelled(6)
    for i, atoms in enumerate(structures):
        atoms.info["head"] = ("pbe", "wb97x")[i % 2]
    code, found, err = seen(structures)
    assert (code, found["trainable"]) == (2, False)
    assert "pbe in 3 and wb97x in 3; name one of them with --head" in found["why"]
    assert found["why"] in " ".join(err.split())
    assert seen(structures, "--head pbe")[0] == 0


def test_wrong_energies_and_large_forces_are_named(seen):
    structures = labelled(60)
    structures[31].info["REF_energy"] += 37.0
    structures[7].arrays["REF_forces"][1] = [0.0, 60.0, 0.0]
    code, found, _ = seen(structures)
    assert code == 0
    assert found["energies"]["outliers"] == 1
    (worst,) = found["energies"]["worst"]
    assert (worst["file"], worst["index"], worst["formula"]) == ("pool.extxyz", 31, "CH4")
    assert worst["value"] == pytest.approx(37.0 / 5, abs=0.1)
    assert found["forces"]["large"] == 1
    assert found["forces"]["worst"][0]["index"] == 7
    assert found["forces"]["worst"][0]["value"] == pytest.approx(60.0)


def test_energies_that_count_for_nothing_are_not_in_the_ranges(seen):
    structures = labelled(24)
    for atoms in structures[::2]:
        atoms.info["REF_energy"] += 500.0
        atoms.info["config_energy_weight"] = 0.0
    code, found, _ = seen(structures)
    assert code == 0
    assert found["energies"]["ignored"] == 12
    assert found["energies"]["outliers"] == 0
    assert found["energies"]["per_atom_eV"]["count"] == 12
    assert found["weights"]["config_energy_weight"]["zeros"] == 12


def test_the_table_has_100_columns_and_says_what_there_is(run, monkeypatch):
    structures = labelled(30)
    structures[3].info["REF_energy"] -= 50.0
    for i, atoms in enumerate(structures):
        atoms.info |= {"level": "PBE/def2-SVP" if i % 2 else "PBE/def2-TZVP", "charge": -1 if i == 5 else 0}
    structures.append(Atoms("O", info={"REF_energy": -2041.0}))
    structures.append(molecule("H2O"))
    structures[-1].positions[0] = structures[-1].positions[1]
    write("a.extxyz", structures)
    write("b.extxyz", [structures[0]])
    code, out, err = run("inspect a.extxyz b.extxyz")
    assert code == 2  # the broken water has no labels
    lines = out.splitlines()
    assert max(map(len, lines)) <= 100
    assert out.isascii() or "\ue000" not in out
    for text in (
        "33: 31 usable, 1 isolated atom and 1 refused",
        "structure 31 of a.extxyz",
        "structure 3 of a.extxyz, CH4O",
        "charge: -1 in 1, 0 in 30",
        "level: PBE/def2-TZVP 16, PBE/def2-SVP 15",
        "O -2041.000 eV",
        "1 structure with the same atoms in the same places",
        "selectron train would refuse this",
    ):
        assert text in " ".join(out.split()), text
    assert "reading: 33/33 done" in err
    assert inspect_table._duration(7200.0) == "2.0 h"


def test_missing_files_are_one_sentence(run):
    code, out, err = run("inspect nothing.xyz --json")
    assert (code, out) == (2, "")
    assert err == "Error: there is no file nothing.xyz.\n"


def test_torch_is_not_imported_without_a_model(tmp_path):
    write(tmp_path / "pool.extxyz", labelled(3))
    script = (
        "import sys\nfrom selectron.cli import main\n"
        "try:\n    main(['inspect', 'pool.extxyz', '--json'])\n"
        "except SystemExit as end:\n    print(end.code, 'torch' in sys.modules, 'mace' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.stderr.splitlines()[-1] == "0 False False"
    assert json.loads(done.stdout)["usable"] == 3


def test_a_model_tells_errors_shift_and_the_worst(run, tiny_model):
    from selectron.potentials import load_potential

    potential = load_potential(tiny_model, dtype="float64")
    shift = {"H": 0.5, "C": -3.0, "O": 20.0}
    structures = labelled(40, seed=4)
    for atoms in structures:
        evaluation = potential.evaluate(potential.batch([atoms]))
        atoms.info["REF_energy"] = float(evaluation.energies[0]) + sum(shift[s] for s in atoms.symbols)
        atoms.arrays["REF_forces"] = evaluation.forces.double().numpy()
    structures[11].info["REF_energy"] += 7.0
    structures[4].arrays["REF_forces"][0, 0] += 3.0
    structures.append(molecule("NH3"))
    structures[-1].info["REF_energy"], structures[-1].arrays["REF_forces"] = -1500.0, np.zeros((4, 3))
    write("pool.extxyz", structures)
    code, out, err = run(f"inspect pool.extxyz --json --model {tiny_model} --all")
    found = json.loads(out)
    model = found["model"]
    assert code == 2
    assert "does not know N" in err
    assert model["lacking"] == {"N": 1}
    assert model["structures"] == model["of"] == 40
    for symbol, value in shift.items():
        assert model["shift"][symbol]["eV"] == pytest.approx(value, abs=0.05)
    assert {model["worst"][0]["index"], model["worst"][1]["index"]} == {4, 11}
    assert {one["index"]: one["why"] for one in model["worst"][:2]} == {4: "forces", 11: "energy"}
    (off,) = [one["energy_meV_atom"] for one in model["worst"] if one["index"] == 11]
    assert off == pytest.approx(-7000.0 / len(structures[11]), rel=0.05)
    assert model["before"]["energy_mae_meV_atom"] > 100 * model["after"]["energy_mae_meV_atom"]
    assert model["before"]["force_rmse_eV_A"] == pytest.approx(
        3.0 / np.sqrt(3 * sum(map(len, structures[:40]))), rel=1e-3
    )
    code, out, err = run(f"inspect pool.extxyz --model {tiny_model} --sample 15")
    assert "15 of 40, drawn by chance" in out
    assert max(map(len, out.splitlines())) <= 100


@pytest.mark.skip
def test_fixed_atoms_are_shown(seen):
    slab = bulk("Cu") * (1, 1, 2)
    slab.set_constraint(FixAtoms([0]))
    code, found, _ = seen([slab, bulk("Cu")])
    assert code == 0
    assert found["constraints"] == {"structures": 1, "atoms": 1}
