"""GFN2-xTB and GFN1-xTB by tblite."""

from __future__ import annotations

from typing import Any

from ase import Atoms
from ase.units import Bohr, Hartree, kB

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
from selectron.oracles.options import XtbOptions

_METHODS = {"gfn2-xtb": "GFN2-xTB", "gfn1-xtb": "GFN1-xTB"}
_SAD, _EEQ = 0, 1  # initial guesses: superposition of atomic densities, electronegativity equilibration


class XtbOracle:
    """Extended tight binding: Bannwarth, Ehlert and Grimme, JCTC 15, 1652 (2019); Grimme et al., JCTC 13, 1989 (2017).

    The energy contains the electronic entropy term of the finite electronic temperature, whose derivative the forces are.
    """

    def __init__(self, options: XtbOptions) -> None:
        self.options = options
        self.name: str = options.kind
        self.settings: dict[str, Any] = options.model_dump(
            mode="json", include={"kind", "accuracy", "electronic_temperature_K", "spin_polarised"}
        )
        self.fingerprint = fingerprint_of(self.settings)
        self.versions = versions_of(["tblite"])

    def prepare(self) -> None:
        """Imports tblite."""
        try:
            import tblite.interface  # noqa: F401
        except ImportError as error:
            raise SelectronError(f"{self.name} needs tblite: pip install tblite ({error}).") from None

    def label(self, atoms: Atoms, *, attempt: int = 0) -> Label:
        """The label of ``atoms``: recipe 0 is tblite's own, later ones start elsewhere, damp more or cool down."""
        from tblite.exceptions import TBLiteRuntimeError, TBLiteValueError

        state = self.options.state(atoms)
        check_electrons(atoms, state)
        try:
            result = self._solve(atoms, state, attempt)
        except (TBLiteRuntimeError, TBLiteValueError, RuntimeError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise OracleFailure(f"tblite: {reason}", final=_hopeless(reason)) from None
        stress = result.get("virial") * Hartree / atoms.get_volume() if atoms.pbc.all() else None
        forces = -result.get("gradient") * (Hartree / Bohr)
        return checked(Label(float(result.get("energy")) * Hartree, forces, stress), atoms)

    def _solve(self, atoms: Atoms, state: ElectronicState, attempt: int) -> Any:
        """Recipe ``attempt``; all of them end with an SCF at the electronic temperature that was asked for."""
        calculator = self._calculator(atoms, state)
        wanted_K = self.options.electronic_temperature_K
        if attempt == 0:
            return calculator.singlepoint()
        calculator.set("max-iter", 1000)
        if attempt == 1:
            calculator.set("guess", _EEQ)
            calculator.set("mixer-damping", 0.1)
            return calculator.singlepoint()
        # Fractional occupations of a hot electron gas converge where cold ones swap back and forth; each density is
        # the start of the next, cooler one.
        calculator.set("guess", _SAD if attempt == 2 else _EEQ)
        calculator.set("mixer-damping", 0.2 if attempt == 2 else 0.05)
        result = None
        hottest_K = 3000.0 * (attempt - 1)
        for temperature_K in (hottest_K, hottest_K / 3, hottest_K / 6, wanted_K):
            if temperature_K >= wanted_K:
                calculator.set("temperature", temperature_K * kB / Hartree)
                result = calculator.singlepoint(result)
        return result

    def _calculator(self, atoms: Atoms, state: ElectronicState) -> Any:
        from tblite.interface import Calculator

        periodic = atoms.pbc.any()
        calculator = Calculator(
            _METHODS[self.options.kind],
            atoms.numbers,
            atoms.positions / Bohr,
            charge=float(state.charge),
            uhf=state.multiplicity - 1,
            lattice=atoms.cell.array / Bohr if periodic else None,
            periodic=atoms.pbc if periodic else None,
        )
        calculator.set("verbosity", 0)
        calculator.set("accuracy", self.options.accuracy)
        calculator.set("temperature", self.options.electronic_temperature_K * kB / Hartree)
        if self.options.spin_polarised and state.multiplicity > 1:
            calculator.add("spin-polarization", 1.0)
        return calculator


def _hopeless(reason: str) -> bool:
    """Whether another start of the SCF cannot help."""
    return any(word in reason.lower() for word in ("element", "too close"))
