"""A seeded random sketch S: R^P → R^D of parameter gradients that never holds a P × D matrix.

Each parameter is added, with a random sign, to one of D buckets (CountSketch: Charikar, Chen, Farach-Colton 2002; Weinberger et
al. 2009, "Feature hashing"). With independent signs ⟨Sx, Sy⟩ is an unbiased estimate of ⟨x, y⟩ with variance at most
(‖x‖²‖y‖² + ⟨x, y⟩²) / D, the same as that of a dense Gaussian sketch, at the cost of reading the gradient once.

The buckets are chosen so that memory is read in a straight line: a slot's matrix (rows × columns) has its rows and
columns shuffled, its rows padded to a length L that is coprime to D, and entry p of the flattened matrix goes to
bucket (p + shift) mod D. Shuffle, shift and signs come from a seed, the parameter's name and the place of the slot in
it: they are the same for any batch, pool or machine.
"""

from __future__ import annotations

import hashlib
import math
from typing import NamedTuple

import torch
from torch import Tensor

from selectron.potentials.mace_modules import Gradient, Slot
from selectron.potentials.outer import sum_of_outer_products

_CHUNK = 1 << 24  # entries of per-structure gradients formed at a time


class _Table(NamedTuple):
    """How one slot is sketched."""

    row_order: Tensor
    column_order: Tensor
    padding: int
    signs: Tensor
    shift: int


class Sketch:
    """S of one seed, ``dim`` = D buckets, on one device and in one dtype."""

    def __init__(self, dim: int, seed: int, *, device: torch.device, dtype: torch.dtype) -> None:
        self.dim, self.seed, self.device, self.dtype = dim, seed, device, dtype
        self._tables: dict[Slot, _Table] = {}

    def apply(self, gradient: Gradient) -> Tensor:
        """(G, D): S times the gradients of the G structures of ``gradient``, the part of one slot."""
        table = self._table(gradient.slot)
        right = gradient.right.index_select(-1, table.column_order)
        if table.padding:
            right = torch.nn.functional.pad(right, (0, table.padding))
        if gradient.left is None:
            return self._buckets(right.index_select(1, table.row_order).flatten(1), table)
        assert gradient.counts is not None
        left = gradient.left.index_select(1, table.row_order)
        per_group = left.shape[1] * right.shape[1]
        return torch.cat(
            [
                self._buckets(sum_of_outer_products(part_left, part_right, counts).flatten(1), table)
                for part_left, part_right, counts in _chunks(left, right, gradient.counts, per_group)
            ]
        )

    def _buckets(self, flat: Tensor, table: _Table) -> Tensor:
        whole = flat.shape[1] // self.dim
        head = flat[:, : whole * self.dim].unflatten(1, (whole, self.dim))
        out = (head * table.signs[: whole * self.dim].view(whole, self.dim)).sum(dim=1)
        rest = flat[:, whole * self.dim :] * table.signs[whole * self.dim :]
        if rest.shape[1]:
            out = out + torch.nn.functional.pad(rest, (0, self.dim - rest.shape[1]))
        return torch.roll(out, table.shift, dims=1)

    def _table(self, slot: Slot) -> _Table:
        if slot not in self._tables:
            key = f"{self.seed}|{slot.parameter}|{slot.offset}".encode()
            seed = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1
            generator = torch.Generator().manual_seed(seed)
            padded = slot.columns
            while math.gcd(padded, self.dim) != 1:
                padded += 1
            signs = torch.randint(0, 2, (slot.rows * padded,), generator=generator, dtype=torch.int8) * 2 - 1
            self._tables[slot] = _Table(
                torch.randperm(slot.rows, generator=generator).to(self.device),
                torch.randperm(slot.columns, generator=generator).to(self.device),
                padded - slot.columns,
                signs.to(self.device, self.dtype),
                int(torch.randint(0, self.dim, (1,), generator=generator)),
            )
        return self._tables[slot]


def _chunks(left: Tensor, right: Tensor, counts: Tensor, per_group: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The groups in runs that keep the formed gradients under :data:`_CHUNK` entries."""
    at_once = max(1, _CHUNK // max(per_group, 1))
    if counts.shape[0] <= at_once:
        return [(left, right, counts)]
    parts = torch.split(counts, at_once)
    items = [int(part.sum()) for part in parts]
    return list(zip(torch.split(left, items), torch.split(right, items), parts, strict=True))


def place_exactly(out: Tensor, gradient: Gradient, starts: dict[str, int]) -> None:
    """Adds ``gradient`` unsketched into ``out`` (B, P), where parameter ``name`` begins at column ``starts[name]``."""
    slot = gradient.slot
    if gradient.left is None:
        values = gradient.right
    else:
        assert gradient.counts is not None
        values = sum_of_outer_products(gradient.left, gradient.right, gradient.counts)
    rows = torch.arange(slot.rows, device=out.device).unsqueeze(1) * slot.row_stride
    places = starts[slot.parameter] + slot.offset + rows + torch.arange(slot.columns, device=out.device)
    out.index_put_(
        (gradient.structures.unsqueeze(1), places.flatten().unsqueeze(0)), values.flatten(1), accumulate=True
    )
