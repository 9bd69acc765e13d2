"""Well-tempered metadynamics on global descriptors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from selectron.errors import SelectronError
from selectron.potentials.base import Evaluation
from selectron.sampling.state import Field, Memory
from selectron.sampling.system import System, evaluate_traced, graph_of, shortest_distances
from selectron.sampling.unbiased import plain_field


class Hills(NamedTuple):
    """The bias of P structures: centres (P, H, D), heights (P, H) in eV, and the running mean and variance of d.

    ``mean`` and ``variance`` (P, D) of ``count`` configurations set the width of the hills where the user does not;
    ``width`` (P,) is NaN until it is known.
    """

    centres: Tensor
    heights: Tensor
    width: Tensor
    mean: Tensor
    variance: Tensor
    samples: Tensor


class WellTemperedMetadynamics:
    """A bias of Gaussian hills in descriptor space that grow smaller where there are some already.

        B(d) = Σ_h w_h exp(−‖d − d_h‖²/2s²),   w_h = w exp(−B(d_h)/(k_B ΔT)),   k_B ΔT = (γ − 1) kT

    (Barducci, Bussi & Parrinello 2008, doi:10.1103/PhysRevLett.100.020603; SKMD, appendix C.1.) Every structure has its
    own hills. One model evaluation a step; where d comes from the model, one more backward pass for the bias.

    Args:
        system: with a descriptor.
        kT_eV: the temperature that tempers the hills.
        height_eV: w.
        bias_factor: γ > 1.
        every: steps between hills.
        width: s in units of the descriptor; None for the root of d's summed variance over the first ``every`` steps.
    """

    def __init__(
        self,
        system: System,
        *,
        kT_eV: float,
        height_eV: float,
        bias_factor: float,
        every: int,
        width: float | None = None,
    ) -> None:
        if system.descriptor is None:
            raise SelectronError("Metadynamics needs a descriptor.")
        if not (height_eV > 0.0 and bias_factor > 1.0 and every > 0 and (width is None or width > 0.0)):
            raise SelectronError(
                "Metadynamics wants a positive height, a bias factor above 1, a positive number of steps between hills "
                "and a positive width."
            )
        self.system = system
        self.tempering_eV = (bias_factor - 1.0) * kT_eV
        self.height_eV, self.every, self.width = height_eV, every, width

    def start(self) -> Memory:
        """No hills."""
        zero = self.system.masses.new_zeros
        count = self.system.n_structures
        width = torch.full_like(zero(count), float("nan") if self.width is None else self.width)
        # the dimension of d is known after the first call
        return Memory((None,), Hills(zero(count, 0, 0), zero(count, 0), width, zero(count, 0), zero(count, 0), zero(1)))

    def __call__(self, positions: Tensor, memory: Memory, step: int) -> tuple[Field, Memory]:
        """The field with the bias of the hills so far; every ``every`` steps a hill is added after that."""
        system = self.system
        batch, graph = graph_of(system, positions, memory.graphs[0])
        leaf, values, energies, forces = evaluate_traced(system, batch)
        hills: Hills = memory.bias
        here = values.detach().double()
        if hills.mean.shape[1] == 0:
            hills = hills._replace(
                centres=here.new_zeros(len(here), 0, here.shape[1]),
                mean=torch.zeros_like(here),
                variance=torch.zeros_like(here),
            )
        cotangent, height = _bias(hills, here)
        bias_forces = torch.zeros_like(positions)
        if hills.heights.shape[1]:
            (pulled,) = torch.autograd.grad(values, leaf, -cotangent.to(values.dtype))
            bias_forces = pulled.double() * system.free
        evaluation = Evaluation(energies, forces)
        field = plain_field(evaluation, here, shortest_distances(system, batch))._replace(bias_forces=bias_forces)
        return field, Memory((graph,), self._grown(hills, here, height, step))

    def _grown(self, hills: Hills, here: Tensor, height: Tensor, step: int) -> Hills:
        count = hills.samples + 1.0
        apart = here - hills.mean
        mean = hills.mean + apart / count
        variance = hills.variance + (apart * (here - mean) - hills.variance) / count
        hills = hills._replace(mean=mean, variance=variance, samples=count)
        if step == 0 or step % self.every:
            return hills
        spread = variance.sum(1).sqrt().clamp_min(1e-12)
        added = self.height_eV * torch.exp(-height / self.tempering_eV)
        added = torch.where(torch.isfinite(added), added, torch.zeros_like(added))
        return hills._replace(
            centres=torch.cat([hills.centres, torch.nan_to_num(here)[:, None]], dim=1),
            heights=torch.cat([hills.heights, added[:, None]], dim=1),
            width=torch.where(torch.isnan(hills.width), spread, hills.width),
        )


def _bias(hills: Hills, here: Tensor) -> tuple[Tensor, Tensor]:
    """∂B/∂d (P, D) and B (P,) at ``here`` (P, D)."""
    if not hills.heights.shape[1]:
        return torch.zeros_like(here), here.new_zeros(len(here))
    apart = here[:, None] - hills.centres
    parts = hills.heights * torch.exp(-0.5 * apart.square().sum(-1) / hills.width[:, None].square())
    gradient = -(parts[..., None] * apart).sum(1) / hills.width[:, None].square()
    return gradient, parts.sum(1)
