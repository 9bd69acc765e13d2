"""What a structure's labels count for in training: mace-torch's keys in ``info``.

| key                    | factor of                                     |
|------------------------|-----------------------------------------------|
| `config_weight`        | all terms of the loss                         |
| `config_energy_weight` | the energy's                                  |
| `config_forces_weight` | the forces'                                   |
| `config_stress_weight` | the stress's                                  |

All are 1 where they are absent.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from ase import Atoms

from selectron.errors import SelectronError
from selectron.structures.writing import WEIGHT_KEY

_NO_NUMBERS = (bool, np.bool_, str, bytes)


class LabelWeights(NamedTuple):
    """Factors of a structure's labels in the loss: of all of them, and of each beside that."""

    all: float = 1.0
    energy: float = 1.0
    forces: float = 1.0
    stress: float = 1.0


def weight_key(label: str) -> str:
    """The key of the weight of "energy", "forces" or "stress", as mace-torch has it."""
    return f"config_{label}_weight"


def label_weights(atoms: Atoms, *, index: int, what: str = "training") -> LabelWeights:
    """The weights of structure ``index`` of the ``what`` set.

    Raises SelectronError for one that is no number of at least 0.
    """
    keys = [WEIGHT_KEY, *map(weight_key, LabelWeights._fields[1:])]
    return LabelWeights(*(_weight(atoms, key, f"Structure {index} of the {what} set") for key in keys))


def counts_for_nothing(atoms: Atoms, label: str) -> bool:
    """Whether the weight of "energy", "forces" or "stress" is 0, so that the label need not be there."""
    given = atoms.info.get(weight_key(label))
    return not isinstance(given, _NO_NUMBERS) and bool(np.all(np.equal(given, 0.0))) if given is not None else False


def _weight(atoms: Atoms, key: str, where: str) -> float:
    given = atoms.info.get(key, 1.0)
    try:
        weight = math.nan if isinstance(given, _NO_NUMBERS) else float(given)
    except (TypeError, ValueError):
        weight = math.nan
    if not (math.isfinite(weight) and weight >= 0.0):
        raise SelectronError(f"{where} has the {key} {given!r}, which is no number of at least 0.")
    return weight
