"""Potentials of a point in the plane: a structure is one atom, its x and y are the point."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from selectron.errors import SelectronError
from selectron.potentials.base import Differentiable, Evaluation
from selectron.structures.graphs import GraphBatch, collate


class PlanarPotential(ABC):
    """A potential V(x, y): structures are ``Atoms("X", positions=[[x, y, 0]])``, one atom each.

    The element, z, cell and periodicity do not matter; the z force is exactly zero, so that whoever moves the atoms
    keeps them in the plane (``dimensions`` = 2 says that z is no degree of freedom). A subclass gives
    :meth:`energies_and_forces` in closed form, of differentiable operations, and calls :meth:`_identify` when made.
    """

    dimensions = 2
    cutoff_A: float | None = None
    capabilities = frozenset({"energy", "forces"})
    elements: frozenset[int] | None = None
    name: str
    fingerprint: str
    device: torch.device
    dtype: torch.dtype

    @abstractmethod
    def energies_and_forces(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Energies (n,) in eV and forces (n, 2) in eV/Å at ``points`` (n, 2) in Å."""

    def batch(self, structures: Sequence[Atoms]) -> GraphBatch:
        """Positions on the potential's device, no edges; raises SelectronError for a structure not of one atom."""
        for index, atoms in enumerate(structures):
            if len(atoms) != 1:
                raise SelectronError(
                    f"{self.name} is a potential of a point in the plane and takes structures of one atom; "
                    f"structure {index} has {len(atoms)}."
                )
        return collate(structures, None).to(self.device, self.dtype)

    def evaluate(
        self, batch: GraphBatch, *, forces: bool = True, stress: bool = False, node_features: bool = False
    ) -> Evaluation:
        """As :class:`Evaluation` says; raises SelectronError for stress, node features and more than one atom."""
        if stress or node_features:
            raise SelectronError(f"{self.name} does not give {'stress' if stress else 'node features'}.")
        energies, planar = self.energies_and_forces(self._points(batch).detach())
        return Evaluation(energies, torch.nn.functional.pad(planar, (0, 1)) if forces else None)

    def differentiable(self, batch: GraphBatch, *, node_features: bool = False) -> Differentiable:
        """Energies with a graph back to a fresh leaf of positions; raises SelectronError for node features."""
        if node_features:
            raise SelectronError(f"{self.name} does not give node features.")
        positions = batch.positions.detach().clone().requires_grad_()
        energies, _ = self.energies_and_forces(self._points(batch._replace(positions=positions)))
        return Differentiable(positions, energies, None)

    def _points(self, batch: GraphBatch) -> Tensor:
        if batch.positions.shape[0] != batch.counts.shape[0]:
            raise SelectronError(
                f"{self.name} takes structures of one atom; {batch.counts.shape[0]} structures have "
                f"{batch.positions.shape[0]} atoms."
            )
        return batch.positions[:, :2].to(self.device, self.dtype)

    def _identify(self, name: str, *parameters: Tensor) -> None:
        digest = hashlib.blake2b(f"{name}|{self.dtype}".encode(), digest_size=16)
        for parameter in parameters:
            digest.update(
                str(tuple(parameter.shape)).encode() + parameter.detach().cpu().contiguous().numpy().tobytes()
            )
        self.name, self.fingerprint = name, digest.hexdigest()


def finite_array(name: str, values: Any) -> Tensor:
    """``values`` as a float64 tensor; raises SelectronError, naming them ``name``, where they are no finite numbers."""
    try:
        array = torch.as_tensor(
            values if isinstance(values, Tensor) else np.asarray(values, dtype=np.float64), dtype=torch.float64
        )
    except (TypeError, ValueError):
        raise SelectronError(f"{name} must be numbers in rows of equal length, not {values!r}.") from None
    if not bool(array.isfinite().all()):
        raise SelectronError(f"{name} must be finite numbers, not {values!r}.")
    return array


def finite_number(name: str, value: Any, *, positive: bool) -> float:
    """``value`` as one finite number, above zero if ``positive``; raises SelectronError, naming it ``name``."""
    array = finite_array(name, value)
    if array.ndim or (positive and float(array) <= 0):
        raise SelectronError(f"{name} must be a{' positive' if positive else ''} number, not {value!r}.")
    return float(array)
