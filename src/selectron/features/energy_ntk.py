"""Energy NTK features: the gradient of the energy with respect to the model's parameters, sketched."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from ase import Atoms

from selectron.errors import SelectronError
from selectron.features.base import Normalisation, fingerprint, normalised
from selectron.features.sketch import Sketch, place_exactly
from selectron.potentials.mace import MacePotential
from selectron.potentials.mace_modules import Gradient
from selectron.rows import Rows, one_row_each
from selectron.structures.graphs import GraphBatch

SUBSETS = ("all", "readout", "last-layer")


def parameter_subset(potential: MacePotential, subset: str) -> frozenset[str] | None:
    """Names of the parameters that θ consists of.

    ``all``: every parameter of the model; ``readout``: those of the readout blocks; ``last-layer``: of each readout block the
    last linear map, in which the energy is linear. None stands for all.
    """
    if subset not in SUBSETS:
        raise SelectronError(f"{subset!r} is no parameter subset; there are {', '.join(SUBSETS)}.")
    if subset == "all":
        return None
    names = [name for name, _ in potential.model.named_parameters() if name.startswith("readouts.")]
    if subset == "last-layer":
        last: dict[str, str] = {}
        for name in names:  # the modules of a readout block are applied in the order in which they are named
            block = ".".join(name.split(".")[:2])
            last[block] = name.rpartition(".")[0]
        names = [name for name in names if name.rpartition(".")[0] in last.values()]
    return frozenset(names)


class EnergyNTKFeatures:
    """φ(x) = S ∂E/∂θ (arXiv 2605.03964, finite-width NTK), one row a structure.

    Args:
        potential: the pretrained MACE.
        dim: D, length of the sketch; where θ has at most D entries they are taken as they are and D is their number.
        parameters: "all", "readout" or "last-layer".
        seed: of the sketch.
        normalise: "none", "per-atom" or "unit".
    """

    def __init__(
        self,
        potential: MacePotential,
        *,
        dim: int = 512,
        parameters: str = "all",
        seed: int = 0,
        normalise: Normalisation = "none",
    ) -> None:
        if "parameter-gradients" not in potential.capabilities:
            raise SelectronError(f"{potential.name} gives no parameter gradients; NTK features need a MACE model.")
        if dim < 1:
            raise SelectronError(f"The sketch needs at least 1 feature, not {dim}.")
        self.potential = potential
        self.name = "energy-ntk"
        self.parameters = parameter_subset(potential, parameters)
        self.normalise = normalise
        sizes = {n: p.numel() for n, p in potential.model.named_parameters()}
        self.n_parameters = sum(size for n, size in sizes.items() if self.parameters is None or n in self.parameters)
        self.dim = min(dim, self.n_parameters)
        self._gradient_rows = GradientRows(potential, self.parameters, self.dim, seed)
        self.settings: dict[str, Any] = {
            "dim": self.dim,
            "parameters": parameters,
            "seed": seed if self.dim < self.n_parameters else None,
            "normalise": normalise,
        }
        self.fingerprint = fingerprint(self.name, self.settings, potential.fingerprint)

    def rows(self, structures: Sequence[Atoms]) -> Rows:
        """(n, D)."""
        batch = self.potential.batch(structures)
        return normalised(one_row_each(self._gradient_rows(batch)), batch.counts, self.normalise)


def detached(gradient: Gradient) -> Gradient:
    """The same without an autograd graph."""
    left = None if gradient.left is None else gradient.left.detach()
    return gradient._replace(left=left, right=gradient.right.detach())


class GradientRows:
    """S ∂E_b/∂θ for the structures of a batch, (B, D)."""

    def __init__(self, potential: MacePotential, parameters: frozenset[str] | None, dim: int, seed: int) -> None:
        self.potential, self.parameters, self.dim = potential, parameters, dim
        sizes = {n: p.numel() for n, p in potential.model.named_parameters() if parameters is None or n in parameters}
        self.starts: dict[str, int] | None = None
        if sum(sizes.values()) <= dim:  # small enough to be taken as it is
            self.starts, start = {}, 0
            for name, size in sizes.items():
                self.starts[name] = start
                start += size
        self.sketch = Sketch(dim, seed, device=potential.device, dtype=potential.dtype)

    def __call__(self, batch: GraphBatch) -> torch.Tensor:
        """(B, D) on the potential's device."""
        return self._collect(batch, self.potential.parameter_gradients(batch, self.parameters))

    def tangents(self, batch: GraphBatch, directions: torch.Tensor) -> torch.Tensor:
        """(B, D): the derivative of the rows as every structure moves along its part of ``directions`` (N, 3)."""
        return self._collect(batch, self.potential.parameter_gradient_tangents(batch, directions, self.parameters))

    def _collect(self, batch: GraphBatch, gradients: Iterable[Gradient]) -> torch.Tensor:
        out = torch.zeros(batch.n_structures, self.dim, dtype=self.potential.dtype, device=self.potential.device)
        for gradient in map(detached, gradients):
            if self.starts is None:
                out.index_add_(0, gradient.structures, self.sketch.apply(gradient))
            else:
                place_exactly(out, gradient, self.starts)
        return out
