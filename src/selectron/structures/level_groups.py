"""Groups of levels of theory: whether the labels of a set have offsets that the composition of its structures cannot explain.

At one level of theory the energy of a structure is, to first order, a sum over its atoms, E ≈ Σ_z n_z a_z (+ a constant, and
one for each charge and multiplicity); what is left are bonds and strain. Two levels in one set are two such planes. A set is
divided into two groups, each with a plane of its own, by assigning every structure to the nearer plane until nothing changes
(started from the largest gaps of a least-squares and of a least-absolute fit), and the division is believed where

* 95 % of the structures of both groups lie four times as far from the other group's plane as from their own, foreseen without
  the structure itself (three times in varied sets: four compositions or more in both groups, and twice as many structures as
  their planes have parameters); of the smaller group the larger one has to determine four fifths,
* the offset is more than chemistry makes: 1 eV an atom, and 12 eV a structure (the strongest bond, that of CO, has 11.1 eV),
  or 5 eV in varied sets: one reaction is no such group.

Residuals against a model, E_label − E_model, hold no bonds that the model knows; then 0.03 eV an atom and 5 eV a structure are
enough, or 1.5 eV in varied sets.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from ase.data import chemical_symbols

LEAST = 3
RATIO = 0.25
RATIO_OF_VARIED = 1 / 3
VARIED = 4
JUDGED = 0.8
EXTRAPOLATED = 1.0
UNEXPLAINED_eV_ATOM = 5.0
AT_MOST = 4000


class LevelGroup(NamedTuple):
    """Structures of a set that lie on one plane of energy and composition.

    | field             | shape | meaning                                                                              |
    |-------------------|-------|--------------------------------------------------------------------------------------|
    | indices           | (k,)  | of the structures, ascending                                                         |
    | offset_eV_atom    |       | median of the offset from the largest group, per atom; 0 for the largest itself      |
    | offset_by_element | (Z,)  | the same as eV for an atom of each element; NaN where the group does not determine it |
    """

    indices: np.ndarray
    offset_eV_atom: float
    offset_by_element: np.ndarray


class _Floors(NamedTuple):
    """What an offset has to exceed: eV a structure in sets of few and of four and more compositions, and eV an atom."""

    structure_eV: float
    varied_eV: float
    atom_eV: float


_OF_ENERGIES = _Floors(12.0, 5.0, 1.0)
_OF_RESIDUALS = _Floors(5.0, 1.5, 0.03)


class _Plane:
    """Least squares of y (n,) on rows X (n, p) by singular values; where X leaves a combination open, the smallest solution."""

    def __init__(self, rows: np.ndarray, values: np.ndarray) -> None:
        left, sizes, right = np.linalg.svd(rows, full_matrices=False)
        kept = sizes > 1e-8 * sizes[0]
        self._right, self._sizes = right[kept], sizes[kept]
        self.rank = int(kept.sum())
        self.solution = self._right.T @ ((left[:, kept].T @ values) / self._sizes)

    def leverage(self, rows: np.ndarray) -> np.ndarray:
        """(n,): variance of the prediction in units of the scatter."""
        return np.asarray(((rows @ self._right.T / self._sizes) ** 2).sum(axis=1))

    def determines(self, rows: np.ndarray) -> np.ndarray:
        """(n,) bool: whether the data fixes the prediction, and does so no worse than one structure of its kind would."""
        outside = np.linalg.norm(rows - rows @ self._right.T @ self._right, axis=1)
        return np.asarray((outside < 1e-6) & (self.leverage(rows) < EXTRAPOLATED))


def level_groups(
    compositions: np.ndarray,
    energies_eV: np.ndarray,
    residuals_eV: np.ndarray | None = None,
    states: Sequence[Hashable] | None = None,
) -> list[LevelGroup]:
    """The groups of levels of theory of a set, largest first; empty where there is but one, or where none can be told apart.

    Args:
        compositions: (n, Z) atoms of each element.
        energies_eV: (n,) labels; those that are not finite are left out. Isolated atoms should be left out by the caller.
        residuals_eV: (n,) label minus model, where there is a model: makes small offsets visible.
        states: (n,) charge and multiplicity of each structure, in any form: those of each state may have an offset.
    """
    given = np.asarray(energies_eV if residuals_eV is None else residuals_eV, dtype=float)
    counts = np.asarray(compositions, dtype=float)
    usable = np.flatnonzero(np.isfinite(given) & (counts.sum(axis=1) > 0))
    floors = _OF_ENERGIES if residuals_eV is None else _OF_RESIDUALS
    sizes = counts[usable].sum(axis=1)
    rows = np.column_stack([counts[usable], np.ones(len(usable)), _dummies(states, usable)]) / sizes[:, None]
    parts = _parts(rows, given[usable] / sizes, sizes, floors)
    if len(parts) < 2:
        return []
    parts.sort(key=lambda part: (-len(part), part[0]))
    reference = _Plane(rows[parts[0]], given[usable][parts[0]] / sizes[parts[0]])
    groups = [LevelGroup(usable[parts[0]], 0.0, np.zeros(counts.shape[1]))]
    for part in parts[1:]:
        offset = given[usable][part] / sizes[part] - rows[part] @ reference.solution
        judged = reference.determines(rows[part])
        by_element = _by_element(counts[usable][part][judged], offset[judged] * sizes[part][judged])
        groups.append(LevelGroup(usable[part], float(np.median(offset[judged])), by_element))
    return groups


def about_levels(groups: Sequence[LevelGroup], symbols: Sequence[str], *, model: bool = False) -> str:
    """A sentence for the person at the keyboard; empty where there is one level.

    Args:
        groups: of :func:`level_groups`.
        symbols: (Z,) of the elements.
        model: whether the groups were found by residuals against a model.
    """
    if len(groups) < 2:
        return ""
    total = sum(len(one.indices) for one in groups)
    said = []
    for one in groups[1:]:
        side = "above" if one.offset_eV_atom > 0 else "below"
        each = ", ".join(
            f"{symbol} {value:+.2f}"
            for symbol, value in zip(symbols, one.offset_by_element, strict=True)
            if np.isfinite(value) and value
        )
        said.append(
            f"{len(one.indices)} of {total} structures (the first is {one.indices[0]}) have energies about "
            f"{abs(one.offset_eV_atom):.3g} eV/atom {side}" + (f" ({each} eV for an atom)" if each else "")
        )
    explained = "where model and composition put the others" if model else "what the others' compositions explain"
    number = {2: "two", 3: "three"}.get(len(groups), str(len(groups)))
    return f"{'; '.join(said)} {explained}: {number} levels of theory in one set? Train on one of them."


def unexplained_eV_atom(compositions: np.ndarray, energies_eV: np.ndarray) -> float:
    """Scatter of energies about the best sum over atoms, sqrt(RSS / degrees of freedom), eV/atom; 0 without any left.

    At one level of theory it is a fraction of an eV (binding energies differ by so much); above ``UNEXPLAINED_eV_ATOM`` the
    energies are not of one level, or not those of their structures, even where the groups are too small to be told apart.
    """
    counts = np.asarray(compositions, dtype=float)
    sizes = counts.sum(axis=1)
    usable = np.isfinite(energies_eV) & (sizes > 1)
    rows, values = counts[usable] / sizes[usable, None], np.asarray(energies_eV)[usable] / sizes[usable]
    free = len(values) - int(np.linalg.matrix_rank(rows)) if len(values) else 0
    if free < 1:
        return 0.0
    left = values - rows @ _Plane(rows, values).solution
    return float(np.sqrt((left**2).sum() / free))


def about_unexplained(scatter_eV_atom: float) -> str:
    """A sentence where the scatter of :func:`unexplained_eV_atom` is not that of one level of theory; else empty."""
    if scatter_eV_atom <= UNEXPLAINED_eV_ATOM:
        return ""
    return (
        f"Energies scatter by {scatter_eV_atom:.3g} eV/atom about what the compositions explain, more than any bond holds: "
        "labels of several levels of theory, or of other structures, in one set?"
    )


def symbols_of(numbers: Sequence[int] | np.ndarray) -> list[str]:
    """Chemical symbols of atomic numbers."""
    return [chemical_symbols[int(z)] for z in numbers]


def _dummies(states: Sequence[Hashable] | None, usable: np.ndarray) -> np.ndarray:
    """(n, S): for every state beyond the first, which structures are in it."""
    if states is None:
        return np.zeros((len(usable), 0))
    here = [states[i] for i in usable]
    kinds = list(dict.fromkeys(here))
    return np.array([[float(one == kind) for kind in kinds[1:]] for one in here]).reshape(len(here), len(kinds[1:]))


def _parts(
    rows: np.ndarray, values: np.ndarray, sizes: np.ndarray, floors: _Floors, *, further: bool = True
) -> list[np.ndarray]:
    """Indices of the groups: a division in two, and each half again.

    Three levels may show only in the halves of a division that is not to be believed itself: those are looked at once.
    """
    whole = [np.arange(len(values))]
    above = _division(rows, values)
    if above is None:
        return whole
    believed = _believed(rows, values, sizes, above, floors)
    if not believed and not further:
        return whole
    parts: list[np.ndarray] = []
    for half in (np.flatnonzero(~above), np.flatnonzero(above)):
        parts += [half[p] for p in _parts(rows[half], values[half], sizes[half], floors, further=believed)]
    if not believed and len(parts) == 2:
        return whole
    return _joined(rows, values, sizes, parts, floors)


def _joined(
    rows: np.ndarray, values: np.ndarray, sizes: np.ndarray, parts: list[np.ndarray], floors: _Floors
) -> list[np.ndarray]:
    """The parts, those that are not to be told from each other put together."""
    found: list[np.ndarray] = []
    for part in sorted(parts, key=len, reverse=True):
        for index, other in enumerate(found):
            both = np.sort(np.concatenate([part, other]))
            if not _believed(rows[both], values[both], sizes[both], np.isin(both, part), floors):
                found[index] = both
                break
        else:
            found.append(part)
    return found


def _division(rows: np.ndarray, values: np.ndarray) -> np.ndarray | None:
    """(n,) bool: the division in two that leaves the smallest mean distance; None where there are too few structures."""
    if len(values) < 2 * LEAST:
        return None
    chosen = np.arange(len(values))
    if len(values) > AT_MOST:
        chosen = np.sort(np.random.default_rng(0).permutation(len(values))[:AT_MOST])
    some_rows, some_values = rows[chosen], values[chosen]
    settled = [_settled(some_rows, some_values, start) for start in _starts(some_rows, some_values)]
    found = [one for one in settled if one is not None]
    if not found:
        return None
    above = min(found, key=lambda one: one[0])[1]
    if len(chosen) == len(values):
        return above
    away = [np.abs(values - rows @ _Plane(some_rows[s], some_values[s]).solution) for s in (~above, above)]
    return np.asarray(away[1] < away[0])


def _starts(rows: np.ndarray, values: np.ndarray) -> Iterator[np.ndarray]:
    """(n,) bool each: divisions at zero and at the three largest gaps of what least squares and least absolute values leave."""
    left = values - rows @ _Plane(rows, values).solution
    for robust in (False, True):
        if robust:
            for _ in range(15):
                root = np.maximum(np.abs(left), 1e-4 * np.abs(left).max() + 1e-12) ** -0.5
                left = values - rows @ _Plane(rows * root[:, None], values * root).solution
        ordered = np.sort(left)
        inner = np.arange(LEAST - 1, len(ordered) - LEAST)
        widest = inner[np.argsort(ordered[inner] - ordered[inner + 1], kind="stable")[:3]]
        for cut in [0.0, *(0.5 * (ordered[widest] + ordered[widest + 1]))]:
            yield left > cut


def _settled(rows: np.ndarray, values: np.ndarray, above: np.ndarray) -> tuple[float, np.ndarray] | None:
    """Mean distance to the own plane, and who is above, once every structure is with the nearer of the two planes."""
    distance = np.inf
    for _ in range(50):
        if min(above.sum(), (~above).sum()) < LEAST:
            return None
        planes = [_Plane(rows[side], values[side]) for side in (~above, above)]
        away = [np.abs(values - rows @ plane.solution) for plane in planes]
        distance = float(np.minimum(*away).mean())
        nearer = np.where(planes[0].determines(rows) & planes[1].determines(rows), away[1] < away[0], above)
        if (nearer == above).all():
            break
        above = nearer
    return distance, above


def _believed(rows: np.ndarray, values: np.ndarray, sizes: np.ndarray, above: np.ndarray, floors: _Floors) -> bool:
    """Whether the division passes the tests that the head of this module states."""
    few, many = sorted((np.flatnonzero(above), np.flatnonzero(~above)), key=len)
    if len(few) < LEAST:
        return False
    of_few, of_many = _Plane(rows[few], values[few]), _Plane(rows[many], values[many])
    judged = of_many.determines(rows[few])
    if judged.sum() < max(LEAST, JUDGED * len(few)):
        return False
    offset = np.abs(values[few] - rows[few] @ of_many.solution)[judged]
    offset_eV_atom, offset_eV = np.median(offset), np.median(offset * sizes[few][judged])
    varied = len(few) >= 2 * of_few.rank and len(many) >= 2 * of_many.rank
    varied &= min(len(np.unique(rows[side].round(6), axis=0)) for side in (few[judged], many)) >= VARIED
    for side, own, other in ((few, of_few, of_many), (many, of_many, of_few)):
        here, there = rows[side], values[side]
        room = 1.0 - own.leverage(here)
        alone = (
            0.0 if offset_eV_atom > UNEXPLAINED_eV_ATOM else offset_eV_atom
        )  # no second structure says where its plane is
        foreseen = np.where(room > 0.05, np.abs(there - here @ own.solution) / np.maximum(room, 0.05), alone)
        from_other = np.where(other.determines(here), np.abs(there - here @ other.solution), offset_eV_atom)
        ratio = np.quantile(foreseen / np.maximum(from_other, 1e-300), 0.95)
        if ratio > (RATIO_OF_VARIED if varied else RATIO):
            return False
    floor_eV = floors.varied_eV if varied else floors.structure_eV
    return bool(offset_eV_atom > floors.atom_eV and offset_eV > floor_eV)


def _by_element(counts: np.ndarray, offsets_eV: np.ndarray) -> np.ndarray:
    """(Z,) eV: offset for an atom of each element where the compositions fix it to a quarter or 0.05 eV; else NaN."""
    found = np.full(counts.shape[1], np.nan)
    free = len(counts) - int(np.linalg.matrix_rank(counts))
    if free < 1:
        return found
    _, sizes, right = np.linalg.svd(counts, full_matrices=False)
    right, sizes = right[sizes > 1e-8 * sizes[0]], sizes[sizes > 1e-8 * sizes[0]]
    solution = _Plane(counts, offsets_eV).solution
    scatter = ((offsets_eV - counts @ solution) ** 2).sum() / free
    error = np.sqrt(scatter * ((right / sizes[:, None]) ** 2).sum(axis=0))
    fixed = np.isclose((right**2).sum(axis=0), 1.0, atol=1e-6)
    return np.where(fixed & (error < np.maximum(0.05, 0.25 * np.abs(solution))), solution, found)
