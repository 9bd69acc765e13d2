"""What an inspection found, as plain values."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np


class Range(NamedTuple):
    """Smallest, middle and largest of ``count`` finite numbers; all NaN where there are none."""

    count: int = 0  # type: ignore[assignment]  # hides tuple.count
    min: float = math.nan
    median: float = math.nan
    max: float = math.nan

    @classmethod
    def of(cls, values: np.ndarray) -> Range:
        """Of the finite ones among ``values``."""
        finite = values[np.isfinite(values)]
        if not len(finite):
            return cls()
        return cls(len(finite), float(finite.min()), float(np.median(finite)), float(finite.max()))


class Refusal(NamedTuple):
    """A structure that cannot be used: its file, its place there (counted from 0) and the reason."""

    file: str
    index: int  # type: ignore[assignment]  # hides tuple.index
    reason: str


class Place(NamedTuple):
    """A structure worth a look: its file, its place there (counted from 0), its formula, and the number that made it so."""

    file: str
    index: int  # type: ignore[assignment]  # hides tuple.index
    formula: str
    value: float


@dataclass
class RefusalKind:
    """How many structures cannot be used for one kind of reason, and the first of them."""

    count: int
    first: Refusal


@dataclass
class Makeup:
    """Elements (structures that hold each, atoms of each), sizes in atoms, structures by periodicity.

    ``with_vacuum`` counts structures with an empty layer across a periodic direction, by these directions.
    """

    structures: dict[str, int] = field(default_factory=dict)
    atoms: dict[str, int] = field(default_factory=dict)
    sizes: Range = field(default_factory=Range)
    kinds: dict[str, int] = field(default_factory=dict)
    with_vacuum: dict[str, int] = field(default_factory=dict)


class Repeats(NamedTuple):
    """``duplicates``: structures with the same atoms in the same places as an earlier one.

    ``other_state`` of them have another charge or multiplicity than the one before; ``other_label`` have the same, and
    another energy: ``examples`` are places (earlier, later) in the pool and the difference in eV, the largest first.
    """

    duplicates: int = 0
    other_state: int = 0
    other_label: int = 0
    examples: list[tuple[int, int, float]] = []  # noqa: RUF012


class Weights(NamedTuple):
    """Weights of labels under one key: their range, and how many are zero."""

    range: Range
    zeros: int


@dataclass
class Energies:
    """Energies of structures that are no isolated atoms.

    | field             | unit    | meaning                                                                            |
    |-------------------|---------|------------------------------------------------------------------------------------|
    | per_atom_eV       | eV/atom | range                                                                              |
    | spread_eV_atom    | eV/atom | robust standard deviation of what a composition does not explain                   |
    | determined        |         | whether there are enough structures for that to mean something                     |
    | outliers          |         | how many are further than that allows, and the worst of them (value: eV/atom off)  |
    | ignored           |         | energies with a weight of 0, which are not in any of this                          |
    """

    per_atom_eV: Range
    spread_eV_atom: float
    determined: bool
    outliers: int
    worst: list[Place]
    ignored: int = 0


@dataclass
class Forces:
    """The largest force on an atom of each structure, eV/Å.

    ``large``: structures where it is above 50 eV/Å, ``worst`` the largest of them; ``zero``: structures of several atoms
    whose forces are all exactly 0.
    """

    largest_eV_A: Range
    large: int
    worst: list[Place]
    zero: int


@dataclass
class Charges:
    """Charges and multiplicities that structures state.

    | field          | meaning                                                                                                |
    |----------------|--------------------------------------------------------------------------------------------------------|
    | keys           | structures by key that said it                                                                         |
    | assumed_charge, assumed_multiplicity | structures that state none                                                       |
    | unread         | structures by key that looks like a charge or multiplicity and is not understood; one value of each    |
    | odd_assumed    | molecules with an odd number of electrons that state no multiplicity                                   |
    | impossible     | molecules whose stated multiplicity does not go with their number of electrons                         |
    """

    charges: dict[int, int] = field(default_factory=dict)
    multiplicities: dict[int, int] = field(default_factory=dict)
    keys: dict[str, int] = field(default_factory=dict)
    assumed_charge: int = 0
    assumed_multiplicity: int = 0
    unread: dict[str, int] = field(default_factory=dict)
    unread_examples: dict[str, str] = field(default_factory=dict)
    odd_assumed: int = 0
    impossible: int = 0


class ModelErrors(NamedTuple):
    """Errors of a model over structures: of energies in meV/atom, of force components in eV/Å."""

    energy_mae_meV_atom: float
    energy_rmse_meV_atom: float
    force_mae_eV_A: float
    force_rmse_eV_A: float


class Shift(NamedTuple):
    """The shift of level of theory of an element, label minus model, and its standard error.

    Both in eV; the error is infinite where the data leave the shift open.
    """

    eV: float
    error_eV: float


class Worst(NamedTuple):
    """A structure on which a model errs much: model minus label after the shift, and ``why``: energy or forces."""

    file: str
    index: int  # type: ignore[assignment]  # hides tuple.index
    formula: str
    energy_meV_atom: float
    force_rmse_eV_A: float
    why: str


@dataclass
class Judgement:
    """What a model says of structures, of which ``structures`` were drawn ``of`` so many.

    | field        | meaning                                                                                                 |
    |--------------|---------------------------------------------------------------------------------------------------------|
    | lacking      | structures by element that the model does not know                                                       |
    | before, after | errors before and after the shift of level of theory; None without labels                              |
    | shift        | by element; ``shift_determined``: whether the compositions determine each by itself                     |
    | shift_significant | whether ``selectron train`` would move the references by it (references: auto)                     |
    | worst        | the ten structures that stand out most, after the shift                                                  |
    | seconds      | what the evaluation took; ``features_s``: about what energy-ntk features of all would take               |
    """

    model: str
    structures: int
    of: int
    lacking: dict[str, int]
    seconds: float
    features_s: float
    before: ModelErrors | None = None
    after: ModelErrors | None = None
    shift: dict[str, Shift] = field(default_factory=dict)
    shift_determined: bool = False
    shift_significant: bool = False
    typical_shift_eV_atom: float = math.nan
    worst: list[Worst] = field(default_factory=list)


@dataclass
class Inspection:
    """What selectron sees in files.

    | field              | meaning                                                                                            |
    |--------------------|----------------------------------------------------------------------------------------------------|
    | frames             | structures in the files; each is usable, refused, or an isolated atom                              |
    | refused            | those that cannot be used: they cannot be read, fail a check, or carry a label that is no number   |
    | refused_count      | how many; ``refused`` lists the first 100,000                                                      |
    | label_source       | the keys of energy, forces and stress; None where there is no label, or no one source of them      |
    | labelled           | whether there are labels at all                                                                    |
    | trainable, why     | whether ``selectron train`` would take the files as they are; if not, its sentence                 |
    | isolated_energies_eV | the different energies of each element's isolated atoms                                          |
    | label_keys         | structures by key that may be a label, and ``label_ranges`` what stands there (eV, eV/Å, eV/Å³)    |
    | texts              | structures by value of each text in ``info`` that has few values: config_type, head, level, ...    |
    """

    files: list[str]
    frames: int
    usable: int
    refused: list[Refusal]
    refused_count: int
    refusal_kinds: list[RefusalKind]
    warnings: list[str]
    makeup: Makeup
    label_source: dict[str, str | None] | None
    labelled: bool
    trainable: bool
    why: str | None
    isolated_atoms: int
    isolated_energies_eV: dict[str, list[float]]
    isolated_elements: dict[str, int]
    charges: Charges
    repeats: Repeats
    repeat_examples: list[tuple[Place, Place]]
    label_keys: dict[str, int]
    label_ranges: dict[str, Range]
    label_notes: list[str]
    energies: Energies | None
    forces: Forces | None
    stress: Range | None
    weights: dict[str, Weights]
    texts: dict[str, dict[str, int]]
    info_keys: dict[str, int]
    array_keys: dict[str, int]
    result_keys: dict[str, int]
    constraints: dict[str, int]
    model: Judgement | None = None

    @property
    def refusal(self) -> str | None:
        """The sentence with which ``selectron inspect`` ends, with exit code 2; None where all is well.

        That there are no labels is no reason: such a pool can be screened.
        """
        return self.why if self.labelled or not self.usable else None

    def as_dict(self) -> dict[str, Any]:
        """An object for JSON: names and values as ``selectron inspect --json`` has them (docs/inspect.md)."""
        return plain(
            {
                "files": self.files,
                "frames": self.frames,
                "usable": self.usable,
                "refused": self.refused,
                "refused_count": self.refused_count,
                "warnings": self.warnings,
                "elements": {
                    symbol: {"structures": count, "atoms": self.makeup.atoms[symbol]}
                    for symbol, count in self.makeup.structures.items()
                },
                "atoms": self.makeup.sizes,
                "periodicity": self.makeup.kinds,
                "vacuum": self.makeup.with_vacuum,
                "label_source": self.label_source,
                "trainable": self.trainable,
                "why": self.why,
                "label_keys": {
                    key: {"structures": count, **self.label_ranges.get(key, Range())._asdict()}
                    for key, count in self.label_keys.items()
                },
                "label_notes": self.label_notes,
                "energies": self.energies,
                "forces": self.forces,
                "stress": self.stress,
                "isolated_atoms": self.isolated_atoms,
                "isolated_elements": self.isolated_elements,
                "isolated_energies_eV": self.isolated_energies_eV,
                "charges": self.charges.charges,
                "multiplicities": self.charges.multiplicities,
                "assumed": {
                    "charge": self.charges.assumed_charge,
                    "multiplicity": self.charges.assumed_multiplicity,
                },
                "charge_keys": self.charges.keys,
                "charge_keys_unread": self.charges.unread,
                "odd_electrons": self.charges.odd_assumed,
                "impossible_multiplicities": self.charges.impossible,
                "duplicates": self.repeats.duplicates,
                "duplicates_other_label": self.repeats.other_label,
                "duplicates_other_charge": self.repeats.other_state,
                "constraints": self.constraints,
                "weights": self.weights,
                "texts": self.texts,
                "info_keys": self.info_keys,
                "array_keys": self.array_keys,
                "result_keys": self.result_keys,
                "model": self.model,
            }
        )


def plain(value: Any) -> Any:
    """``value`` as JSON has it: dataclasses and named tuples become objects, numbers that are not finite null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: plain(getattr(value, one.name)) for one in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {name: plain(one) for name, one in zip(value._fields, value, strict=True)}
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
