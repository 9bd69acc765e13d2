"""Labelled structures: what training and evaluation read, and how it is written for mace-torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from selectron.errors import SelectronError
from selectron.structures.heads import of_one_head
from selectron.structures.isolated import is_isolated_atom
from selectron.structures.label_source import LabelCensus, LabelKeys
from selectron.structures.label_values import LabelSource, read_labels
from selectron.structures.label_weights import label_weights, weight_key
from selectron.structures.reader import UnreadableFrame
from selectron.structures.writing import WEIGHT_KEY, write_extxyz

ATOM_ENERGIES_DIFFER_eV = 1e-3


class Labelled(NamedTuple):
    """A structure with its labels.

    | field         | shape  | unit | meaning                                                                       |
    |---------------|--------|------|-------------------------------------------------------------------------------|
    | energy_eV     |        | eV   | NaN where it is not to be used                                                 |
    | forces        | (N, 3) | eV/Å | float64; NaN where they are not to be used                                     |
    | weight        |        |      | factor of all its labels in the loss                                           |
    | stress        | (3, 3) | eV/Å³| (1/V) dE/dε, positive under tension; None where there is none, or no volume    |
    | energy_weight |        |      | factor of its energy in the loss; so ``forces_weight`` and ``stress_weight``   |
    """

    atoms: Atoms
    energy_eV: float
    forces: np.ndarray
    weight: float = 1.0
    stress: np.ndarray | None = None
    energy_weight: float = 1.0
    forces_weight: float = 1.0
    stress_weight: float = 1.0

    @property
    def has_energy(self) -> bool:
        """Whether the energy is to be used."""
        return bool(np.isfinite(self.energy_eV))

    @property
    def has_forces(self) -> bool:
        """Whether the forces are to be used."""
        return bool(np.isfinite(self.forces).all())


class LabelledSet(NamedTuple):
    """Labelled structures, isolated atoms among them, the keys of their labels, and sentences about them for a person."""

    structures: list[Labelled]
    source: LabelSource | None
    said: list[str]


def labelled_set(
    structures: Iterable[Atoms],
    *,
    what: str = "training",
    keys: LabelKeys | None = None,
    head: str | None = None,
    planar: bool = False,
) -> LabelledSet:
    """``structures`` with their labels, which come from one source (:mod:`selectron.structures.label_source`).

    Args:
        structures: of which those of other heads are left out where they have several.
        what: which set it is, for sentences.
        keys: of the labels, as far as they are named.
        head: the one to take of structures with several.
        planar: structures are points in the plane, of one atom that is not an isolated one.

    An isolated atom without forces has the force 0. Raises SelectronError for several heads or sources of labels, the first
    structure without an energy and forces of the source, and labels or weights that are no numbers.
    """
    given = list(structures)
    places, note = of_one_head(given, head, what=what)
    census = LabelCensus(keys, what=what, planar=planar)
    for place in places:
        census.add(given[place], index=place)
    if not places:
        return LabelledSet([], None, [])
    source = census.source()
    found = [_labelled(given[place], source, place, what) for place in places]
    counted = [one for one in found if planar or not is_isolated_atom(one.atoms)]
    per_atom = np.array([one.energy_eV / len(one.atoms) for one in counted if one.has_energy])
    stresses = sum(one.stress is not None for one in counted)
    return LabelledSet(found, source, [*([note] if note else []), census.line(source, per_atom, stresses)])


def labelled(structures: Iterable[Atoms], *, what: str = "training", keys: LabelKeys | None = None) -> list[Labelled]:
    """The structures of :func:`labelled_set`."""
    return labelled_set(structures, what=what, keys=keys).structures


def _labelled(atoms: Atoms, source: LabelSource, index: int, what: str) -> Labelled:
    energy, forces, stress = read_labels(atoms, source, index=index, what=what)
    weights = label_weights(atoms, index=index, what=what)
    if forces is None:
        forces = np.full((len(atoms), 3), np.nan if weights.forces == 0.0 else 0.0)
    return Labelled(
        atoms,
        np.nan if energy is None else energy,
        forces,
        weights.all,
        stress,
        energy_weight=weights.energy,
        forces_weight=weights.forces,
        stress_weight=weights.stress,
    )


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


def without_isolated_atoms(
    structures: Sequence[Labelled], *, what: str = "training"
) -> tuple[list[Labelled], dict[str, float]]:
    """Structures that are no isolated atom, and the energy in eV of each element that occurs as one.

    An atom alone fixes a reference energy and teaches forces nothing. Models differ in what they say of one (a MACE
    with a shift of the interaction energy does not give its reference), so it is not mixed with the rest.

    Raises SelectronError where an element has several energies.
    """
    alone: dict[str, float] = {}
    rest = []
    for one in structures:
        if not is_isolated_atom(one.atoms):
            rest.append(one)
            continue
        symbol = chemical_symbols[int(one.atoms.numbers[0])]
        if one.has_energy and abs(alone.setdefault(symbol, one.energy_eV) - one.energy_eV) > ATOM_ENERGIES_DIFFER_eV:
            raise SelectronError(
                f"Isolated atoms of {symbol} in the {what} set have different energies, {alone[symbol]:.6g} and "
                f"{one.energy_eV:.6g} eV: keep the one of the state that is meant."
            )
    return rest, alone


def write_for_mace(path: Path, structures: Sequence[Labelled], energy_shifts_eV: np.ndarray | None = None) -> None:
    """Extended XYZ with the keys that mace-torch reads by default (REF_energy, REF_forces, REF_stress, config weights).

    A label that is not to be used is not written, which mace-torch takes as a weight of 0. Whatever else a structure carries (a
    config_type, a head) would mean something to mace-torch, and is left out.
    """
    write_extxyz(
        path,
        (_plain(one, 0.0 if energy_shifts_eV is None else energy_shifts_eV[i]) for i, one in enumerate(structures)),
    )


def _plain(one: Labelled, shift_eV: float) -> Atoms:
    atoms = Atoms(one.atoms.numbers, one.atoms.positions, cell=one.atoms.cell, pbc=one.atoms.pbc)
    if one.has_energy:
        atoms.info["REF_energy"] = one.energy_eV + float(shift_eV)
    if one.has_forces:
        atoms.arrays["REF_forces"] = one.forces
    if one.stress is not None:
        atoms.info["REF_stress"] = one.stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
    atoms.info.update(weights_of(one))
    return atoms


def weights_of(one: Labelled) -> dict[str, float]:
    """The weights of its labels that are not 1, under mace-torch's keys for ``info``."""
    each = {"energy": one.energy_weight, "forces": one.forces_weight, "stress": one.stress_weight}
    weights = {WEIGHT_KEY: one.weight, **{weight_key(label): weight for label, weight in each.items()}}
    return {key: weight for key, weight in weights.items() if weight != 1.0}


def equally_weighted(structures: Iterable[Labelled]) -> list[Labelled]:
    """The same with weights of 1; what is not to be used (a weight of 0 of one label) stays so."""
    return [
        one._replace(
            weight=1.0,
            energy_weight=float(one.energy_weight > 0.0),
            forces_weight=float(one.forces_weight > 0.0),
            stress_weight=float(one.stress_weight > 0.0),
        )
        for one in structures
    ]


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
