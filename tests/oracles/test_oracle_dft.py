"""DFT: derivatives, density fitting, dispersion, open shells, recipes, and the level of Transition1x."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import read
from ase.units import Bohr, Hartree

from selectron.errors import SelectronError
from selectron.oracles import OracleFailure, make_oracle, parse_oracle

pytest.importorskip("pyscf", reason="needs PySCF: pip install 'selectron[dft]'")


def water():
    atoms = molecule("H2O")
    atoms.rattle(0.05, seed=1)
    return atoms


def energy_slope(oracle, atoms, atom, axis, step=1e-3):
    energies = []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.positions[atom, axis] += sign * step
        energies.append(oracle.label(moved).energy_eV)
    return (energies[0] - energies[1]) / (2 * step)


@pytest.mark.parametrize(
    "spec",
    [
        "dft:pbe/sto-3g?density_fitting=false",
        "dft:b3lyp/sto-3g?dispersion=d3bj",
        pytest.param("dft:wb97x/6-31g*", marks=pytest.mark.slow),
        pytest.param("dft:b3lyp/sto-3g?dispersion=d4", marks=pytest.mark.slow),
    ],
)
def test_forces_are_minus_the_derivative_of_the_energy(spec):
    oracle = make_oracle(parse_oracle(spec))
    forces = oracle.label(water()).forces
    for atom, axis in [(0, 2), (1, 1)]:
        # PySCF leaves out how the integration grid moves with the atoms: some 1e-4 eV/Å
        assert forces[atom, axis] == pytest.approx(-energy_slope(oracle, water(), atom, axis), abs=1e-3)


def test_energy_is_that_of_pyscf_used_by_hand():
    from pyscf import dft, gto

    atoms = water()
    molecule_ = gto.M(
        atom=[(s, r) for s, r in zip(atoms.symbols, atoms.positions, strict=True)], basis="sto-3g", verbose=0
    )
    mean_field = dft.RKS(molecule_, xc="pbe")
    expected = mean_field.kernel() * Hartree
    label = make_oracle(parse_oracle("dft:pbe/sto-3g?density_fitting=false")).label(atoms)
    assert label.energy_eV == pytest.approx(expected, abs=1e-3)  # two values of the bohr


def test_density_fitting_changes_the_energy_by_little_and_is_another_level():
    fitted, exact = (make_oracle(parse_oracle(f"dft:pbe/sto-3g?density_fitting={on}")) for on in ("true", "false"))
    difference = fitted.label(water()).energy_eV - exact.label(water()).energy_eV
    assert 0 < abs(difference) < 0.05
    assert fitted.fingerprint != exact.fingerprint


def test_dispersion_adds_what_the_dispersion_library_says_to_energy_and_forces():
    from pyscf import gto
    from pyscf.dispersion import dftd3

    plain, corrected = (
        make_oracle(parse_oracle(f"dft:pbe/sto-3g{query}")).label(water()) for query in ("", "?dispersion=d3bj")
    )
    atoms = water()
    geometry = [(s, r) for s, r in zip(atoms.symbols, atoms.positions, strict=True)]
    model = dftd3.DFTD3Dispersion(gto.M(atom=geometry, verbose=0), xc="pbe", version="d3bj", atm=False)
    expected = model.get_dispersion(grad=True)
    assert expected["energy"] * Hartree < -1e-3
    assert corrected.energy_eV - plain.energy_eV == pytest.approx(expected["energy"] * Hartree, abs=1e-6)
    np.testing.assert_allclose(corrected.forces - plain.forces, -expected["gradient"] * Hartree / Bohr, atol=1e-4)


@pytest.mark.parametrize("attempt", [1, 2, 3])
def test_every_recipe_is_the_same_level_of_theory(attempt):
    oracle = make_oracle(parse_oracle("dft:pbe/sto-3g"))
    usual, other = oracle.label(water()), oracle.label(water(), attempt=attempt)
    assert other.energy_eV == pytest.approx(usual.energy_eV, abs=1e-6)
    np.testing.assert_allclose(other.forces, usual.forces, atol=1e-3)


def test_an_scf_without_cycles_is_a_failure_that_a_later_recipe_may_mend():
    oracle = make_oracle(parse_oracle("dft:pbe/sto-3g?max_cycles=2"))
    with pytest.raises(OracleFailure, match="did not converge in 2 cycles") as failure:
        oracle.label(water())
    assert not failure.value.final
    usual = make_oracle(parse_oracle("dft:pbe/sto-3g")).label(water())
    assert oracle.label(water(), attempt=2).energy_eV == pytest.approx(usual.energy_eV, abs=1e-6)


def test_radicals_ions_and_triplets():
    oracle = make_oracle(parse_oracle("dft:pbe/sto-3g"))

    def energy(name, **info):
        atoms = molecule(name)
        atoms.info = info
        return oracle.label(atoms).energy_eV

    assert energy("O2", multiplicity=3) < energy("O2", multiplicity=1)
    assert energy("CH3", multiplicity=2) < energy("CH3", multiplicity=4)
    assert energy("H2O", charge=1, multiplicity=2) > energy("H2O")
    with pytest.raises(OracleFailure, match="9 electrons") as failure:
        energy("CH3")
    assert failure.value.final


def test_heavy_elements_get_the_core_potential_of_their_basis():
    hydrogen_iodide = Atoms("IH", [[0, 0, 0], [0, 0, 1.61]])
    label = make_oracle(parse_oracle("dft:pbe/def2-svp")).label(hydrogen_iodide)
    assert -9000 < label.energy_eV < -7000  # 28 core electrons fewer; with them it is near -1.9e5
    assert abs(label.forces[0, 2]) < 1.0


def test_crystals_and_unknown_levels_are_refused():
    with pytest.raises(OracleFailure, match="periodic"):
        make_oracle(parse_oracle("dft")).label(bulk("Si"))
    for spec, says in [
        ("dft:nonsense/sto-3g", "functional 'nonsense'"),
        ("dft:pbe/nonsense", "basis set 'nonsense'"),
        ("dft:pbe/sto-3g?dispersion=d9", "dispersion 'd9'"),
    ]:
        with pytest.raises(SelectronError, match=says):
            make_oracle(parse_oracle(spec)).prepare()


@pytest.mark.slow
def test_reproduces_published_geometries_labelled_by_pyscf_elsewhere(shared_data):
    frame = min(read(shared_data / "t1xlike_rdb7_pyscf_check.xyz", ":"), key=len)
    label = make_oracle(parse_oracle("dft:wb97x/6-31g*")).label(frame)
    assert label.energy_eV == pytest.approx(frame.get_potential_energy(), abs=5e-4)
    np.testing.assert_allclose(label.forces, frame.get_forces(), atol=1e-3)


@pytest.mark.slow
def test_labels_transition1x_up_to_what_programs_differ_by(shared_data):
    """ORCA made the published labels: other grids, other fitting; a few meV in the energy, a few meV/Å in the forces."""
    frame = min(read(shared_data / "t1x32.xyz", ":"), key=len)
    label = make_oracle(parse_oracle("dft:wb97x/6-31g*")).label(frame)
    assert abs(label.energy_eV - frame.get_potential_energy()) < 8e-3
    assert np.abs(label.forces - frame.get_forces()).mean() < 5e-3
