"""SOAP features: a fixed descriptor, the control that the papers compare learned features with."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms

from selectron.errors import SelectronError
from selectron.features.base import Normalisation, fingerprint, normalised
from selectron.rows import Rows, one_row_each
from selectron.structures.graphs import complete_cell


class SoapFeatures:
    """SOAP power spectrum (Bartók, Kondor, Csányi 2013, Eqs. 31 to 36; featomic), summed over atoms, sketched to D features.

    The block of each (centre, neighbour, neighbour) triple of elements goes through its own seeded signs and buckets,
    so that any elements can come, in any order, and D stays what it is. One row a structure; no model is needed.

    Args:
        dim: D.
        cutoff_A: radius of an atom's neighbourhood, Å.
        width_A: width of the atomic density, Å.
        max_angular: highest l.
        max_radial: highest radial index.
        seed: of the sketch.
        normalise: "none", "per-atom" or "unit".
    """

    def __init__(
        self,
        *,
        dim: int = 512,
        cutoff_A: float = 5.0,
        width_A: float = 0.3,
        max_angular: int = 4,
        max_radial: int = 5,
        seed: int = 0,
        normalise: Normalisation = "none",
    ) -> None:
        try:
            from featomic import SoapPowerSpectrum
        except ImportError:
            raise SelectronError(
                "SOAP features need featomic, which is not installed: pip install 'selectron[soap]'."
            ) from None
        self.name, self.dim, self.seed, self.normalise = "soap", dim, seed, normalise
        parameters = {
            "cutoff": {"radius": cutoff_A, "smoothing": {"type": "ShiftedCosine", "width": 0.5}},
            "density": {"type": "Gaussian", "width": width_A},
            "basis": {
                "type": "TensorProduct",
                "max_angular": max_angular,
                "radial": {"type": "Gto", "max_radial": max_radial},
            },
        }
        self._cutoff_A = cutoff_A
        self._calculator = SoapPowerSpectrum(**parameters)
        self._tables: dict[tuple[int, int, int], tuple[np.ndarray, np.ndarray]] = {}
        self.settings: dict[str, Any] = {"dim": dim, "seed": seed, "normalise": normalise, "soap": parameters}
        self.fingerprint = fingerprint(self.name, self.settings, "none")

    def rows(self, structures: Sequence[Atoms]) -> Rows:
        """(n, D) float64 on the CPU."""
        structures = list(structures)
        out = np.zeros((self.dim, len(structures)))
        if structures:
            plain = [_as_featomic_takes_it(atoms, self._cutoff_A) for atoms in structures]
            for key, block in self._calculator.compute(plain).items():
                values = np.asarray(block.values)
                pooled = np.zeros((len(structures), values.shape[1]))
                np.add.at(pooled, np.asarray(block.samples["system"]), values)
                buckets, signs = self._table((int(key[0]), int(key[1]), int(key[2])), values.shape[1])
                np.add.at(out, buckets, (pooled * signs).T)
        counts = torch.tensor([len(atoms) for atoms in structures], dtype=torch.int64)
        return normalised(one_row_each(torch.from_numpy(out.T.copy())), counts, self.normalise)

    def _table(self, key: tuple[int, int, int], size: int) -> tuple[np.ndarray, np.ndarray]:
        if key not in self._tables:
            text = f"{self.seed}|{key}".encode()
            digest = hashlib.blake2b(text, digest_size=8).digest()
            random = np.random.default_rng(int.from_bytes(digest, "little"))
            self._tables[key] = (random.integers(self.dim, size=size), random.choice([-1.0, 1.0], size=size))
        return self._tables[key]


def _as_featomic_takes_it(atoms: Atoms, cutoff_A: float) -> Atoms:
    """Only what SOAP depends on, periodic in all directions (open ones with more vacuum than the cutoff) or in none."""
    if not atoms.pbc.any():
        return Atoms(atoms.numbers, atoms.positions)
    cell = atoms.cell.array
    if not atoms.pbc.all():
        cell = complete_cell(cell, atoms.pbc, atoms.positions, cutoff_A)
    return Atoms(atoms.numbers, atoms.positions, cell=cell, pbc=True)
