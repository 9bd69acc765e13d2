"""GFN2-xTB labels, and the files that carry them."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterable
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from tblite.ase import TBLite

GROUND_STATE_MULTIPLICITY = {"H": 2, "C": 3, "N": 4, "O": 3}


def gfn2(**settings: object) -> TBLite:
    """A silent GFN2-xTB calculator: closed shell for an even number of electrons, electronic temperature 300 K."""
    return TBLite(method="GFN2-xTB", verbosity=0, **settings)


def labelled(structure: Atoms) -> Atoms | None:
    """A copy of the structure with its GFN2-xTB energy (eV) and forces (eV/Å); None where the SCF fails."""
    copy = Atoms(structure.symbols, positions=structure.positions)
    copy.info = dict(structure.info)
    work = copy.copy()
    work.calc = gfn2()
    try:
        energy, forces = work.get_potential_energy(), work.get_forces()
    except Exception:  # tblite raises several kinds, all of which mean that there is no label
        return None
    if not (np.isfinite(energy) and np.isfinite(forces).all()):
        return None
    copy.calc = SinglePointCalculator(copy, energy=float(energy), forces=forces)
    return copy


def isolated_atom_energies() -> dict[int, float]:
    """GFN2-xTB energy of each isolated atom in its ground-state multiplicity (eV), by atomic number."""
    energies = {}
    for symbol, multiplicity in GROUND_STATE_MULTIPLICITY.items():
        atom = Atoms(symbol)
        atom.calc = gfn2(multiplicity=multiplicity)
        energies[int(atom.numbers[0])] = float(atom.get_potential_energy())
    return energies


def write_gzip(path: Path, structures: Iterable[Atoms]) -> None:
    """Write gzipped extended XYZ whose bytes depend on the structures alone (no time, no name in the header)."""
    text = io.StringIO()
    ase.io.write(text, list(structures), format="extxyz")
    with path.open("wb") as raw, gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=9) as packed:
        packed.write(text.getvalue().encode())
