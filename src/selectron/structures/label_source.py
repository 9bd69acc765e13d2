"""Which keys of a file its labels come from: one source for energy, forces and stress, and for all structures of a set.

Files hold more than one energy: what the calculator that sampled a structure left, what the reference method gave, an older
level. Where the user names none, ``REF_energy``, ``REF_forces`` and ``REF_stress`` or ``REF_virials`` (the default keys of
mace-torch 0.3.16) go before the results of a calculator, ``energy``, ``forces`` and ``stress`` (which ASE 3.29 takes out of an
extended XYZ file's columns and comment line). Everything else has to be named. A set in which some structures have one source
and others another, or the energy of one and the forces of another, is refused.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from ase import Atoms
from pydantic import BaseModel, ConfigDict, Field

from selectron.errors import SelectronError
from selectron.structures.isolated import is_isolated_atom
from selectron.structures.label_values import LabelSource, has_volume, places, value_of
from selectron.structures.label_weights import counts_for_nothing
from selectron.wording import counted, listed

REFERENCE = LabelSource("REF_energy", "REF_forces")
RESULTS = LabelSource("energy", "forces")
HOW_TO_CHOOSE = "say which with --energy-key, --forces-key and --stress-key of selectron train"

_ENERGY = re.compile(r"(?:free_)?energy", re.IGNORECASE)
_FORCES = re.compile(r"forces?", re.IGNORECASE)
_LABEL = re.compile(r"energy|forces?(?![a-z])|stress(?!es)|virial", re.IGNORECASE)
_NO_LABEL = re.compile(r"weight|variance|error|model_", re.IGNORECASE)
_SAME_eV = 1e-6


class LabelKeys(BaseModel):
    """The keys that the user names; what is not named is found."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    energy: str | None = Field(
        default=None,
        min_length=1,
        description="Key of the energy in eV; none: REF_energy, else the calculator's energy.",
    )
    forces: str | None = Field(
        default=None, min_length=1, description="Key of the forces in eV/Å; none: those that go with the energy."
    )
    stress: str | None = Field(
        default=None,
        min_length=1,
        description="Key of the stress in eV/Å³ or, if its name holds 'virial', of the virial in eV; none: that which goes "
        "with the energy.",
    )


class _Pattern(NamedTuple):
    """What a kind of structure has: its keys that may be labels, and whether it needs an energy and forces at all."""

    keys: frozenset[str]
    energy_needed: bool
    forces_needed: bool
    isolated: bool


class LabelCensus:
    """Counts the keys of structures that are fed one at a time, and says which are the labels'.

    Memory is that of the distinct combinations of keys, however many structures there are.

    Args:
        keys: what the user names.
        planar: structures are points in the plane, of one atom that is not an isolated one.
    """

    def __init__(self, keys: LabelKeys | None = None, *, what: str = "training", planar: bool = False) -> None:
        self.keys, self.what, self.planar = keys or LabelKeys(), what, planar
        self._named = [key for key in (self.keys.energy, self.keys.forces, self.keys.stress) if key is not None]
        self._patterns: Counter[_Pattern] = Counter()
        self._first: dict[_Pattern, int] = {}
        self._without_volume = 0
        self._free_energy_eV = 0.0

    def add(self, atoms: Atoms, index: int | None = None) -> None:
        """Counts one structure more, which has the ``index`` in sentences; None: the number of those before it."""
        isolated = not self.planar and is_isolated_atom(atoms)
        keys = frozenset(key for key in self.candidates(atoms) if value_of(atoms, key) is not None)
        pattern = _Pattern(
            keys,
            energy_needed=not counts_for_nothing(atoms, "energy"),
            forces_needed=not isolated and not counts_for_nothing(atoms, "forces"),
            isolated=isolated,
        )
        self._first.setdefault(pattern, len(self) if index is None else index)
        self._patterns[pattern] += 1
        self._without_volume += not isolated and not has_volume(atoms)
        if {"energy", "free_energy"} <= keys:
            try:
                difference = abs(float(value_of(atoms, "energy")) - float(value_of(atoms, "free_energy")))
            except (TypeError, ValueError):
                return
            self._free_energy_eV = max(self._free_energy_eV, difference)

    def candidates(self, atoms: Atoms) -> Iterator[str]:
        """Keys of one structure that may be labels, by their names, and those that the user names."""
        for place in places(atoms):
            yield from (
                key for key in place if isinstance(key, str) and _LABEL.search(key) and not _NO_LABEL.search(key)
            )
        yield from self._named

    def __len__(self) -> int:
        return self._patterns.total()

    @property
    def isolated_atoms(self) -> int:
        """How many of the structures are isolated atoms."""
        return sum(count for pattern, count in self._patterns.items() if pattern.isolated)

    @property
    def structures(self) -> int:
        """How many are no isolated atoms."""
        return len(self) - self.isolated_atoms

    def counts(self) -> dict[str, int]:
        """How many structures have each key that may be a label, the most frequent first."""
        found: Counter[str] = Counter()
        for pattern, count in sorted(self._patterns.items(), key=lambda item: self._first[item[0]]):
            found.update(dict.fromkeys(sorted(pattern.keys), count))
        return dict(found.most_common())

    def source(self, *, forces_needed: bool = True) -> LabelSource:
        """Where the labels of all structures come from.

        ``forces_needed``: whether a set without any forces is refused.

        Raises SelectronError, with what was found and how often, where no source is that of every structure.
        """
        if self.keys.energy is not None or self.keys.forces is not None:
            found = self._named_source(forces_needed)
        else:
            found = self._found_source(forces_needed)
        return found._replace(stress=self._stress_key(found))

    def _found_source(self, forces_needed: bool) -> LabelSource:
        reference, results = (self._has_any(source) for source in (REFERENCE, RESULTS))
        complete = [one for one in (REFERENCE, RESULTS) if not self._lacking(one, forces_needed)]
        if reference and REFERENCE in complete:
            return self._without_absent_forces(REFERENCE)
        if reference and results:
            raise SelectronError(
                f"The {self.what} set has labels of two sources, and not REF_energy and REF_forces for all: {self._counted()}; "
                f"{HOW_TO_CHOOSE}, or leave out the others."
            )
        if not reference and results and RESULTS in complete:
            return self._without_absent_forces(RESULTS)
        raise SelectronError(self._missing(REFERENCE if reference else RESULTS, forces_needed))

    def _named_source(self, forces_needed: bool) -> LabelSource:
        counts = self.counts()
        energy, forces = self.keys.energy, self.keys.forces
        for key in (energy, forces):
            if key is not None and key not in counts:
                raise SelectronError(f"No structure of the {self.what} set has {key}; there are {self._counted()}.")
        if forces is None:
            assert energy is not None
            forces = next((key for key in _siblings(energy, _ENERGY, ("forces", "force")) if key in counts), None)
            if forces is None and forces_needed and self.structures:
                raise SelectronError(
                    f"The {self.what} set has {energy}, but no {next(_siblings(energy, _ENERGY, ('forces',)), 'forces')} "
                    f"that would go with it: name the forces' key too (--forces-key). There are "
                    f"{self._counted()}."
                )
        if energy is None:
            assert forces is not None
            energy = next((key for key in _siblings(forces, _FORCES, ("energy",)) if key in counts), None)
            if energy is None:
                raise SelectronError(
                    f"The {self.what} set has {forces}, but no energy that would go with it: name the energy's key too "
                    f"(--energy-key). There are {self._counted()}."
                )
        found = LabelSource(energy, forces)
        if self._lacking(found, forces_needed):
            raise SelectronError(self._missing(found, forces_needed))
        return self._without_absent_forces(found)

    def _stress_key(self, source: LabelSource) -> str | None:
        counts = self.counts()
        if self.keys.stress is not None:
            if self.keys.stress not in counts:
                raise SelectronError(
                    f"No structure of the {self.what} set has {self.keys.stress}; there are {self._counted()}."
                )
            return self.keys.stress
        return next((key for key in _stress_keys(source) if key in counts), None)

    def _has_any(self, source: LabelSource) -> bool:
        return bool({source.energy, source.forces} & self.counts().keys())

    def _without_absent_forces(self, source: LabelSource) -> LabelSource:
        return source if source.forces in self.counts() else source._replace(forces=None)

    def _lacking(self, source: LabelSource, forces_needed: bool) -> dict[_Pattern, list[str]]:
        """The kinds of structures that need a label and have none of this source, with what they lack."""
        forces_needed = forces_needed or self._without_absent_forces(source).forces is not None
        found: dict[_Pattern, list[str]] = {}
        for pattern in self._patterns:
            lacks = [source.energy] if pattern.energy_needed and source.energy not in pattern.keys else []
            if pattern.forces_needed and forces_needed and source.forces not in pattern.keys:
                lacks.append(str(source.forces))
            if lacks:
                found[pattern] = lacks
        return found

    def _missing(self, source: LabelSource, forces_needed: bool) -> str:
        lacking = self._lacking(source, forces_needed)
        pattern = min(lacking, key=lambda one: self._first[one])
        many = sum(self._patterns[one] for one in lacking)
        lacks = " and no ".join(lacking[pattern])
        others = {key: count for key, count in self.counts().items() if key not in ("energy", "forces")}
        return (
            f"Structure {self._first[pattern]} of the {self.what} set has no {lacks}"
            + (f", like {counted(many - 1, 'other')}" if many > 1 else "")
            + "; energies and forces are needed, as extended XYZ holds them in REF_energy and REF_forces or energy and "
            "forces."
            + (
                f" There are {self._counted()}; {HOW_TO_CHOOSE}."
                if others or source not in (REFERENCE, RESULTS)
                else ""
            )
        )

    def _counted(self) -> str:
        """All keys that may be labels with how many structures have them."""
        counts = self.counts()
        each = [f"{key} in {count:,}" for key, count in list(counts.items())[:12]]
        return f"{listed(each)} of {counted(len(self), 'structure')}" if each else "no keys that look like labels"

    def notes(self, source: LabelSource) -> list[str]:
        """What a person should know of labels that are there and are not read, each without a full stop."""
        counts = self.counts()
        read = {source.energy, source.forces, source.stress}
        notes = []
        free = source.energy == "energy" and "free_energy" in counts
        beside = [key for key in counts if key not in read and not (free and key == "free_energy")][:8]
        if beside:
            stand = "stand beside them and are not read" if len(beside) > 1 else "stands beside them and is not read"
            notes.append(f"{listed(beside)} {stand}")
        if free and self._free_energy_eV > _SAME_eV:
            notes.append(
                f"free_energy, which differs from energy by up to {self._free_energy_eV:.3g} eV, is not read; "
                "--energy-key free_energy takes it"
            )
        if source.stress is not None and self._without_volume:
            notes.append(
                f"a stress has no meaning in {counted(self._without_volume, 'structure')} without three periodic directions, "
                "and is not read there"
            )
        return notes

    def line(self, source: LabelSource, energies_eV_atom: np.ndarray, stresses: int = 0) -> str:
        """One sentence for the person who runs a command.

        Args:
            source: what :meth:`source` gave.
            energies_eV_atom: (n,) energies that are read, of structures that are no isolated atoms, each over its atoms.
            stresses: how many stresses are read.
        """
        keys = [source.energy] if source.forces is None else [source.energy, source.forces]
        if source.stress is not None:
            some = "" if stresses == self.structures else f" (of {stresses:,})"
            keys.append(f"{source.stress}{some}")
        notes = "; ".join(self.notes(source))
        text = f"Labels of the {self.what} set: {counted(self.structures, 'structure')}"
        if self.isolated_atoms:
            text += f" and {counted(self.isolated_atoms, 'isolated atom')}"
        text += f", {listed(keys)}" + (f" ({notes})" if notes else "")
        if len(energies_eV_atom):
            low, high = float(np.min(energies_eV_atom)), float(np.max(energies_eV_atom))
            text += f", {low:.2f} to {high:.2f} eV/atom" if high > low else f", {low:.2f} eV/atom"
        return text + "."


def _siblings(key: str, stem: re.Pattern[str], wanted: tuple[str, ...]) -> Iterator[str]:
    """``key`` with the word of ``stem`` replaced by each of ``wanted``, in lower case, capitalised, or upper case as it is."""
    found = stem.search(key)
    if found is None:
        return
    case = str.upper if found[0].isupper() else str.capitalize if found[0][0].isupper() else str
    for word in wanted:
        yield key[: found.start()] + case(word) + key[found.end() :]


def _stress_keys(source: LabelSource) -> Iterator[str]:
    """Names under which the stress or virial of a source may stand, the most direct first."""
    return _siblings(source.energy, _ENERGY, ("stress", "virials", "virial"))
