"""Force NTK and joint energy-force NTK features (arXiv 2605.13788)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from ase import Atoms
from torch import Tensor

from selectron.errors import SelectronError
from selectron.features.base import Normalisation, fingerprint, normalised
from selectron.features.energy_ntk import GradientRows, parameter_subset
from selectron.features.force_rows import STEP_A, ForceRows
from selectron.features.probes import coloured_probes
from selectron.potentials.mace import MacePotential
from selectron.rows import Rows
from selectron.structures.graphs import GraphBatch

Probes = int | Literal["exact"]


class ForceNTKFeatures:
    """Rows φ_a = S ∂F_a/∂θ of every force component, or p random-sign combinations of groups of them.

    Either way Σ over a structure's rows of ‖φ‖² is (an unbiased estimate of) the trace of its block of the force NTK,
    k_F(x, x') = Σ_ab ∂F_a/∂θ · ∂F_b/∂θ.

    Args:
        potential: the pretrained MACE.
        dim: D, length of the sketch.
        parameters: "all", "readout" or "last-layer".
        probes: p, or "exact" for all 3N rows.
        seed: of the sketch. Probes are seeded by each structure's content.
        normalise: "none", "per-atom" or "unit" trace.
    """

    name = "force-ntk"

    def __init__(
        self,
        potential: MacePotential,
        *,
        dim: int = 512,
        parameters: str = "all",
        probes: Probes = 4,
        seed: int = 0,
        normalise: Normalisation = "none",
    ) -> None:
        if probes != "exact" and (isinstance(probes, bool) or not isinstance(probes, int) or probes < 1):
            raise SelectronError(f"Probes are a whole number from 1, or 'exact', not {probes!r}.")
        if dim < 1:
            raise SelectronError(f"The sketch needs at least 1 feature, not {dim}.")
        if "parameter-gradients" not in potential.capabilities:
            raise SelectronError(f"{potential.name} gives no parameter gradients; NTK features need a MACE model.")
        subset = parameter_subset(potential, parameters)
        sizes = {n: p.numel() for n, p in potential.model.named_parameters() if subset is None or n in subset}
        self.potential, self.probes, self.normalise = potential, probes, normalise
        self.dim = min(dim, sum(sizes.values()))
        self.force_rows = ForceRows(GradientRows(potential, subset, self.dim, seed))
        self.settings: dict[str, Any] = {
            "dim": self.dim,
            "parameters": parameters,
            "seed": seed if self.dim < sum(sizes.values()) else None,
            "probes": probes if probes == "exact" else f"{probes} coloured",
            "step_A": None if probes == "exact" else STEP_A[potential.dtype],
            "normalise": normalise,
            **self._more_settings(),
        }
        self.fingerprint = fingerprint(self.name, self.settings, potential.fingerprint)

    def _more_settings(self) -> dict[str, Any]:
        return {}

    leading_rows = 0
    """Rows of a structure that come before its force rows."""

    @property
    def per_atom(self) -> bool:
        """Whether a structure's force rows are those of its atoms, three each."""
        return self.probes == "exact"

    def nominal_rows(self, atoms: Tensor) -> Tensor:
        """How many rows a structure with so many atoms stands for, whatever the number of probes."""
        return 3 * atoms + self.leading_rows

    def rows(self, structures: Sequence[Atoms]) -> Rows:
        """p rows a structure, or 3N."""
        batch = self.potential.batch(structures)
        _, forces = self._energy_and_force_rows(batch, structures)
        return normalised(forces, batch.counts, self.normalise)

    def _energy_and_force_rows(self, batch: GraphBatch, structures: Sequence[Atoms]) -> tuple[Tensor, Rows]:
        if self.probes == "exact":
            return self.force_rows.gradient_rows(batch), Rows(self.force_rows.exact(batch), 3 * batch.counts)
        probes = coloured_probes(structures, batch, self.probes)
        energy, forces = self.force_rows.probed(batch, probes)
        counts = torch.full_like(batch.counts, self.probes)
        return energy, Rows(forces.flatten(0, 1), counts)


class JointNTKFeatures(ForceNTKFeatures):
    """The energy row on top of the force rows: the kernel of a weighted energy and force loss.

    mace-torch minimises w_E ⟨(ΔE/N)²⟩ over structures plus w_F ⟨ΔF²⟩ over force components. For a structure with N atoms the
    gradient of that loss meets ∂E/∂θ with weight √w_E / N and each ∂F_a/∂θ with √(w_F / 3N), taking N for the mean size of
    a structure; divided by the latter, force rows stay as they are and the energy row is multiplied by √(3 w_E / (w_F N)).

    Args:
        potential, dim, parameters, probes, seed, normalise: as for :class:`ForceNTKFeatures`.
        energy_weight: w_E.
        force_weight: w_F. The defaults, 1 and 10, are those that fine-tuning will use.
    """

    name = "joint-ntk"
    leading_rows = 1

    def __init__(
        self, potential: MacePotential, *, energy_weight: float = 1.0, force_weight: float = 10.0, **options: Any
    ) -> None:
        if not (0 <= energy_weight < math.inf and 0 < force_weight < math.inf):
            raise SelectronError(
                "The energy weight is a number of at least 0 and the force weight one above 0, "
                f"not {energy_weight} and {force_weight}."
            )
        self.energy_weight, self.force_weight = energy_weight, force_weight
        super().__init__(potential, **options)

    def _more_settings(self) -> dict[str, Any]:
        return {"weight_ratio": self.energy_weight / self.force_weight}

    def rows(self, structures: Sequence[Atoms]) -> Rows:
        """1 + p rows a structure, or 1 + 3N, the energy row first."""
        batch = self.potential.batch(structures)
        energy, forces = self._energy_and_force_rows(batch, structures)
        weight = (3.0 * self.energy_weight / (self.force_weight * batch.counts.to(energy))).sqrt()
        counts = forces.counts + 1
        first = torch.cumsum(counts, 0) - counts
        values = torch.empty(int(counts.sum()), self.dim, dtype=energy.dtype, device=energy.device)
        is_energy = torch.zeros(len(values), dtype=torch.bool, device=energy.device)
        is_energy[first] = True
        values[is_energy] = energy * weight.unsqueeze(1)
        values[~is_energy] = forces.values
        return normalised(Rows(values, counts), batch.counts, self.normalise)
