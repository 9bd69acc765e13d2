"""What a feature map is, and the normalisations that all of them share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Literal, Protocol, get_args

import torch
from ase import Atoms

from selectron.errors import SelectronError
from selectron.rows import Rows

Normalisation = Literal["none", "per-atom", "unit"]


class FeatureMap(Protocol):
    """Structures to feature rows.

    ``settings`` says in JSON all that the rows depend on beside the model, ``fingerprint`` hashes it together with the
    model: two maps with one fingerprint give one structure the same rows.
    """

    name: str
    dim: int
    settings: dict[str, Any]
    fingerprint: str

    def rows(self, structures: Sequence[Atoms]) -> Rows:
        """Rows of the structures, in one batch, on the map's device and in its dtype; no autograd graph."""
        ...


def fingerprint(name: str, settings: dict[str, Any], model_fingerprint: str) -> str:
    """32 hex characters; the version of the definition is part of it, so that old caches never serve new maps."""
    text = json.dumps({"map": name, "definition": 1, "model": model_fingerprint, **settings}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def check_normalisation(normalise: str) -> Normalisation:
    """The normalisation, or a sentence where there is none of that name."""
    if normalise not in get_args(Normalisation):
        raise SelectronError(f"{normalise!r} is no normalisation; there are {', '.join(get_args(Normalisation))}.")
    return normalise  # type: ignore[return-value]


def normalised(rows: Rows, atoms: torch.Tensor, normalise: Normalisation) -> Rows:
    """Rows as they are, divided by the number of atoms (n,), or each structure's rows scaled to unit trace.

    Unit trace: Σ over the rows of a structure of ‖φ‖² is 1, so that the kernel of a structure with itself is 1. A structure
    whose rows are all zero (one isolated atom, say) stays zero.
    """
    if normalise == "none":
        return rows
    if normalise == "per-atom":
        scale = 1.0 / atoms.to(rows.values).clamp(min=1)
    else:
        trace = rows.sum_per_structure(rows.values.square().sum(dim=1))
        scale = torch.where(trace > 0, trace.clamp(min=torch.finfo(trace.dtype).tiny).rsqrt(), torch.zeros_like(trace))
    return Rows(rows.values * scale[rows.owner].unsqueeze(1), rows.counts)
