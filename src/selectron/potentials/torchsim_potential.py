"""Any TorchSim model as a potential: batched energies, forces and stress."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from ase import Atoms

from selectron.errors import SelectronError
from selectron.potentials.base import Evaluation
from selectron.structures.graphs import GraphBatch, collate


class TorchSimPotential:
    """Wraps a ``torch_sim.models.interface.ModelInterface``.

    TorchSim knows one periodicity for a whole batch, so structures of different periodicity go through the model one
    kind at a time.
    """

    elements: frozenset[int] | None = None

    def __init__(self, model: Any, *, name: str | None = None) -> None:
        try:
            import torch_sim
        except ImportError:
            raise SelectronError("TorchSim is not installed: pip install 'selectron[torchsim]'.") from None
        self._torch_sim = torch_sim
        self.model = model
        self.name = name or type(model).__name__
        offered = {"energy"}
        offered |= {"forces"} if getattr(model, "compute_forces", True) else set()
        offered |= {"stress"} if getattr(model, "compute_stress", False) else set()
        self.capabilities = frozenset(offered)
        state: dict[str, Any] = getattr(model, "state_dict", dict)()
        digest = hashlib.blake2b(f"{type(model).__module__}.{type(model).__qualname__}".encode(), digest_size=16)
        for key, value in sorted(state.items()):
            if isinstance(value, torch.Tensor):
                digest.update(key.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        self.fingerprint = digest.hexdigest()

    def batch(self, structures: Sequence[Atoms]) -> GraphBatch:
        """Positions, numbers and cells on the model's device; TorchSim makes its own neighbour lists."""
        return collate(structures, None).to(self.model.device, self.model.dtype)

    def evaluate(
        self, batch: GraphBatch, *, forces: bool = True, stress: bool = False, node_features: bool = False
    ) -> Evaluation:
        """As :class:`Evaluation` says; raises SelectronError for what the model does not give."""
        asked = {name for name, on in (("forces", forces), ("stress", stress), ("node features", node_features)) if on}
        if asked - self.capabilities:
            raise SelectronError(f"{self.name} does not give {' or '.join(sorted(asked - self.capabilities))}.")
        energies = torch.zeros(batch.n_structures, dtype=self.model.dtype, device=self.model.device)
        all_forces = torch.zeros_like(batch.positions) if forces else None
        stresses = torch.zeros_like(batch.cell) if stress else None
        for pbc in torch.unique(batch.pbc, dim=0):
            chosen = torch.nonzero((batch.pbc == pbc).all(dim=1)).squeeze(1)
            renumbered = torch.full_like(batch.counts, -1)
            renumbered[chosen] = torch.arange(len(chosen), device=chosen.device)
            atoms = torch.nonzero(renumbered[batch.system_idx] >= 0).squeeze(1)
            if bool(pbc.any()) and not bool(pbc.all()):
                raise SelectronError(
                    f"TorchSim models take structures that are periodic in all directions or none, not in {pbc.tolist()}."
                )
            cell = batch.cell[chosen]
            if not bool(pbc.any()):
                cell = torch.eye(3, dtype=cell.dtype, device=cell.device).expand_as(cell) * 1000.0
            state = self._torch_sim.SimState(
                positions=batch.positions[atoms],
                masses=torch.ones(len(atoms), dtype=self.model.dtype, device=self.model.device),
                cell=cell.transpose(1, 2).contiguous(),  # TorchSim keeps lattice vectors in columns
                pbc=bool(pbc.all()),
                atomic_numbers=batch.numbers[atoms],
                system_idx=renumbered[batch.system_idx[atoms]],
            )
            out = self.model(state)
            energies[chosen] = out["energy"].detach()
            if all_forces is not None:
                all_forces[atoms] = out["forces"].detach()
            if stresses is not None:
                stresses[chosen] = out["stress"].detach()
        return Evaluation(energies, all_forces, stresses)
