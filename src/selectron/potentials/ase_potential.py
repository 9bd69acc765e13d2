"""Any ASE calculator as a potential: energies, forces and stress, one structure after the other."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Sequence
from typing import Any

import torch
from ase import Atoms
from ase.calculators.calculator import Calculator

from selectron.errors import SelectronError
from selectron.potentials.base import Evaluation
from selectron.structures.graphs import GraphBatch, collate


class AsePotential:
    """Wraps ``calculator``; ``settings`` (anything JSON) tells one set of its parameters from another in caches."""

    elements: frozenset[int] | None = None

    def __init__(self, calculator: Calculator, *, name: str | None = None, settings: Any = None) -> None:
        self.calculator = calculator
        self.name = name or type(calculator).__name__
        offered = set(calculator.implemented_properties) & {"energy", "forces", "stress"}
        self.capabilities = frozenset(offered)
        settings = settings if settings is not None else getattr(calculator, "parameters", {})
        kind = f"{type(calculator).__module__}.{type(calculator).__qualname__}"
        text = f"{kind}|{json.dumps(settings, default=str, sort_keys=True)}"
        self.fingerprint = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def batch(self, structures: Sequence[Atoms]) -> GraphBatch:
        """Positions, numbers and cells; no edges."""
        return collate(structures, None)

    def evaluate(
        self, batch: GraphBatch, *, forces: bool = True, stress: bool = False, node_features: bool = False
    ) -> Evaluation:
        """float64 on the CPU; raises SelectronError for what the calculator does not offer, or when it fails."""
        asked = {name for name, on in (("forces", forces), ("stress", stress)) if on}
        missing = (asked | ({"node features"} if node_features else set())) - self.capabilities
        if missing:
            raise SelectronError(f"{self.name} does not give {' or '.join(sorted(missing))}.")
        energies, all_forces, stresses = [], [], []
        for atoms in as_atoms(batch):
            try:
                atoms.calc = self.calculator
                energies.append(atoms.get_potential_energy())
                if forces:
                    all_forces.append(torch.from_numpy(atoms.get_forces()))
                if stress:
                    stresses.append(torch.from_numpy(atoms.get_stress(voigt=False)))
            except Exception as error:  # whatever a third party's calculator raises
                raise SelectronError(f"{self.name} failed on {atoms.get_chemical_formula()}: {error}") from error
        return Evaluation(
            torch.tensor(energies, dtype=torch.float64),
            torch.cat(all_forces) if all_forces else (torch.zeros(0, 3, dtype=torch.float64) if forces else None),
            torch.stack(stresses) if stresses else (torch.zeros(0, 3, 3, dtype=torch.float64) if stress else None),
        )


def as_atoms(batch: GraphBatch) -> list[Atoms]:
    """The structures of a batch as ASE atoms, without what a batch does not carry."""
    sizes = batch.counts.tolist()
    parts = zip(
        torch.split(batch.numbers, sizes), torch.split(batch.positions, sizes), batch.cell, batch.pbc, strict=True
    )
    return [
        Atoms(n.cpu().numpy(), p.detach().cpu().numpy(), cell=c.cpu().numpy(), pbc=b.cpu().numpy())
        for n, p, c, b in parts
    ]


def ase_potential_from(import_path: str, arguments: dict[str, Any]) -> AsePotential:
    """The calculator at ``package.module:Class`` made with ``arguments``."""
    module_name, _, class_name = import_path.partition(":")
    try:
        calculator_class = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SelectronError(
            f"There is no calculator at {import_path!r} ({error}); write it as package.module:Class."
        ) from None
    try:
        calculator = calculator_class(**arguments)
    except Exception as error:  # whatever a third party's constructor raises
        raise SelectronError(f"{import_path} cannot be made with {arguments}: {error}") from error
    return AsePotential(calculator, name=class_name, settings=arguments)
