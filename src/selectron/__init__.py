"""selectron finds the structures worth a quantum-chemistry label for an interatomic potential.

The small API, imported when first used::

    inspect         what is in files, before anything is spent on them
    Pool            structures of files, streamed
    load_potential  a model by name or path
    make_features   a feature map on it
    screen          variances of a pool, and a batch worth labelling
    write_picks, write_scores, draw_map   what a screening leaves behind
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selectron.errors import SelectronError
    from selectron.features import FeatureOptions, FeatureStore, make_features
    from selectron.inspection import Inspection, inspect
    from selectron.potentials import Committee, load_potential
    from selectron.screening import Screening, write_picks, write_scores
    from selectron.screening import draw as draw_map
    from selectron.screening.screen import screen
    from selectron.structures import Pool

__version__ = "0.1.0"

_WHERE = {
    "Committee": "selectron.potentials:Committee",
    "FeatureOptions": "selectron.features:FeatureOptions",
    "FeatureStore": "selectron.features:FeatureStore",
    "Inspection": "selectron.inspection:Inspection",
    "Pool": "selectron.structures:Pool",
    "Screening": "selectron.screening:Screening",
    "SelectronError": "selectron.errors:SelectronError",
    "draw_map": "selectron.screening:draw",
    "inspect": "selectron.inspection:inspect",
    "load_potential": "selectron.potentials:load_potential",
    "make_features": "selectron.features:make_features",
    "screen": "selectron.screening:screen",
    "write_picks": "selectron.screening:write_picks",
    "write_scores": "selectron.screening:write_scores",
}

__all__ = [
    "Committee",
    "FeatureOptions",
    "FeatureStore",
    "Inspection",
    "Pool",
    "Screening",
    "SelectronError",
    "draw_map",
    "inspect",
    "load_potential",
    "make_features",
    "screen",
    "write_picks",
    "write_scores",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'selectron' has no attribute {name!r}")
    module, _, attribute = _WHERE[name].partition(":")
    # the module of the same name as a function (selectron.screening.screen) must not shadow it
    value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value
