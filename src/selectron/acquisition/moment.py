"""The streamed second moment of feature rows, G = Σ_x Φ(x)ᵀ Φ(x)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..errors import SelectronError
from ..rows import Rows

CHUNK_ROWS = 8192


def float64_chunks(values: Tensor, device: torch.device | str, size: int = CHUNK_ROWS) -> Iterator[Tensor]:
    """Consecutive pieces of ``values`` (R, D), at most ``size`` rows each, as float64 on ``device``."""
    for start in range(0, values.shape[0], size):
        yield values[start : start + size].to(device=device, dtype=torch.float64)


class SecondMoment:
    """G = Σ_x Φ(x)ᵀ Φ(x) over every structure seen, (D, D) float64, in feature units squared.

    Rows of any dtype are accumulated in float64, ``chunk_rows`` at a time, so memory is O(D² + chunk · D). Moments
    add over shards: ``merge`` of two shards equals one pass over both. A row that is not finite raises
    `SelectronError`.
    """

    def __init__(self, dim: int, *, device: torch.device | str = "cpu", chunk_rows: int = CHUNK_ROWS) -> None:
        if dim < 1:
            raise SelectronError(f"Feature rows need at least one feature, but the second moment was asked for {dim}.")
        self.matrix = torch.zeros(dim, dim, dtype=torch.float64, device=device)
        self.n_rows = 0
        self.n_structures = 0
        self.chunk_rows = chunk_rows

    @property
    def dim(self) -> int:
        """Number of features, D."""
        return int(self.matrix.shape[0])

    def update(self, rows: Rows) -> None:
        """Add the rows of some structures; a failure leaves the moment as it was."""
        require_dim(rows, self.dim)
        total = torch.zeros_like(self.matrix)
        for chunk in float64_chunks(rows.values, self.matrix.device, self.chunk_rows):
            total.addmm_(chunk.T, chunk)
        if not bool(torch.isfinite(total).all()):
            raise SelectronError(
                "Some feature rows are infinite or not a number; quarantine those structures before acquisition."
            )
        self.matrix += 0.5 * (total + total.T)
        self.n_rows += int(rows.values.shape[0])
        self.n_structures += rows.n_structures

    def merge(self, other: SecondMoment) -> None:
        """Add the moment of another shard, which must have the same number of features."""
        if other.dim != self.dim:
            raise SelectronError(f"Shards with {self.dim} and with {other.dim} features cannot be merged.")
        self.matrix += other.matrix.to(self.matrix.device)
        self.n_rows += other.n_rows
        self.n_structures += other.n_structures

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs, as tensors and plain numbers."""
        return {"matrix": self.matrix.cpu().clone(), "n_rows": self.n_rows, "n_structures": self.n_structures}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the content by a saved state of the same dimension."""
        matrix = state["matrix"]
        if tuple(matrix.shape) != (self.dim, self.dim):
            raise SelectronError(
                f"The saved second moment has {matrix.shape[0]} features, but {self.dim} are expected here."
            )
        self.matrix = matrix.to(device=self.matrix.device, dtype=torch.float64).clone()
        self.n_rows = int(state["n_rows"])
        self.n_structures = int(state["n_structures"])


def require_dim(rows: Rows, dim: int) -> None:
    """Raise `SelectronError` unless the rows have ``dim`` features."""
    if rows.dim != dim:
        raise SelectronError(
            f"The rows have {rows.dim} features, but {dim} are expected; use one feature map for training set and pool."
        )
