"""What structures say of themselves: names in ``info`` with few different values, weights of labels, what is held fixed."""

from __future__ import annotations

from array import array
from collections import Counter
from contextlib import suppress

import numpy as np
from ase import Atoms

from selectron.inspection.result import Range, Weights
from selectron.structures.label_weights import LabelWeights, weight_key
from selectron.structures.writing import WEIGHT_KEY

VALUES_AT_MOST = 30
"""A text with more different values than this names single structures, not kinds of them."""
KEYS_AT_MOST = 50


class TextsCensus:
    """Counts the values of texts in ``info`` (config_type, head, level, tag, ...), as long as they are few."""

    def __init__(self) -> None:
        self._values: dict[str, Counter[str] | None] = {}

    def add(self, atoms: Atoms) -> None:
        """Takes one structure."""
        for key, value in atoms.info.items():
            if not isinstance(value, str):
                continue
            counter = self._values.get(key, _NEW)
            if counter is _NEW:
                if len(self._values) >= KEYS_AT_MOST:
                    continue
                counter = self._values[key] = Counter()
            if counter is not None:
                counter[value] += 1
                if len(counter) > VALUES_AT_MOST:
                    self._values[key] = None

    def result(self) -> dict[str, dict[str, int]]:
        """Structures by value, for each key with few values."""
        return {str(key): dict(found.most_common()) for key, found in self._values.items() if found}


_NEW: Counter[str] = Counter()


class WeightsCensus:
    """Counts the weights that structures give their labels, by key."""

    def __init__(self) -> None:
        self._values = {key: array("d") for key in (WEIGHT_KEY, *map(weight_key, LabelWeights._fields[1:]))}

    def add(self, atoms: Atoms) -> None:
        """Takes one structure; what is no number is left to the reader of labels."""
        for key, values in self._values.items():
            if key in atoms.info:
                with suppress(TypeError, ValueError):
                    values.append(float(atoms.info[key]))

    def result(self) -> dict[str, Weights]:
        """What was seen so far; keys that no structure has are left out."""
        found = {key: np.array(values) for key, values in self._values.items() if values}
        return {key: Weights(Range.of(values), int((values == 0.0).sum())) for key, values in found.items()}
