"""Variances of single atoms, where a feature map has rows of their own for them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch

from selectron.acquisition import Posterior, Scale
from selectron.features import FeatureMap
from selectron.rows import Rows


def resolves_atoms(features: FeatureMap) -> bool:
    """Whether three rows of a structure belong to each of its atoms: exact force rows."""
    return bool(getattr(features, "per_atom", False))


def nominal_rows(features: FeatureMap, atoms: np.ndarray) -> np.ndarray:
    """(n,) rows that structures of so many atoms stand for: 1 for an energy, 3N for forces, however few the probes."""
    known: Any = getattr(features, "nominal_rows", None)
    if known is None:
        return np.ones(len(atoms))
    return known(torch.from_numpy(atoms)).numpy()


def atom_variances(posterior: Posterior, scale: Scale, rows: Rows, features: FeatureMap) -> list[np.ndarray]:
    """For each structure (N,) float64: the sum of the variances of its atoms' three force components, feature units squared."""
    per_row = posterior.variance(scale.apply(rows), per="row").cpu().numpy()
    leading = int(getattr(features, "leading_rows", 0))
    offsets = rows.offsets.tolist()
    return [per_row[start + leading : stop].reshape(-1, 3).sum(axis=1) for start, stop in pairwise(offsets)]
