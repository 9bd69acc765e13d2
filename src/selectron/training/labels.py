"""Labelled structures: what training and evaluation read, and how it is written for mace-torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from selectron.errors import SelectronError
from selectron.structures.reader import UnreadableFrame
from selectron.structures.writing import WEIGHT_KEY, write_extxyz


class Labelled(NamedTuple):
    """A structure with its labels: energy in eV, forces (N, 3) in eV/Å, both float64; ``weight`` is its factor in the loss."""

    atoms: Atoms
    energy_eV: float
    forces: np.ndarray
    weight: float = 1.0


def labelled(structures: Iterable[Atoms], *, what: str = "training") -> list[Labelled]:
    """``structures`` with the energies and forces of their calculators, or of ``info`` and arrays (also as ``REF_…``).

    Weights are those of ``info["config_weight"]``, else 1. Raises SelectronError for the first structure without a finite
    energy and finite forces, or with a weight that is no number of at least 0.
    """
    found = []
    for index, atoms in enumerate(structures):
        where = f"structure {index} of the {what} set"
        energy = _result(atoms, "energy", atoms.info)
        forces = _result(atoms, "forces", atoms.arrays)
        missing = [name for name, value in (("an energy", energy), ("forces", forces)) if value is None]
        if missing:
            raise SelectronError(
                f"{where.capitalize()} has no {' and no '.join(m.removeprefix('an ') for m in missing)}; "
                "training needs both, as extended XYZ holds them in 'energy' and 'forces'."
            )
        rows = np.asarray(forces, dtype=float)
        if rows.shape != (len(atoms), 3) or not (np.isfinite(float(energy)) and np.isfinite(rows).all()):
            raise SelectronError(f"{where.capitalize()} has an energy or forces that are not finite numbers.")
        found.append(Labelled(atoms, float(energy), rows, _weight(atoms, where)))
    return found


def _weight(atoms: Atoms, where: str) -> float:
    given = atoms.info.get(WEIGHT_KEY, 1.0)
    try:
        weight = float(given)
    except (TypeError, ValueError):
        weight = math.nan
    if not (math.isfinite(weight) and weight >= 0.0):
        raise SelectronError(f"{where.capitalize()} has the {WEIGHT_KEY} {given!r}, which is no number of at least 0.")
    return weight


def _result(atoms: Atoms, name: str, other: Mapping[str, Any]) -> Any:
    results = getattr(atoms.calc, "results", {}) if atoms.calc is not None else {}
    for place, key in ((results, name), (other, name), (other, f"REF_{name}")):
        if place.get(key) is not None:
            return place[key]
    return None


def stress_of(atoms: Atoms) -> np.ndarray | None:
    """Stress (3, 3) in eV/Å³, from where :func:`labelled` looks, in Voigt order (xx, yy, zz, yz, xz, xy) or as nine numbers.

    None where there is none, or one that is not finite.
    """
    found = _result(atoms, "stress", atoms.info)
    values = np.zeros(0) if found is None else np.asarray(found, dtype=float).ravel()
    if values.size not in (6, 9) or not np.isfinite(values).all():
        return None
    return values[[0, 5, 4, 5, 1, 3, 4, 3, 2]].reshape(3, 3) if values.size == 6 else values.reshape(3, 3)


def usable(entries: Iterable[Atoms | UnreadableFrame], *, what: str) -> Iterator[Atoms]:
    """``entries`` of a pool; raises SelectronError where one cannot be read: a label must not vanish in silence."""
    for index, entry in enumerate(entries):
        if isinstance(entry, UnreadableFrame):
            raise SelectronError(f"Structure {index} of the {what} set cannot be read: {entry}.")
        yield entry


def check_elements(structures: Sequence[Labelled], known: Iterable[int], *, model: str) -> None:
    """Raises SelectronError where the structures hold an element that ``model`` lacks."""
    present = {int(z) for one in structures for z in np.unique(one.atoms.numbers)}
    missing = sorted(present - set(known))
    if missing:
        raise SelectronError(
            f"{model} does not know {', '.join(chemical_symbols[z] for z in missing)}, which the data holds: fine-tuning "
            "keeps the elements of a model; choose a model that knows them."
        )


def without_isolated_atoms(structures: Sequence[Labelled]) -> tuple[list[Labelled], dict[str, float]]:
    """Structures of more than one atom, and the energy in eV of each element that occurs as an atom alone in vacuum.

    An atom alone fixes a reference energy and teaches forces nothing. Models differ in what they say of one (a MACE
    with a shift of the interaction energy does not give its reference), so it is not mixed with the rest.
    """
    alone: dict[str, float] = {}
    rest = []
    for one in structures:
        if len(one.atoms) == 1 and not one.atoms.pbc.any():
            alone.setdefault(chemical_symbols[int(one.atoms.numbers[0])], one.energy_eV)
        else:
            rest.append(one)
    return rest, alone


def write_for_mace(path: Path, structures: Sequence[Labelled], energy_shifts_eV: np.ndarray | None = None) -> None:
    """Extended XYZ with the keys that mace-torch reads by default (REF_energy, REF_forces, REF_stress, config_weight).

    Whatever else a structure carries (a config_type, a head) would mean something to mace-torch, and is left out.
    """
    write_extxyz(
        path,
        (_plain(one, 0.0 if energy_shifts_eV is None else energy_shifts_eV[i]) for i, one in enumerate(structures)),
    )


def _plain(one: Labelled, shift_eV: float) -> Atoms:
    atoms = Atoms(one.atoms.numbers, one.atoms.positions, cell=one.atoms.cell, pbc=one.atoms.pbc)
    atoms.info["REF_energy"] = one.energy_eV + float(shift_eV)
    atoms.arrays["REF_forces"] = one.forces
    if one.weight != 1.0:
        atoms.info[WEIGHT_KEY] = one.weight
    stress = stress_of(one.atoms)
    if stress is not None:
        atoms.info["REF_stress"] = stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
    return atoms


def equally_weighted(structures: Iterable[Labelled]) -> list[Labelled]:
    """The same with weights of 1."""
    return [one._replace(weight=1.0) for one in structures]


def split(structures: Sequence[Labelled], fraction: float, seed: int) -> tuple[list[Labelled], list[Labelled]]:
    """Training and validation part, drawn with ``seed``; both hold at least one structure.

    Raises SelectronError where there are fewer than two structures.
    """
    if len(structures) < 2:
        raise SelectronError(
            f"The training set has {len(structures)} structure{'s' if len(structures) != 1 else ''}: give a validation set, "
            "or at least two structures of which one can be set aside."
        )
    count = min(max(1, round(fraction * len(structures))), len(structures) - 1)
    order = np.random.default_rng(seed).permutation(len(structures))
    aside = set(order[:count].tolist())
    return (
        [one for i, one in enumerate(structures) if i not in aside],
        [one for i, one in enumerate(structures) if i in aside],
    )
