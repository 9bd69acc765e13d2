"""Feature rows: what every kernel of selectron is linear in, and all that acquisition knows of a structure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class Rows(NamedTuple):
    """Feature rows of a list of structures, Φ(x) ∈ R^{m(x) × D} for each structure x, stacked in order.

    | field  | shape | meaning                                                                     |
    |--------|-------|-----------------------------------------------------------------------------|
    | values | (R, D)| rows of all structures one after the other, R = Σ_x m(x)                     |
    | counts | (n,)  | int64, m(x): 1 for energy-like maps, 3N or the number of probes for forces   |
    """

    values: Tensor
    counts: Tensor

    @property
    def n_structures(self) -> int:
        """Number of structures, n."""
        return int(self.counts.shape[0])

    @property
    def dim(self) -> int:
        """Number of features, D."""
        return int(self.values.shape[1])

    @property
    def offsets(self) -> Tensor:
        """(n + 1,) int64: rows of structure i are ``values[offsets[i]:offsets[i + 1]]``."""
        zero = torch.zeros(1, dtype=torch.int64, device=self.counts.device)
        return torch.cat([zero, torch.cumsum(self.counts, 0)])

    @property
    def owner(self) -> Tensor:
        """(R,) int64: the structure that each row belongs to."""
        return torch.repeat_interleave(torch.arange(self.n_structures, device=self.counts.device), self.counts)

    def take(self, indices: Tensor | list[int]) -> Rows:
        """Rows of the structures ``indices``, in that order."""
        chosen = torch.as_tensor(indices, dtype=torch.int64, device=self.counts.device)
        counts = self.counts[chosen]
        starts = self.offsets[chosen]
        within = torch.arange(int(counts.sum()), device=counts.device)
        within = within - torch.repeat_interleave(torch.cumsum(counts, 0) - counts, counts)
        return Rows(self.values[torch.repeat_interleave(starts, counts) + within], counts)

    def sum_per_structure(self, per_row: Tensor) -> Tensor:
        """(n,): the values ``per_row`` (R,) summed over the rows of each structure."""
        out = torch.zeros(self.n_structures, dtype=per_row.dtype, device=per_row.device)
        return out.index_add_(0, self.owner.to(per_row.device), per_row)


def one_row_each(values: Tensor) -> Rows:
    """Rows of a map that gives one row a structure; ``values`` has shape (n, D)."""
    return Rows(values, torch.ones(values.shape[0], dtype=torch.int64, device=values.device))


def concatenate(parts: Iterable[Rows]) -> Rows:
    """Rows of several lists of structures, one list after the other; at least one part is needed."""
    parts = list(parts)
    return Rows(torch.cat([part.values for part in parts]), torch.cat([part.counts for part in parts]))
