"""Any ASE calculator as an oracle: ORCA, VASP, Quantum ESPRESSO, CP2K, and whatever else has one."""

from __future__ import annotations

import contextlib
import importlib
import json
import re
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import FileIOCalculator, PropertyNotImplementedError
from ase.calculators.genericfileio import GenericFileIOCalculator

from selectron.errors import SelectronError
from selectron.oracles.base import Cause, ElectronicState, Label, OracleFailure, checked, fingerprint_of, versions_of
from selectron.oracles.convergence import calculators_in, unconverged
from selectron.oracles.options import AseOptions
from selectron.oracles.surroundings import commands_of, fault_of_surroundings, missing_program


class AseOracle:
    """Calls the calculator in a folder of its own for each structure, so that nothing is left over from the one before.

    A calculator that can be closed holds a program open (CP2K's shell), with the state of the last structure in it: it is
    closed after each structure, and made anew for the next.
    """

    def __init__(self, options: AseOptions) -> None:
        self.options = options
        self.name = f"ase:{options.calculator}"
        self.settings: dict[str, Any] = options.model_dump(
            mode="json", include={"kind", "calculator", "arguments", "force_consistent"}
        )
        self.fingerprint = fingerprint_of(self.settings)
        self.versions = versions_of(["ase", options.calculator.partition(".")[0].partition(":")[0]])
        self._scratch = None if options.scratch is None else options.scratch.resolve()
        self._last: tuple[str, Any] | None = None
        self._in_run_folder: list[Any] = []

    def prepare(self) -> None:
        """Imports the calculator, makes one, and looks for the program that it would run."""
        try:
            calculator = self._calculator(ElectronicState(self.options.charge, _number(self.options.multiplicity)))
        except OracleFailure as failure:
            raise SelectronError(f"{self.name} cannot be made: {failure.reason}.") from None
        for one in calculators_in(calculator):
            try:
                missing = [(command, missing_program(command)) for command in commands_of(one)]
            except Exception as error:  # whatever a third party's calculator raises
                raise SelectronError(f"{self.name} has no program to run: {' '.join(str(error).split())}.") from None
            for command, program in missing:
                if program is not None:
                    raise SelectronError(f"{self.name} runs {command!r}, and there is no program {program!r} here.")

    def label(self, atoms: Atoms, *, attempt: int = 0) -> Label:
        """The label of ``atoms``; a later attempt makes the calculator anew."""
        if attempt:
            self._last = None
        calculator = self._calculator(self.options.state(atoms))
        ours = atoms.copy()
        ours.info = {}
        ours.set_constraint()  # programs print no force on atoms that they are told to hold
        ours.calc = calculator
        with tempfile.TemporaryDirectory(dir=".", prefix="run-") as temporary:
            folder = Path(temporary).resolve() if self._scratch is None else _new_folder(self._scratch)
            for one in self._in_run_folder:
                one.directory = type(one.directory)(folder)
            try:
                energy_eV = ours.get_potential_energy(force_consistent=self.options.force_consistent)
                forces = ours.get_forces(apply_constraint=False)
                stress = _stress(ours, calculator) if ours.pbc.all() else None
            except PropertyNotImplementedError as error:
                raise OracleFailure(f"{self.name} does not give {error}", final=True) from None
            except Exception as error:  # whatever a third party's calculator raises
                # a program that is started for each structure, or was held open for this one, remembers no other
                fresh_program = self._close() or isinstance(calculator, FileIOCalculator | GenericFileIOCalculator)
                self._last = None
                said = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")
                doubt = unconverged(None, folder)
                if doubt is not None:
                    raise OracleFailure(f"{self.name}: {doubt}") from None
                reason = said + _last_words(folder)
                cause: Cause = "structure" if fresh_program else "engine"
                if fault_of_surroundings(error, reason, folder):
                    cause = "surroundings"
                raise OracleFailure(f"{self.name}: {reason}", cause=cause) from None
            self._close()  # and so lets the program finish its output
            doubt = unconverged(calculator, folder)
            if doubt is not None:
                self._last = None  # its results would be given out when asked again
                raise OracleFailure(f"{self.name}: {doubt}")
        return checked(Label(float(energy_eV), forces, stress), atoms)

    def _close(self) -> bool:
        """Closes what can be closed; whether there was such a thing."""
        close = getattr(self._last[1], "close", None) if self._last is not None else None
        if callable(close):
            self._last = None
            with (
                contextlib.suppress(Exception),
                warnings.catch_warnings(),
            ):  # a program that died need not be asked to end
                warnings.simplefilter("ignore")
                close()
        return callable(close)

    def _calculator(self, state: ElectronicState) -> Any:
        words = {"{charge}": state.charge, "{multiplicity}": state.multiplicity, "{unpaired}": state.multiplicity - 1}
        arguments = _filled(self.options.arguments, words)
        wanted = json.dumps(arguments, sort_keys=True)
        if self._last is None or self._last[0] != wanted:
            calculator = _called(self.options.calculator, arguments)
            self._last = (wanted, calculator)
            # those inside another, unless their folder was chosen
            self._in_run_folder = [
                one
                for one in calculators_in(calculator)
                if hasattr(one, "directory") and (one is calculator or str(one.directory) == ".")
            ]
        return self._last[1]


def _called(path: str, arguments: dict[str, Any]) -> Any:
    """What ``path`` (module:Name) returns for ``arguments``, in which {"import": ..., "arguments": ...} are called first."""
    module_name, _, name = path.partition(":")
    try:
        thing = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SelectronError(f"There is nothing at {path!r} ({error}); write it as package.module:Class.") from None
    try:
        return thing(**{key: _built(value) for key, value in arguments.items()})
    except SelectronError:
        raise
    except Exception as error:  # whatever a third party's constructor raises
        said = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        command = arguments.get("command")  # that CP2K's shell is started with at once
        program = missing_program(command) if isinstance(command, str) else None
        if program is not None:
            said = f"there is no program {program!r} here"
        raise SelectronError(f"{path} cannot be made with {arguments}: {said}.") from error


def _built(value: Any) -> Any:
    if isinstance(value, dict):
        if "import" in value and value.keys() <= {"import", "arguments"}:
            return _called(value["import"], value.get("arguments", {}))
        return {key: _built(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_built(one) for one in value]
    return value


def _filled(value: Any, words: dict[str, int]) -> Any:
    if isinstance(value, dict):
        return {key: _filled(one, words) for key, one in value.items()}
    if isinstance(value, list):
        return [_filled(one, words) for one in value]
    return words.get(value, value) if isinstance(value, str) else value


def _stress(atoms: Atoms, calculator: Any) -> np.ndarray | None:
    """(3, 3) in eV/Å³ where the calculator gives it; a program that was not told to write it is not run again for it."""
    if "stress" not in calculator.implemented_properties:
        return None
    a_program = isinstance(calculator, FileIOCalculator | GenericFileIOCalculator)
    if a_program and "stress" not in calculator.results:
        return None
    with contextlib.suppress(PropertyNotImplementedError):
        return atoms.get_stress(voigt=False)
    return None


def _last_words(folder: Path) -> str:
    """The end of what the program wrote last in ``folder``, in brackets, without frames; empty where it wrote nothing."""
    if not folder.is_dir():
        return ""
    written = [path for path in folder.iterdir() if path.is_file() and path.suffix not in _INPUTS]
    for path in sorted(written, key=lambda path: (path.suffix == ".err", -path.stat().st_mtime_ns)):
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - 4000))
            end = stream.read()
        if end and b"\0" not in end:
            lines = (
                re.sub(r"[^\w\s]{4,}", " ", line).strip("*|%#!/\\ \t_")
                for line in end.decode(errors="replace").splitlines()
            )
            words = " ".join(" ".join(line for line in lines if re.search(r"\w{2}", line)).split())
            return f" (end of {path.name}: ...{words[-_LAST_WORDS:]})" if words else ""
    return ""


_INPUTS = {".inp", ".in", ".pwi", ".xyz"}
_LAST_WORDS = 300


def _number(multiplicity: int | str) -> int:
    return multiplicity if isinstance(multiplicity, int) else 1


def _new_folder(scratch: Path) -> Path:
    scratch.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(dir=scratch, prefix="run-"))
