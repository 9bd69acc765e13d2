"""Activation features: the invariant node features of all layers, summed over a structure's atoms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from ase import Atoms

from selectron.errors import SelectronError
from selectron.features.base import Normalisation, fingerprint, normalised
from selectron.potentials.mace import MacePotential
from selectron.rows import Rows, one_row_each


class ActivationFeatures:
    """φ(x) = Σ_i h_i, h_i the l = 0 node features of atom i from all layers (arXiv 2605.03964, activation kernel).

    ``normalise="per-atom"`` gives the mean over atoms. One row a structure, D = C of the model.
    """

    def __init__(self, potential: MacePotential, *, normalise: Normalisation = "none") -> None:
        if "node-features" not in potential.capabilities:
            raise SelectronError(f"{potential.name} gives no node features; activation features need a MACE model.")
        self.potential = potential
        self.name = "activation"
        self.dim = potential.feature_dim
        self.normalise = normalise
        self.settings: dict[str, Any] = {"normalise": normalise}
        self.fingerprint = fingerprint(self.name, self.settings, potential.fingerprint)

    def rows(self, structures: Sequence[Atoms]) -> Rows:
        """(n, C)."""
        batch = self.potential.batch(structures)
        features = self.potential.evaluate(batch, forces=False, node_features=True).node_features
        assert features is not None
        pooled = torch.zeros(batch.n_structures, self.dim, dtype=features.dtype, device=features.device)
        pooled.index_add_(0, batch.system_idx, features)
        return normalised(one_row_each(pooled), batch.counts, self.normalise)
