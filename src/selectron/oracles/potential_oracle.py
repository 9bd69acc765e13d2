"""A larger MACE, or an analytic surface, as the oracle: whatever selectron loads as a potential."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from ase import Atoms

from selectron.errors import SelectronError
from selectron.oracles.base import Label, OracleFailure, checked, fingerprint_of, versions_of
from selectron.oracles.options import MaceOptions, SurfaceOptions

if TYPE_CHECKING:
    from selectron.potentials import Potential


class PotentialOracle:
    """Energies, forces and (periodic structures) stress of a potential; every attempt is the same."""

    def __init__(self, options: MaceOptions | SurfaceOptions) -> None:
        self.options = options
        self._potential: Potential | None = None
        if isinstance(options, MaceOptions):
            path = _model_path(options.model)
            self.name = f"mace:{options.model if not Path(options.model).exists() else path.stem}"
            self.settings: dict[str, Any] = {
                "kind": "mace",
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "dtype": options.dtype,
                "head": options.head,
            }
            self._spec = str(path)
        else:
            query = urlencode({key: json.dumps(value) for key, value in options.arguments.items()})
            self.name = self._spec = f"surface:{options.surface}" + (f"?{query}" if query else "")
            self.settings = options.model_dump(mode="json", include={"kind", "surface", "arguments"})
        self.fingerprint = fingerprint_of(self.settings)
        self.versions = versions_of(["torch", "mace-torch"])

    def prepare(self) -> None:
        """Loads the model."""
        self._loaded()

    def label(self, atoms: Atoms, *, attempt: int = 0) -> Label:
        """The label of ``atoms``."""
        del attempt
        potential = self._loaded()
        if potential.elements is not None:
            unknown = sorted({str(atom.symbol) for atom in atoms if atom.number not in potential.elements})
            if unknown:
                raise OracleFailure(f"{self.name} does not know {', '.join(unknown)}", final=True)
        try:
            batch = potential.batch([atoms])
            stress = bool(atoms.pbc.all()) and "stress" in potential.capabilities
            found = potential.evaluate(batch, forces=True, stress=stress)
        except SelectronError as error:
            raise OracleFailure(str(error).rstrip("."), final=True) from None
        except RuntimeError as error:  # torch: out of memory, a device that fails
            raise OracleFailure(" ".join(str(error).split()), cause="engine") from None
        if found.forces is None:
            raise OracleFailure(f"{self.name} gives no forces", final=True)
        tensor = found.stress[0].detach().cpu().numpy() if found.stress is not None else None
        return checked(Label(float(found.energies[0]), found.forces.detach().cpu().numpy(), tensor), atoms)

    def _loaded(self) -> Potential:
        if self._potential is None:
            from selectron.potentials import load_potential

            if isinstance(self.options, MaceOptions):
                self._potential = load_potential(
                    self._spec, device=self.options.device, dtype=self.options.dtype, head=self.options.head
                )
            else:
                self._potential = load_potential(self._spec, dtype="float64")
        return self._potential


def _model_path(model: str) -> Path:
    if Path(model).is_file():
        return Path(model).resolve()
    from selectron.potentials.load import model_file

    return model_file(model).resolve()
