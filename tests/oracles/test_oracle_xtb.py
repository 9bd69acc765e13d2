"""Tight binding: forces are derivatives of energies, every recipe is the same level, electrons are counted."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from tblite.ase import TBLite

from selectron.oracles import OracleFailure, make_oracle, parse_oracle


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
    for other in ("gfn1-xtb", "gfn2-xtb?accuracy=0.1", "gfn2-xtb?electronic_temperature_K=500"):
        assert make_oracle(parse_oracle(other)).fingerprint != first
    for same in ("gfn2-xtb?time_limit_s=3", "gfn2-xtb?attempts=7", "gfn2-xtb?charge=1"):
        assert make_oracle(parse_oracle(same)).fingerprint == first
