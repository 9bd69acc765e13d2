"""Whether the SCF behind a result of an ASE calculator converged, from what calculator and program say.

ASE hands out energies and forces of most programs without asking. What is looked at, after every calculation:

- ``converged`` of the calculator, of its ``scf`` (GPAW) and of calculators inside it (sums, D3 on top of a program);
- what the program wrote into the folder of the run, against :data:`SAID`.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

SAID: dict[str, str] = {
    # VASP 6 names why it left the loop in OUTCAR, and warns on standard output; see also _stopped_at_nelm
    "VASP": r"EDIFF was not reached|The electronic self-consistency was not achieved",
    # before 2024.1, and later with IGNORE_CONVERGENCE_FAILURE, CP2K goes on; the second is of outer loops
    "CP2K": r"SCF run NOT converged|SCF loop FAILED to converge",
    "Quantum ESPRESSO": r"convergence (has )?NOT (been )?achieved",
    "ORCA": r"SCF NOT CONVERGED AFTER|wavefunction IS NOT (FULLY|YET) CONVERGED|Wavefunction not fully converged",
    "FHI-aims": r"SELF-CONSISTENCY CYCLE DID NOT CONVERGE",
    "GPAW": r"Did not converge!",
    "Gaussian": r"Convergence failure -- run terminated",  # "criterion not met" alone may be followed by another algorithm
    "Psi4": r"wave function did not converge, but proceeding anyway",
    "DFTB+": r"SCC is NOT converged",
    "ABINIT": r"was not enough SCF cycles to converge",
    "CASTEP": r"SCF cycles performed but system has not reached the groundstate",
    "SIESTA": r"SCF_NOT_CONV|SCF did not converge",
    "NWChem": r"Calculation failed to converge",
    "MOPAC": r"UNABLE TO ACHIEVE SELF-CONSISTENCE",
    "xtb": r"Self consistent charge iterator did not converge",
}
"""What programs write where their SCF did not converge, as regular expressions, by program."""

_ANY_OF_THEM = re.compile("|".join(f"(?:{words})" for words in SAID.values()).encode())
_OUTPUTS = {".out", ".log", ".pwo", ".abo", ".nwo", ".castep", ".txt", ".err"}
_NAMES = {"OUTCAR", "OUTPUT"}
_INSIDE = ("calculator", "calc", "dft", "calcs", "calculators", "mixer")


def unconverged(calculator: Any, folder: Path) -> str | None:
    """One sentence (no full stop) where the SCF of the run in ``folder`` did not converge; None where nothing says so.

    A reason to look further than the calculator is that most of ASE's do not look themselves (CP2K's shell, ORCA's and
    Quantum ESPRESSO's parsers); one not to look at files only is that VASP's, for one, knows more.
    """
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_file() and (path.suffix in _OUTPUTS or path.name in _NAMES):
            words = _in_file(path)
            if words is not None:
                return f"the SCF did not converge ({path.name}: {words})"
    for one in calculators_in(calculator):
        for said in (one, getattr(one, "scf", None)):
            value = getattr(said, "converged", None)
            if isinstance(value, bool | np.bool_) and not value:
                return f"the SCF did not converge ({type(one).__name__}.converged is False)"
    return None


def calculators_in(calculator: Any) -> Iterator[Any]:
    """``calculator`` and those that it calls, such as the terms of a sum."""
    waiting, seen = [calculator], set()
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen or isinstance(one, str | bytes | int | float):
            continue
        seen.add(id(one))
        if isinstance(one, list | tuple):
            waiting += one
            continue
        if hasattr(one, "get_potential_energy"):
            yield one
        inside = getattr(one, "__dict__", {})
        waiting += [inside[name] for name in _INSIDE if name in inside]


def _in_file(path: Path) -> str | None:
    """The line of ``path`` that says so."""
    if not path.stat().st_size:
        return None
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as text:
        found = _ANY_OF_THEM.search(text)
        if found is None:
            return _stopped_at_nelm(text) if path.name == "OUTCAR" else None
        start, end = text.rfind(b"\n", 0, found.start()) + 1, text.find(b"\n", found.end())
        line = text[start : end if end >= 0 else len(text)].decode(errors="replace")
    return " ".join(re.sub(r"[^\w\s]{4,}", " ", line).strip("*|!#- \t\r").split())[:200]


def _stopped_at_nelm(outcar: mmap.mmap) -> str | None:
    """VASP 5 says only where EDIFF was reached: otherwise its loop ended at NELM steps."""
    limit = re.search(rb"NELM\s*=\s*(\d+)", outcar)
    steps = [int(step) for step in re.findall(rb"Iteration\s+\d+\(\s*(\d+)\)", outcar)]
    if limit is None or not steps or steps[-1] < int(limit[1]):
        return None
    last = outcar.rfind(b"Iteration ")
    return None if outcar.find(b"EDIFF is reached", last) >= 0 else f"{steps[-1]} steps, as many as NELM allows"
