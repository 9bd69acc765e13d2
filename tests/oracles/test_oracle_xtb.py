"""Tight binding: forces are derivatives of energies, every recipe is the same level, electrons are counted."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, graphene, molecule
from ase.units import Bohr
from tblite.ase import TBLite
from tblite.interface import Calculator

from selectron.oracles import OracleFailure, make_oracle, parse_oracle
from selectron.oracles.xtb import in_vacuum


def ethanol():
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.1, seed=3)
    return atoms


def dry_ice():
    """Solid CO2, Pa-3, four molecules in a cube."""
    sites = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    axes = np.array([[1, 1, 1], [-1, -1, 1], [-1, 1, -1], [1, -1, -1]]) * 0.118
    return Atoms("C4O8", scaled_positions=np.concatenate([sites, sites + axes, sites - axes]), cell=[5.6] * 3, pbc=True)


def unconverging():
    """Transition metals in a heap: tblite's first recipe does not converge."""
    random = np.random.RandomState(1)
    return Atoms("Cr2O8C6", random.rand(16, 3) * 6)


@pytest.mark.parametrize("kind", ["gfn2-xtb", "gfn1-xtb"])
def test_forces_are_minus_the_derivative_of_the_energy(kind):
    oracle = make_oracle(parse_oracle(f"{kind}?accuracy=0.01"))
    atoms, step = ethanol(), 3e-4
    forces = oracle.label(atoms).forces
    for atom, axis in [(0, 0), (2, 1), (5, 2)]:
        energies = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[atom, axis] += sign * step
            energies.append(oracle.label(moved).energy_eV)
        assert forces[atom, axis] == pytest.approx(-(energies[0] - energies[1]) / (2 * step), abs=2e-5)


@pytest.mark.parametrize(
    ("atoms", "charge", "multiplicity"),
    [(ethanol(), 0, 1), (ethanol(), 1, 2), (molecule("CH3"), 0, 2), (molecule("O2"), 0, 3), (molecule("OH"), -1, 1)],
)
@pytest.mark.parametrize("method", ["GFN2-xTB", "GFN1-xTB"])
def test_agrees_with_the_ase_calculator_of_tblite(atoms, charge, multiplicity, method):
    reference = atoms.copy()
    reference.calc = TBLite(method=method, charge=charge, multiplicity=multiplicity, verbosity=0)
    label = make_oracle(parse_oracle(method.lower(), charge=charge, multiplicity=multiplicity)).label(atoms)
    assert label.energy_eV == pytest.approx(reference.get_potential_energy(), abs=1e-6)
    np.testing.assert_allclose(label.forces, reference.get_forces(), atol=1e-4)
    assert label.stress is None


def test_stress_of_a_crystal_is_the_derivative_of_the_energy_in_the_strain():
    crystal = dry_ice()
    oracle = make_oracle(parse_oracle("gfn1-xtb?accuracy=0.01"))
    stress, step = oracle.label(crystal).stress, 1e-3
    for i, j in [(0, 0), (0, 1)]:
        energies = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[i, j] += sign * step / 2
            strain[j, i] += sign * step / 2
            strained = crystal.copy()
            strained.set_cell(crystal.cell.array @ strain, scale_atoms=True)
            energies.append(oracle.label(strained).energy_eV)
        expected = (energies[0] - energies[1]) / (2 * step) / crystal.get_volume()
        assert stress[i, j] == pytest.approx(expected, abs=2e-5)


def sheet(open_vector=15.0):
    """Boron nitride, eight atoms, corrugated; periodic in two directions."""
    atoms = graphene("BN", a=2.5, size=(2, 2, 1), vacuum=5.0)
    atoms.rattle(0.05, seed=1)
    atoms.cell[2] = [0.0, 0.0, open_vector]
    atoms.pbc = [True, True, False]
    return atoms


def test_tblite_takes_a_slab_for_a_crystal_and_so_it_is_refused():
    """tblite 0.8.0; where this fails, tblite has learned what an open direction is, and slabs need not be refused."""
    energies = []
    for pbc in ([True, True, False], [True, True, True]):
        atoms = sheet(8.0)
        atoms.pbc = pbc
        lattice = {"lattice": atoms.cell.array / Bohr, "periodic": atoms.pbc}
        calculator = Calculator("GFN2-xTB", atoms.numbers, atoms.positions / Bohr, **lattice)
        calculator.set("verbosity", 0)
        energies.append(float(calculator.singlepoint().get("energy")))
    assert energies[0] == energies[1]
    for pbc in ([True, True, False], [True, False, False]):
        atoms = sheet()
        atoms.pbc = pbc
        with pytest.raises(OracleFailure, match=r"periodic in \d of 3 directions.*all three.*vacuum_A") as failure:
            make_oracle(parse_oracle("gfn2-xtb")).label(atoms)
        assert failure.value.final


@pytest.mark.parametrize("kind", ["gfn2-xtb", "gfn1-xtb"])
def test_a_slab_with_a_given_vacuum_is_labelled_as_the_crystal_with_that_vacuum(kind):
    oracle = make_oracle(parse_oracle(f"{kind}?vacuum_A=11.5"))
    slab = sheet()
    crystal = slab.copy()
    crystal.cell[2, 2] = np.ptp(slab.positions[:, 2]) + 11.5
    crystal.pbc = True
    found, expected = oracle.label(slab), make_oracle(parse_oracle(kind)).label(crystal)
    assert found.energy_eV == pytest.approx(expected.energy_eV, abs=1e-9)
    np.testing.assert_allclose(found.forces, expected.forces, atol=1e-9)
    assert found.stress is None
    assert expected.stress is not None
    assert oracle.label(sheet(40.0)).energy_eV == found.energy_eV  # whatever the file says of the open direction
    assert oracle.fingerprint != make_oracle(parse_oracle(kind)).fingerprint
    for other in (crystal, ethanol()):  # the vacuum is for open directions
        assert oracle.label(other).energy_eV == make_oracle(parse_oracle(kind)).label(other).energy_eV


def test_the_vacuum_is_perpendicular_to_what_is_periodic_and_turns_with_the_structure():
    slab = bulk("MgO", "rocksalt", a=4.2) * (1, 1, 2)  # vectors at 60 degrees
    for pbc in ([True, True, False], [False, True, True], [True, False, True]):
        slab.pbc = pbc
        seen = in_vacuum(slab, 9.0)
        (open_,) = np.flatnonzero(~slab.pbc)
        lengths = seen.cell.array @ seen.cell[open_] / seen.cell.lengths()[open_]
        np.testing.assert_allclose(np.delete(lengths, open_), 0.0, atol=1e-12)
        along = slab.positions @ seen.cell[open_] / seen.cell.lengths()[open_]
        assert lengths[open_] == pytest.approx(np.ptp(along) + 9.0)
        assert (seen.cell.array[slab.pbc] == slab.cell.array[slab.pbc]).all()
        assert seen.pbc.all()
        assert np.linalg.det(seen.cell.array) > 0
    wire = Atoms("H2O", [[0, 0, 0], [1, 2, 0.5], [2, 1, 1]], cell=[[3, 3, 0.2], [0, 0, 0], [0, 0, 0]], pbc=[1, 0, 0])
    seen = in_vacuum(wire, 9.0)
    unit = seen.cell.array / seen.cell.lengths()[:, None]
    np.testing.assert_allclose(unit @ unit.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(seen.cell.lengths()[1:], np.ptp(wire.positions @ unit[1:].T, axis=0) + 9.0)
    with pytest.raises(OracleFailure, match="parallel or zero"):
        in_vacuum(Atoms("H", cell=[[1, 0, 0], [2, 0, 0], [0, 0, 9]], pbc=[1, 1, 0]), 9.0)


@pytest.mark.parametrize("attempt", [1, 2, 3])
def test_every_recipe_is_the_same_level_of_theory(attempt):
    oracle = make_oracle(parse_oracle("gfn2-xtb?accuracy=0.1"))
    usual, other = oracle.label(ethanol()), oracle.label(ethanol(), attempt=attempt)
    assert other.energy_eV == pytest.approx(usual.energy_eV, abs=1e-6)
    np.testing.assert_allclose(other.forces, usual.forces, atol=1e-4)


def test_a_later_recipe_converges_what_the_first_does_not():
    oracle = make_oracle(parse_oracle("gfn2-xtb"))
    with pytest.raises(OracleFailure, match="not converged") as failure:
        oracle.label(unconverging())
    assert not failure.value.final
    second, third = (oracle.label(unconverging(), attempt=attempt) for attempt in (2, 3))
    assert second.energy_eV == pytest.approx(third.energy_eV, abs=1e-4)


@pytest.mark.parametrize(
    ("atoms", "charge", "multiplicity", "says"),
    [
        (molecule("CH3"), 0, 1, "9 electrons .charge 0. contradict multiplicity 1: their multiplicity is even"),
        (molecule("H2O"), 1, 1, "9 electrons .charge 1. contradict multiplicity 1"),
        (molecule("H2O"), 0, 2, "multiplicity is odd"),
        (Atoms("H"), 1, 3, "up to 1"),
        (Atoms("H"), 2, 1, "leaves -1 electrons"),
        (Atoms("Es2", [[0, 0, 0], [0, 0, 3]]), 0, 1, "Z >86"),
        (Atoms("H2", [[0, 0, 0], [0, 0, 0]]), 0, 1, "Too close"),
    ],
)
def test_what_no_recipe_can_help_is_a_final_failure_that_says_why(atoms, charge, multiplicity, says):
    with pytest.raises(OracleFailure, match=says) as failure:
        make_oracle(parse_oracle("gfn2-xtb", charge=charge, multiplicity=multiplicity)).label(atoms)
    assert failure.value.final


def test_info_wins_over_the_defaults():
    oracle = make_oracle(parse_oracle("gfn2-xtb"))
    cation = make_oracle(parse_oracle("gfn2-xtb", charge=1, multiplicity=2)).label(ethanol()).energy_eV
    for info in ({"charge": 1, "multiplicity": 2}, {"charge": np.int64(1), "spin": 2.0}):
        atoms = ethanol()
        atoms.info = info
        assert oracle.label(atoms).energy_eV == pytest.approx(cation, abs=1e-9)
    for info in ({"charge": "a few"}, {"spin": 0}, {"multiplicity": 1.5}):
        atoms = ethanol()
        atoms.info = info
        with pytest.raises(OracleFailure, match=f"{next(iter(info))} is"):
            oracle.label(atoms)


def test_lowest_multiplicity_follows_the_parity_of_the_electrons():
    oracle = make_oracle(parse_oracle("gfn2-xtb", multiplicity="lowest"))
    doublet = make_oracle(parse_oracle("gfn2-xtb", multiplicity=2))
    assert oracle.label(molecule("CH3")).energy_eV == doublet.label(molecule("CH3")).energy_eV
    assert np.isfinite(oracle.label(molecule("H2O")).energy_eV)


def test_fingerprint_depends_on_what_the_label_depends_on_and_nothing_else():
    first = make_oracle(parse_oracle("gfn2-xtb")).fingerprint
    for other in ("gfn1-xtb", "gfn2-xtb?accuracy=0.1", "gfn2-xtb?electronic_temperature_K=500", "gfn2-xtb?vacuum_A=9"):
        assert make_oracle(parse_oracle(other)).fingerprint != first
    for same in ("gfn2-xtb?time_limit_s=3", "gfn2-xtb?attempts=7", "gfn2-xtb?charge=1"):
        assert make_oracle(parse_oracle(same)).fingerprint == first
