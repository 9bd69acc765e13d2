"""Energies against what a composition explains: E ≈ Σ_z n_z e_z, and which structures lie far from it.

The fit is robust (Huber's loss on the residual per atom, by iterated reweighting, with the median deviation as its scale), so
that a few wrong energies do not move the e_z that they are measured by. Where the structures do not determine every element by
itself (one stoichiometry only), the smallest e_z that fit are taken; residuals do not depend on it.
"""

from __future__ import annotations

from array import array
from typing import NamedTuple

import numpy as np

FITTED_AT_MOST = 20_000
"""Structures, drawn with seed 0, that the fit sees; all are then measured by it."""
OUTLIER_SD = 12.0
OUTLIER_eV_ATOM = 0.2
HUBER = 1.345
_FLOOR_eV_ATOM = 1e-4


class Outlier(NamedTuple):
    """Structure ``row`` of those that were fitted, whose energy is so far from what its composition explains."""

    row: int
    off_eV: float
    off_eV_atom: float


class Compositions:
    """The composition of every structure: 8 bytes each, and each different one once."""

    def __init__(self) -> None:
        self._known: dict[bytes, int] = {}
        self._of = array("q")

    def __len__(self) -> int:
        return len(self._of)

    def add(self, counts: np.ndarray) -> None:
        """Takes the next structure: how many atoms of each atomic number it has, from 0 on."""
        numbers = np.flatnonzero(counts)
        key = np.stack([numbers, counts[numbers]]).astype(np.int32).tobytes()
        self._of.append(self._known.setdefault(key, len(self._known)))

    def matrix(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Different compositions (C, Z), which of them each structure has (n,), and the atomic numbers (Z,)."""
        pairs = [np.frombuffer(key, dtype=np.int32).reshape(2, -1) for key in self._known]
        numbers = np.unique(np.concatenate([one[0] for one in pairs])) if pairs else np.zeros(0, dtype=np.int32)
        table = np.zeros((len(pairs), len(numbers)), dtype=np.float32)
        for row, (found, counts) in zip(table, pairs, strict=True):
            row[np.searchsorted(numbers, found)] = counts
        return table, np.frombuffer(self._of, dtype=np.int64), numbers


class Fit(NamedTuple):
    """Residuals (n,) in eV, NaN for structures without an energy, their sizes (n,), and the robust standard deviation per atom.

    ``determined`` is False where there are hardly more structures than references to fit: residuals then say nothing.
    """

    residuals_eV: np.ndarray
    atoms: np.ndarray
    spread_eV_atom: float
    determined: bool

    def outliers(self) -> list[Outlier]:
        """Structures more than 12 spreads and 0.2 eV/atom off, the farthest first."""
        per_atom = self.residuals_eV / self.atoms
        limit = max(OUTLIER_SD * self.spread_eV_atom, OUTLIER_eV_ATOM)
        far = np.flatnonzero(np.abs(np.nan_to_num(per_atom)) > limit)
        far = far[np.argsort(-np.abs(per_atom[far]), kind="stable")]
        return [Outlier(int(i), float(self.residuals_eV[i]), float(per_atom[i])) for i in far]


def fit_compositions(table: np.ndarray, of: np.ndarray, energies_eV: np.ndarray) -> Fit:
    """The robust fit. ``table`` (C, Z) compositions, ``of`` (n,) rows of it, ``energies_eV`` (n,), NaN for none."""
    sizes = table.sum(axis=1).astype(float)
    atoms = sizes[of]
    used = np.flatnonzero(np.isfinite(energies_eV))
    if len(used) > FITTED_AT_MOST:
        used = np.sort(np.random.default_rng(0).choice(used, FITTED_AT_MOST, replace=False))
    if not len(used):
        return Fit(np.full(len(of), np.nan), atoms, np.nan, False)
    rows, group = np.unique(of[used], return_inverse=True)
    shares = table[rows] / sizes[rows, None]
    per_atom = energies_eV[used] / atoms[used]
    middle = float(np.median(per_atom))
    weights = np.ones(len(used))
    references = np.zeros(table.shape[1])
    scale = np.inf
    for _ in range(60):
        together = np.bincount(group, weights, len(rows))
        target = np.bincount(group, weights * (per_atom - middle), len(rows)) / together
        root = np.sqrt(together)[:, None]
        references = np.linalg.lstsq(shares * root, target * root[:, 0], rcond=1e-6)[0]
        left = np.abs(per_atom - middle - (shares @ references)[group])
        scale = max(float(np.median(left)) / 0.6745, _FLOOR_eV_ATOM)
        before, weights = weights, np.minimum(1.0, HUBER * scale / np.maximum(left, 1e-12))
        if np.abs(weights - before).max() < 1e-4:
            break
    residuals = energies_eV - (table @ (references + middle))[of]
    rank = int(np.linalg.matrix_rank(shares))
    return Fit(residuals, atoms, scale, len(used) >= 2 * rank + 2)
