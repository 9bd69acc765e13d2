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


def two_hydrogens():
    """Two molecules, 2.5 Å apart: quick, and held together by dispersion."""
    return Atoms("H4", [[0, 0, 0], [0, 0, 0.74], [2.5, 0.1, 0], [2.5, 0.1, 0.74]])


def by_hand(atoms, functional, nlc=""):
    """PySCF's energy (eV) by ``functional`` without any D3 or D4, and its molecule and mean field."""
    from pyscf import dft, gto

    geometry = [(s, r) for s, r in zip(atoms.symbols, atoms.positions / Bohr, strict=True)]
    molecule_ = gto.M(atom=geometry, unit="Bohr", basis="sto-3g", verbose=0)
    mean_field = dft.RKS(molecule_, xc=functional)
    mean_field.disp, mean_field.nlc, mean_field.grids.level, mean_field.conv_tol = False, nlc, 0, 1e-10
    return mean_field.kernel() * Hartree, molecule_, mean_field


def level(functional, dispersion=None):
    return {
        "kind": "dft",
        "functional": functional,
        "dispersion": dispersion,
        "basis": "sto-3g",
        "density_fitting": False,
        "grid_level": 0,
    }


@pytest.mark.parametrize(
    ("functional", "dispersion", "kernel", "model"),
    [
        ("pbe0", None, "pbe0", None),
        ("m06-2x", None, "m06-2x", None),
        ("scan", None, "scan", None),
        ("cam-b3lyp", None, "cam-b3lyp", None),
        ("pbe-d3bj", None, "pbe", ("d3bj", "pbe")),
        ("b3lyp-d3bj", None, "b3lyp", ("d3bj", "b3lyp")),
        ("b3lyp-d4", None, "b3lyp", ("d4", "b3lyp")),
        ("m06-2x", "d3zero", "m06-2x", ("d3zero", "m062x")),
        ("wb97x-d3bj", None, "wb97x-v", ("d3bj", "wb97x")),  # in place of VV10
        ("b97-d", "d3bj", "gga_xc_b97_d", ("d3bj", "b97d")),
        ("wb97xd3", "d3zero:wb97x", "hyb_gga_xc_wb97x_d3", (1.0, 1.0, 0.0, 1.281, 1.094, 14.0)),  # of Lin et al. 2013
    ],
)
def test_a_functional_that_is_accepted_has_the_dispersion_of_its_name(functional, dispersion, kernel, model):
    import ctypes

    from pyscf.dispersion import dftd3, dftd4

    oracle = make_oracle(parse_oracle(level(functional, dispersion)))
    oracle.prepare()
    atoms = two_hydrogens()
    plain, molecule_, _ = by_hand(atoms, kernel, nlc=0)
    expected = 0.0
    if isinstance(model, tuple) and model[0] == "d4":
        expected = dftd4.DFTD4Dispersion(molecule_, xc=model[1]).get_dispersion()["energy"]
    elif isinstance(model, tuple) and isinstance(model[0], str):
        expected = dftd3.DFTD3Dispersion(molecule_, xc=model[1], version=model[0]).get_dispersion()["energy"]
    elif model is not None:
        d3 = dftd3.DFTD3Dispersion(molecule_, xc="pbe", version="d3zero")
        make, error = dftd3.libdftd3.dftd3_new_zero_damping, dftd3.libdftd3.dftd3_new_error()
        make.restype = dftd3._d3_p
        d3._param = make(error, *map(ctypes.c_double, model))
        expected = d3.get_dispersion()["energy"]
    assert (model is None) == (expected == 0.0)
    assert oracle.label(atoms).energy_eV - plain == pytest.approx(expected * Hartree, abs=2e-7)


def test_vv10_is_in_the_energy():
    """The double integral of Vydrov and Van Voorhis, JCP 133, 244103 (2010), b = 6, C = 0.01, on PySCF's points."""
    _, _, mean_field = by_hand(Atoms("H2", [[0, 0, 0], [0, 0, 0.9]]), "wb97x-v", nlc=0)
    density = mean_field.make_rdm1()
    mean_field.nlcgrids.level = 0
    grids = mean_field.nlcgrids.build()
    orbitals = mean_field._numint.eval_ao(mean_field.mol, grids.coords, deriv=1)
    rho, *gradient = mean_field._numint.eval_rho(mean_field.mol, orbitals, density, xctype="GGA")
    dense = rho > 1e-8
    rho, weights, points = rho[dense], grids.weights[dense] * rho[dense], grids.coords[dense]
    steepness = (np.array(gradient)[:, dense] ** 2).sum(0) / rho**2
    omega = np.sqrt(0.01 * steepness**2 + 4 * np.pi * rho / 3)
    kappa = 6.0 * 1.5 * np.pi * (rho / (9 * np.pi)) ** (1 / 6)
    squared = ((points[:, None] - points[None]) ** 2).sum(-1)
    g, h = omega[:, None] * squared + kappa[:, None], omega[None] * squared + kappa[None]
    expected = weights.sum() * (3 / 36) ** 0.75 / 32 + 0.5 * weights @ (-1.5 / (g * h * (g + h))) @ weights
    oracle = make_oracle(parse_oracle(level("wb97x-v")))
    oracle.prepare()
    whole = oracle._mean_field(mean_field.mol)
    whole.nlcgrids.level = 0
    assert expected > 1e-3
    assert whole.energy_tot(density) - mean_field.energy_tot(density) == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize(
    ("functional", "dispersion", "says"),
    [
        ("b97-d", None, "GGA_XC_B97_D was fitted with a dispersion.* write functional 'b97-d' with dispersion 'd3bj'"),
        ("b97d", None, "functional 'b97-d' with dispersion 'd3bj'"),
        ("gga_xc_b97_d", None, "functional 'b97-d' with dispersion 'd3bj'"),
        ("b97-d3bj", None, "write functional 'b97-d' with dispersion 'd3bj'"),
        ("b97-d3", None, "write functional 'b97-d' with dispersion 'd3zero'"),
        ("wb97x-d", None, "write 'wb97x-d3bj', 'wb97x-v', or functional 'wb97xd3'"),
        ("wb97xd", None, "WB97X_D was fitted with a dispersion"),
        ("wb97x-d3", None, "write functional 'wb97xd3' with dispersion 'd3zero:wb97x'"),
        ("wb97xd3", None, "write functional 'wb97xd3' with dispersion 'd3zero:wb97x'"),
        ("b97-3c", None, "another functional"),
        ("b97_3c", "d3bj", "not all its corrections"),
        ("r2scan-3c", None, "another functional"),
        ("pbe-d3", None, "write 'pbe-d3bj' or 'pbe-d3zero'"),
        ("pbe", "d3", "no dispersion 'd3' for 'pbe'"),
        ("beefvdw", None, "GGA_XC_BEEFVDW was fitted with a dispersion"),
        ("scan-vv10", None, "as a minus sign; write 'scan_vv10'"),
        ("scan_rvv10", None, "VV10 for its rVV10"),
        ("lda_c_vwn", None, "correlation without exchange"),
        ("b3lyp-d3bj", "d4", "name one"),
        ("wb97x-v", "d3bj", "would count on top"),
        ("wb97x", "d3bj", "of other functionals"),
        ("m06-2x-d3bj", None, "No entry for 'm062x'"),
        ("b3lyp-d2", None, "does not know the functional"),
    ],
)
def test_a_name_whose_dispersion_would_be_missing_is_refused_before_anything_is_bought(functional, dispersion, says):
    with pytest.raises(SelectronError, match=says):
        make_oracle(parse_oracle(level(functional, dispersion))).prepare()


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
        atoms.set_initial_magnetic_moments(None)  # which would state a multiplicity
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
