"""Force rows S ∂F_a/∂θ: all 3N of them, or a few random combinations at the price of a few gradient passes."""

from __future__ import annotations

import torch
from torch import Tensor

from selectron.features.energy_ntk import GradientRows
from selectron.potentials.mace import MacePotential
from selectron.structures.graphs import GraphBatch

STEP_A = {torch.float32: 1e-4, torch.float64: 1e-6}
"""Displacement of the one-sided difference. Its relative error, measured on MACE-OFF23-small: 5e-3 and 4e-5."""

EDGES_AT_ONCE = {"cpu": 4_000, "cuda": 600_000}
"""Edges in one pass. On a CPU small passes, which stay in its caches, are the quicker ones; on a GPU memory is the limit."""


class ForceRows:
    """−S d/dτ ∂E/∂θ (r + τ u) for chosen directions u: the sum Σ_a u_a φ_a of the force rows φ_a = S ∂F_a/∂θ.

    With the directions of :mod:`selectron.features.probes` the rows of the p probes of a structure give an unbiased
    estimate of everything that is quadratic in its force rows (arXiv 2605.13788, force NTK).
    """

    def __init__(self, gradient_rows: GradientRows) -> None:
        self.gradient_rows = gradient_rows
        self.potential: MacePotential = gradient_rows.potential
        self.dim = gradient_rows.dim

    def probed(self, batch: GraphBatch, probes: Tensor) -> tuple[Tensor, Tensor]:
        """Energy rows (B, D) and, for each of p directions a structure, its force row: (B, p, D).

        ``probes`` is (N, p, 3). p + 1 gradient passes: one where the atoms are, one a probe a small step away; neighbour
        lists are those of the undisplaced atoms, as the model's cutoff is smooth.
        """
        count, p = batch.n_structures, probes.shape[1]
        step = STEP_A[self.potential.dtype]
        copies = torch.repeat_interleave(torch.arange(count, device=batch.counts.device), p + 1)
        atoms = torch.cat([torch.zeros_like(probes[:, :1]), probes], dim=1)  # (N, p + 1, 3), first the atoms at rest
        out = torch.empty(count * (p + 1), self.dim, dtype=self.potential.dtype, device=self.potential.device)
        which = torch.arange(p + 1, device=copies.device).repeat(count)
        for chunk in self._chunks(batch, copies):
            moved = batch.take(copies[chunk])
            displacement = self._pick(batch, atoms, copies[chunk], which[chunk])
            out[chunk] = self.gradient_rows(moved._replace(positions=moved.positions + step * displacement))
        out = out.view(count, p + 1, self.dim)
        return out[:, 0], (out[:, :1] - out[:, 1:]) / step

    def exact(self, batch: GraphBatch) -> Tensor:
        """(3N, D): the row of every force component, structure after structure, atom after atom, x, y, z.

        Forward-mode differentiation of the batched gradient, as many (structure, component) pairs at a time as memory allows:
        exact to rounding.
        """
        device = batch.counts.device
        atoms = torch.arange(batch.positions.shape[0], device=device).repeat_interleave(3)
        axes = torch.arange(3, device=device).repeat(batch.positions.shape[0])
        copies = batch.system_idx[atoms]
        starts = torch.cumsum(batch.counts, 0) - batch.counts
        rows = torch.zeros(len(atoms), self.dim, dtype=self.potential.dtype, device=self.potential.device)
        for chunk in self._chunks(batch, copies):
            moved = batch.take(copies[chunk])
            directions = torch.zeros_like(moved.positions)
            first = torch.cumsum(moved.counts, 0) - moved.counts
            directions[first + atoms[chunk] - starts[copies[chunk]], axes[chunk]] = 1.0
            rows[chunk] = -self.gradient_rows.tangents(moved, directions)
        return rows

    def _pick(self, batch: GraphBatch, atoms: Tensor, copies: Tensor, which: Tensor) -> Tensor:
        starts = torch.cumsum(batch.counts, 0) - batch.counts
        counts = batch.counts[copies]
        owner = torch.repeat_interleave(torch.arange(len(copies), device=copies.device), counts)
        within = torch.arange(len(owner), device=copies.device) - (torch.cumsum(counts, 0) - counts)[owner]
        return atoms[starts[copies][owner] + within, which[owner]]

    def _chunks(self, batch: GraphBatch, copies: Tensor) -> list[slice]:
        """Runs of ``copies`` with at most :data:`EDGES_AT_ONCE` edges, and no more atoms; one structure at least."""
        most = EDGES_AT_ONCE[self.potential.device.type]
        chunks, start, total = [], 0, 0
        for position, size in enumerate(torch.maximum(batch.edge_counts, batch.counts)[copies].tolist()):
            if position > start and total + size > most:
                chunks.append(slice(start, position))
                start, total = position, 0
            total += size
        chunks.append(slice(start, len(copies)))
        return chunks
