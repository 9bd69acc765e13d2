"""What a structure carries of labels from before, set aside when it is labelled anew.

Programs look for labels by name: mace-torch 0.3.16 for ``REF_energy``, ``REF_forces`` and others that begin with ``REF_``, ASE
and selectron for ``energy``, ``forces``, ``stress`` and virials. Two levels of theory side by side in one frame would be mixed
sooner or later.
"""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from typing import Any

from ase import Atoms

from selectron.structures.label_values import results_of

PREFIX = "old_"
"""In front of the name of what is set aside; no program that we know of looks for such a name."""

_READ = re.compile(
    r"REF_.+|(free_)?energy|forces?|stress|virials?|config_(energy|forces|stress|virials)_weight", re.IGNORECASE
)


def set_aside(atoms: Atoms) -> list[str]:
    """Renames old labels in ``info`` and arrays of ``atoms``, with their weights: REF_energy becomes old_REF_energy.

    Gives the names that are gone, sorted. The weights of energy, forces, stress and virials are set aside only with a label, or
    with results of a calculator, that they can have been meant for. Results of the calculator itself are left alone.
    """
    gone = {
        key for place in (atoms.info, atoms.arrays) for key in place if isinstance(key, str) and _READ.fullmatch(key)
    }
    weights = {key for key in gone if key.lower().endswith("_weight")}
    if gone == weights and not {"energy", "forces"} & results_of(atoms).keys():
        return []
    for place in (atoms.info, atoms.arrays):
        _rename(place, gone)
    return sorted(gone)


def _rename(place: MutableMapping[str, Any], gone: set[str]) -> None:
    for key in sorted(gone & place.keys()):
        name = PREFIX + key
        while name in place:  # of a labelling before the last
            name = PREFIX + name
        place[name] = place.pop(key)
