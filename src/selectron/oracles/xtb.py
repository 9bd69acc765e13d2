"""GFN2-xTB and GFN1-xTB by tblite."""

from __future__ import annotations

from typing import Any

import numpy as np
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

    Molecules and crystals. tblite 0.8.0 computes a structure with one or two open directions as a crystal of its whole
    cell, whatever ``periodic`` says: such a one is refused, or gets its vacuum from :func:`in_vacuum`. The energy contains
    the electronic entropy term of the finite electronic temperature, whose derivative the forces are.
    """

    def __init__(self, options: XtbOptions) -> None:
        self.options = options
        self.name: str = options.kind
        self.settings: dict[str, Any] = options.model_dump(
            mode="json", include={"kind", "accuracy", "electronic_temperature_K", "spin_polarised"}
        )
        if options.vacuum_A is not None:
            self.settings["vacuum_A"] = options.vacuum_A
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

        self.options.check(atoms)
        state = self.options.state(atoms)
        check_electrons(atoms, state)
        seen = atoms if self.options.vacuum_A is None else in_vacuum(atoms, self.options.vacuum_A)
        try:
            result = self._solve(seen, state, attempt)
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


def in_vacuum(atoms: Atoms, vacuum_A: float) -> Atoms:
    """``atoms`` with one or two open directions as a crystal: the vectors of those are made anew.

    They are perpendicular to the periodic directions, and as long as the atoms extend along them plus ``vacuum_A``. Of a
    wire they are the Cartesian axis that is most nearly perpendicular to it, made so, and the one perpendicular to both.
    Molecules and crystals are given back as they are. Raises OracleFailure where the periodic vectors span nothing.
    """
    periodic = np.flatnonzero(atoms.pbc)
    if len(periodic) in (0, 3):
        return atoms
    vectors = atoms.cell.array[periodic]
    if len(periodic) == 1:
        axis = vectors[0] / (np.linalg.norm(vectors[0]) or 1.0)
        first = np.eye(3)[int(np.argmin(np.abs(axis)))]
        first = first - (first @ axis) * axis
        across = [first, np.cross(axis, first)]
    else:
        across = [np.cross(*vectors)]
    if not np.linalg.norm(vectors, axis=1).all() or not np.linalg.norm(across, axis=1).all():
        raise OracleFailure("the lattice vectors of its periodic directions are parallel or zero", final=True)
    cell = atoms.cell.array.copy()
    for row, direction in zip(np.flatnonzero(~atoms.pbc), across, strict=True):
        unit = direction / np.linalg.norm(direction)
        cell[row] = (np.ptp(atoms.positions @ unit) + vacuum_A) * unit
    if np.linalg.det(cell) < 0:
        cell[np.flatnonzero(~atoms.pbc)[0]] *= -1.0
    return Atoms(atoms.numbers, atoms.positions, cell=cell, pbc=True)


def _hopeless(reason: str) -> bool:
    """Whether another start of the SCF cannot help."""
    return any(word in reason.lower() for word in ("element", "too close"))
