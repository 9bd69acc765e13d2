"""Sums of outer products over groups of items, batched."""

from __future__ import annotations

import torch
from torch import Tensor


def sum_of_outer_products(left: Tensor, right: Tensor, counts: Tensor) -> Tensor:
    """(G, A, C): Σ over the items of each group of left ⊗ right.

    ``left`` (n, A) and ``right`` (n, C) are sorted by group, ``counts`` (G,) items each.
    """
    groups, longest = counts.shape[0], int(counts.max()) if counts.numel() else 0
    if left.shape[0] != groups * longest:  # groups of different length: pad with zeros
        position = torch.arange(longest, device=counts.device)
        starts = torch.cumsum(counts, 0) - counts
        inside = position < counts.unsqueeze(1)
        index = torch.where(inside, starts.unsqueeze(1) + position, 0).flatten()
        left = left.index_select(0, index) * inside.flatten().unsqueeze(1)
        right = right.index_select(0, index)
    left, right = left.reshape(groups, longest, left.shape[1]), right.reshape(groups, longest, right.shape[1])
    return torch.bmm(left.transpose(1, 2), right)
