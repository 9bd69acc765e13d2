"""Kohn-Sham DFT of molecules by PySCF."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from ase import Atoms
from ase.units import Bohr, Hartree

from selectron.errors import SelectronError
from selectron.oracles.base import (
    ElectronicState,
    Label,
    OracleFailure,
    check_electrons,
    checked,
    fingerprint_of,
    versions_of,
)
from selectron.oracles.functionals import check_functional
from selectron.oracles.options import DftOptions

_HEAVY = 36  # basis sets with effective core potentials have them beyond krypton


class DftOracle:
    """Restricted Kohn-Sham for singlets, unrestricted for all else, analytic gradients, no grid response."""

    def __init__(self, options: DftOptions) -> None:
        self.options = options
        dispersion = f"-{options.dispersion}" if options.dispersion else ""
        self.name = f"{options.functional}{dispersion}/{options.basis}"
        self.settings: dict[str, Any] = options.model_dump(
            mode="json",
            include={
                "kind",
                "functional",
                "basis",
                "density_fitting",
                "auxiliary_basis",
                "grid_level",
                "dispersion",
                "scf_tolerance",
            },
        )
        self.fingerprint = fingerprint_of(self.settings)
        self.versions = versions_of(["pyscf", "pyscf-dispersion"])

    def prepare(self) -> None:
        """Imports PySCF and makes one small label: H2 by this functional, basis set and dispersion, on a coarse grid."""
        try:
            from pyscf import lib
        except ImportError as error:
            raise SelectronError(f"DFT needs PySCF: pip install 'selectron[dft]' ({error}).") from None
        lib.num_threads(int(os.environ.get("OMP_NUM_THREADS") or lib.num_threads()))
        functional, dispersion = self.options.functional, self.options.dispersion
        check_functional(functional, dispersion)
        hydrogen = Atoms("H2", [[0.0, 0.0, 0.0], [0.0, 0.0, 0.74]])
        try:
            molecule = self._molecule(hydrogen, ElectronicState())
        except OracleFailure as failure:
            if "basis name" in failure.reason:  # any other: a basis set without hydrogen
                raise SelectronError(f"PySCF does not know the basis set {self.options.basis!r}.") from None
            molecule = self._molecule(hydrogen, ElectronicState(), basis="sto-3g")
        try:
            mean_field = self._mean_field(molecule)
            if dispersion is not None:
                mean_field.get_dispersion()
            mean_field.grids.level = mean_field.nlcgrids.level = 0
            mean_field.kernel()
            _gradient(mean_field)
        except Exception as error:  # each dispersion library has its own
            said = " ".join(str(error).split()) or type(error).__name__
            if dispersion is None:
                raise SelectronError(f"PySCF cannot label with {self.name} ({said}).") from None
            raise SelectronError(
                f"There is no dispersion {dispersion!r} for {functional!r} ({said}); it needs pyscf-dispersion and "
                "parameters of the functional."
            ) from None

    def label(self, atoms: Atoms, *, attempt: int = 0) -> Label:
        """The label of ``atoms``: recipe 0 is PySCF's own; later ones shift levels, smear, or converge by second order."""
        if atoms.pbc.any():
            raise OracleFailure("the DFT oracle is for molecules, and this structure is periodic", final=True)
        state = self.options.state(atoms)
        check_electrons(atoms, state)
        mean_field = self._mean_field(self._molecule(atoms, state))
        try:
            _converge(mean_field, attempt)
            if not mean_field.converged:
                raise OracleFailure(f"the SCF did not converge in {mean_field.max_cycle} cycles")
            forces = -_gradient(mean_field) * (Hartree / Bohr)
        except (RuntimeError, ValueError, np.linalg.LinAlgError) as error:
            raise OracleFailure(f"PySCF: {' '.join(str(error).split())}") from None
        return checked(Label(float(mean_field.e_tot) * Hartree, forces), atoms)

    def _molecule(self, atoms: Atoms, state: ElectronicState, basis: str | None = None) -> Any:
        from pyscf import gto

        basis = basis or self.options.basis
        heavy = sorted({symbol for symbol, z in zip(atoms.symbols, atoms.numbers, strict=True) if z > _HEAVY})
        try:
            return gto.M(
                atom=[(symbol, tuple(r)) for symbol, r in zip(atoms.symbols, atoms.positions / Bohr, strict=True)],
                unit="Bohr",
                basis=basis,
                ecp=dict.fromkeys(heavy, basis),
                charge=state.charge,
                spin=state.multiplicity - 1,
                max_memory=self.options.memory_MB,
                verbose=0,
            )
        except Exception as error:  # PySCF has several for a basis set that lacks an element
            raise OracleFailure(f"PySCF: {' '.join(str(error).split())}", final=True) from None

    def _mean_field(self, molecule: Any) -> Any:
        from pyscf import dft

        mean_field = (dft.RKS if molecule.spin == 0 else dft.UKS)(molecule)
        mean_field.xc = self.options.functional
        mean_field.grids.level = self.options.grid_level
        mean_field.conv_tol = self.options.scf_tolerance
        mean_field.max_cycle = self.options.max_cycles
        if self.options.dispersion is not None:
            mean_field.disp = self.options.dispersion
        if self.options.density_fitting:
            mean_field = mean_field.density_fit(auxbasis=self.options.auxiliary_basis)
        return mean_field


def _converge(mean_field: Any, attempt: int) -> None:
    """Runs the SCF by recipe ``attempt``; every recipe ends with a plain SCF, so that all labels mean the same."""
    if attempt == 0:
        mean_field.kernel()
        return
    if attempt == 1:
        rough = mean_field.copy()
        rough.init_guess, rough.level_shift, rough.damp = "atom", 0.3, 0.3
        rough.max_cycle, rough.conv_tol = 2 * mean_field.max_cycle, 1e-6
    elif attempt == 2:
        rough = mean_field.copy()
        rough.init_guess = "huckel"
        rough = rough.newton()
    else:
        from pyscf.scf import addons

        rough = mean_field.copy()
        rough.init_guess = "hcore"
        rough = addons.smearing_(rough, sigma=0.02, method="fermi")
        rough.max_cycle, rough.conv_tol = 2 * mean_field.max_cycle, 1e-6
    rough.kernel()
    mean_field.kernel(rough.make_rdm1())


def _gradient(mean_field: Any) -> np.ndarray:
    """(N, 3) in Hartree/Bohr."""
    gradient = mean_field.nuc_grad_method()
    gradient.verbose = 0
    return np.asarray(gradient.kernel())
