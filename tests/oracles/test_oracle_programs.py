"""Programs behind ASE calculators: the real ones where they are installed (Debian: cp2k, quantum-espresso)."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import strange_calculators
from ase import Atoms
from ase.build import molecule

from selectron.oracles import OracleFailure, make_oracle, parse_oracle

CP2K_DATA = Path("/usr/share/cp2k")
PSEUDO = Path("/usr/share/espresso/pseudo")
CP2K = {
    "kind": "ase",
    "calculator": "ase.calculators.cp2k:CP2K",
    "arguments": {
        "command": "cp2k_shell.psmp",
        "xc": "PBE",
        "basis_set": "DZVP-MOLOPT-SR-GTH",
        "pseudo_potential": "GTH-PBE",
        "cutoff": 4000,
        "charge": "{charge}",
        "multiplicity": "{multiplicity}",
    },
}
ESPRESSO = {
    "kind": "ase",
    "calculator": "ase.calculators.espresso:Espresso",
    "arguments": {
        "pseudopotentials": {"O": "O.pbe-kjpaw.UPF", "H": "H.pbe-kjpaw.UPF"},
        "input_data": {"control": {"tprnfor": True}, "system": {"ecutwfc": 40}, "electrons": {"conv_thr": 1e-9}},
        "profile": {
            "import": "ase.calculators.espresso:EspressoProfile",
            "arguments": {"command": "pw.x", "pseudo_dir": str(PSEUDO)},
        },
    },
}
REAL = [
    pytest.param(
        CP2K,
        marks=pytest.mark.skipif(shutil.which("cp2k_shell.psmp") is None, reason="cp2k_shell.psmp is not installed"),
        id="cp2k",
    ),
    pytest.param(
        ESPRESSO,
        marks=pytest.mark.skipif(
            shutil.which("pw.x") is None or not (PSEUDO / "O.pbe-kjpaw.UPF").exists(), reason="pw.x is not installed"
        ),
        id="espresso",
    ),
]


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CP2K_DATA_DIR", str(CP2K_DATA))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def water(x: float = 0.0) -> Atoms:
    """A molecule in a box, its first hydrogen moved along the bond by ``x`` Å."""
    atoms = molecule("H2O", cell=[5.5, 6.0, 6.5], pbc=True)
    atoms.center()
    bond = atoms.positions[1] - atoms.positions[0]
    atoms.positions[1] += (0.05 + x) * bond / np.linalg.norm(bond)
    return atoms


def test_a_program_that_stays_open_is_closed_and_does_not_remember(in_folder):
    oracle = make_oracle(parse_oracle({"kind": "ase", "calculator": "strange_calculators:Held"}))
    before = strange_calculators.Held.closed
    assert [oracle.label(water()).energy_eV for _ in range(3)] == [0.0, 0.0, 0.0]
    assert strange_calculators.Held.closed == before + 3
    with pytest.raises(OracleFailure, match=r"no answer \(end of held.out: .*\[ABORT\] the licence server is asleep\)"):
        oracle.label(Atoms("Kr"))
    assert strange_calculators.Held.closed == before + 4
    assert oracle.label(water()).energy_eV == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("description", REAL)
def test_forces_are_derivatives_and_a_label_does_not_depend_on_the_one_before(description, in_folder):
    oracle = make_oracle(parse_oracle(description))
    oracle.prepare()
    found = [oracle.label(water(x)) for x in (-0.02, 0.02, 0.0)]
    again = oracle.label(water(-0.02))
    assert again.energy_eV == pytest.approx(found[0].energy_eV, abs=1e-9)
    bond = water().positions[1] - water().positions[0]
    along = found[2].forces[1] @ bond / np.linalg.norm(bond)
    slope = (found[1].energy_eV - found[0].energy_eV) / 0.04
    assert along == pytest.approx(-slope, abs=0.02)  # eV/Å, of 1.5: the plane waves are few


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cp2k_shell.psmp") is None, reason="cp2k_shell.psmp is not installed")
def test_cp2k_says_what_is_wrong_with_a_radical_and_labels_it_unrestricted(in_folder):
    radical = molecule("OH", cell=[5.5, 6.0, 6.5], pbc=True)
    radical.center()
    radical.info["multiplicity"] = 2
    with pytest.raises(OracleFailure, match="Use the LSD option for an odd number of electrons"):
        make_oracle(parse_oracle(CP2K)).label(radical)
    unrestricted = {**CP2K, "arguments": {**CP2K["arguments"], "uks": True}}
    label = make_oracle(parse_oracle(unrestricted)).label(radical)
    assert label.energy_eV < -400.0
    assert label.forces is not None


def test_constraints_do_not_reach_a_calculator_and_forces_are_those_of_the_engine():
    from ase.build import fcc111
    from ase.calculators.emt import EMT
    from ase.constraints import FixAtoms

    slab = fcc111("Cu", (1, 1, 3), vacuum=6.0)
    slab.positions[0, 2] += 0.1
    slab.calc = EMT()
    expected = slab.get_forces()
    slab.set_constraint(FixAtoms([0, 1]))
    label = make_oracle(parse_oracle("ase:ase.calculators.emt:EMT")).label(slab)
    np.testing.assert_allclose(label.forces, expected, atol=1e-12)
    assert np.abs(label.forces[0]).max() > 0.1
    assert slab.constraints[0].index.tolist() == [0, 1]
