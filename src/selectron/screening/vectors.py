"""One vector a structure, for distances and for the map."""

from __future__ import annotations

import torch
from torch import Tensor

from selectron.acquisition import structure_embedding
from selectron.features import FeatureMap
from selectron.rows import Rows


def structure_vectors(rows: Rows, features: FeatureMap) -> Tensor:
    """(n, q) float64: the row itself, or :func:`structure_embedding` for maps with several rows a structure.

    Rows of training set and pool may be exact and probed: the embedding, quadratic in the rows, suits both.
    """
    single = not hasattr(features, "nominal_rows")
    return structure_embedding(rows, single=single).to(torch.float64)
