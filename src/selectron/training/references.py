"""Atomic reference energies: the shift of level of theory between a model and the labels.

Two levels of theory differ, to first order, by a constant for each atom of an element, E_label − E_model ≈ Σ_z n_z δ_z, which
can be meV or keV. A model has to be given δ before it is trained: learnt through the weights it costs accuracy everywhere.

Plain least squares takes δ from all residuals alike, and a batch of transition states, which active learning asks for, then
teaches δ the model's error at transition states. What tells the two apart are forces: δ leaves them untouched, so where
the model's forces are right the energy residual is the shift, and where they are wrong it is something else as well. Here,
with N_i atoms and f_i the rms error of a force component (model against label, so that a transition state, whose label
forces vanish, counts as far off):

    r_i = Σ_z n_iz δ_z + κ N_i f_i² + ε_i,    sd(ε_i) = sqrt(N_i (s₀² + ℓ² f_i²))

κ is a nuisance, the energy that goes with a force error of a harmonic system, with a normal prior around zero; ε is
counted by Huber's loss, by iterated reweighting. s₀ = 20 meV, ℓ = 0.3 Å and the prior of κ, 0.03 Å²/eV, were chosen on RDB7
reactions (MACE-OFF23 against Transition1x labels) and on the embedded pool; docs/training.md has the numbers, which
hardly depend on them. A wide normal prior around zero picks the smallest δ where the data leaves combinations of elements
open (one stoichiometry only, an element that is missing).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from ase.data import chemical_symbols

from selectron.errors import SelectronError
from selectron.potentials.mace import MacePotential
from selectron.training.evaluate import errors
from selectron.training.labels import Labelled
from selectron.training.options import TrainOptions

FLOOR_eV = 0.02
LENGTH_A = 0.3
CURVATURE_PRIOR = 0.03
HUBER = 1.345
SIGNIFICANT_SD = 4.0
SIGNIFICANT_eV_ATOM = 0.02
AT_MOST = 2000


class ReferenceShift(NamedTuple):
    """δ of E_label − E_model ≈ Σ_z n_z δ_z for the Z elements of a model.

    | field       | shape | meaning                                                                                     |
    |-------------|-------|---------------------------------------------------------------------------------------------|
    | numbers     | (Z,)  | atomic numbers                                                                              |
    | shift_eV    | (Z,)  | δ, eV per atom                                                                              |
    | error_eV    | (Z,)  | standard error of δ; infinite where the data leaves it open                                 |
    | rank        |       | how many combinations of elements the data fixes; below ``present.sum()``: underdetermined  |
    | present     | (Z,)  | whether the element occurs in the data                                                      |
    | typical_eV_atom |   | rms over the structures of the shift per atom                                               |
    | typical_error_eV_atom | | the same of its standard error                                                          |
    | structures  |       | how many structures were used                                                               |
    | significant |       | whether the typical shift is above 20 meV/atom, four of its errors, and the errors it leaves |
    | applied     |       | whether the model was given δ                                                               |
    | note        |       | a sentence for the person who reads the report; empty where there is nothing to say         |
    """

    numbers: np.ndarray
    shift_eV: np.ndarray
    error_eV: np.ndarray
    rank: int
    present: np.ndarray
    typical_eV_atom: float
    typical_error_eV_atom: float
    structures: int
    significant: bool
    applied: bool = False
    note: str = ""

    def by_symbol(self) -> dict[str, float]:
        """Shift of each element that occurs in the data, eV per atom."""
        return {
            chemical_symbols[int(z)]: float(shift)
            for z, shift, there in zip(self.numbers, self.shift_eV, self.present, strict=True)
            if there
        }

    def of(self, counts: np.ndarray) -> np.ndarray:
        """(n,) eV: the shift of structures with compositions (n, Z)."""
        return np.asarray(counts @ self.shift_eV)


def compositions(structures: Sequence[np.ndarray], numbers: Sequence[int] | np.ndarray) -> np.ndarray:
    """(n, Z): how many atoms of each of ``numbers`` there are, from the atomic numbers of each structure."""
    wanted = np.asarray(numbers)[None]
    return np.stack([(np.asarray(one)[:, None] == wanted).sum(axis=0) for one in structures]).astype(float)


def fit_shift(
    counts: np.ndarray, residuals_eV: np.ndarray, force_errors: np.ndarray, numbers: Sequence[int]
) -> ReferenceShift:
    """The shift of level of theory by the estimator above.

    Args:
        counts: (n, Z) atoms of each element.
        residuals_eV: (n,) label minus model.
        force_errors: (n,) rms over the components of label minus model forces, eV/Å.
        numbers: (Z,) atomic numbers.
    """
    sizes = counts.sum(axis=1)
    wide = 10.0 * max(1.0, float(np.abs(residuals_eV / sizes).max()))  # prior of δ, far beyond any shift in the data
    weights = 1.0 / (sizes * (FLOOR_eV**2 + (LENGTH_A * force_errors) ** 2))
    design = np.column_stack([counts, sizes * force_errors**2])
    prior = np.diag(np.append(np.full(counts.shape[1], wide**-2), CURVATURE_PRIOR**-2))
    robust, scale = np.ones(len(sizes)), 1.0
    for _ in range(100):
        scaled = weights * robust
        precision = (design.T * scaled) @ design / scale**2 + prior
        solution = np.linalg.solve(precision, design.T @ (scaled * residuals_eV) / scale**2)
        left = (residuals_eV - design @ solution) * np.sqrt(weights)
        scale = max(float(np.median(np.abs(left))) / 0.6745, 0.3)
        before, robust = robust, np.minimum(1.0, HUBER * scale / np.maximum(np.abs(left), 1e-12))
        if np.abs(robust - before).max() < 1e-6:
            break
    covariance = np.linalg.inv(precision)[:-1, :-1]
    shift, error = solution[:-1], np.sqrt(np.diag(covariance))
    present: np.ndarray = np.asarray(counts.any(axis=0))
    typical = float(np.sqrt(np.mean((counts @ shift / sizes) ** 2)))
    variance = np.einsum("iz,zy,iy->i", counts, covariance, counts) / sizes**2
    typical_error = float(np.sqrt(variance.mean()))
    remaining = float(np.median(np.abs(residuals_eV - counts @ shift) / sizes)) / 0.6745
    return ReferenceShift(
        numbers=np.asarray(numbers),
        shift_eV=np.where(present, shift, 0.0),
        error_eV=np.where(error > 0.1 * wide, np.inf, error),
        rank=int(np.linalg.matrix_rank(counts)),
        present=present,
        typical_eV_atom=typical,
        typical_error_eV_atom=typical_error,
        structures=len(sizes),
        significant=typical > max(SIGNIFICANT_eV_ATOM, SIGNIFICANT_SD * typical_error, remaining),
    )


def shift_of_level(
    potential: MacePotential,
    structures: Sequence[Labelled],
    options: TrainOptions,
    isolated_eV: Mapping[str, float] | None = None,
) -> ReferenceShift | None:
    """What ``options.references`` asks for: the fitted shift, that of isolated atoms, or None for ``keep``.

    Up to 2,000 structures, drawn with the seed, are used; none of them is an isolated atom. ``isolated_eV`` are energies
    of such atoms that came with the data; ``options.atom_energies_eV`` goes before them.

    Raises SelectronError where an isolated-atom energy is missing.
    """
    if options.references == "keep":
        return None
    chosen = list(structures)
    if len(chosen) > AT_MOST:
        order = np.random.default_rng(options.seed).permutation(len(chosen))[:AT_MOST]
        chosen = [chosen[i] for i in np.sort(order)]
    counts = compositions([one.atoms.numbers for one in chosen], potential.atomic_numbers)
    if options.references == "atoms":
        return _from_atoms(potential, counts, options, {**(isolated_eV or {}), **(options.atom_energies_eV or {})})
    found = errors(potential, chosen)
    fitted = fit_shift(counts, -found.energy_errors_eV, found.force_rmse_by_structure, potential.atomic_numbers)
    fitted = fitted._replace(applied=options.references == "fit" or fitted.significant)
    return fitted._replace(note=_note(fitted))


def _from_atoms(
    potential: MacePotential, counts: np.ndarray, options: TrainOptions, labels: Mapping[str, float]
) -> ReferenceShift:
    numbers = potential.atomic_numbers
    symbols = [chemical_symbols[z] for z in numbers]
    present: np.ndarray = np.asarray(counts.any(axis=0))
    model: Mapping[str, float] = options.model_atom_energies_eV or dict(
        zip(symbols, reference_energies(potential).tolist(), strict=True)
    )
    missing = [s for s, there in zip(symbols, present, strict=True) if there and not (s in labels and s in model)]
    if missing:
        raise SelectronError(
            f"The isolated-atom energy of {', '.join(missing)} is missing; the data holds that element."
        )
    shift = np.array([labels[s] - model[s] if s in labels and s in model else 0.0 for s in symbols])
    typical = float(np.sqrt(np.mean((counts @ shift / counts.sum(axis=1)) ** 2)))
    return ReferenceShift(
        numbers=np.asarray(numbers),
        shift_eV=shift,
        error_eV=np.zeros(len(numbers)),
        rank=int(np.linalg.matrix_rank(counts)),
        present=present,
        typical_eV_atom=typical,
        typical_error_eV_atom=0.0,
        structures=0,
        significant=bool(typical > SIGNIFICANT_eV_ATOM),
        applied=True,
        note="Atomic references are those of isolated atoms at the level of the labels.",
    )


def reference_energies(potential: MacePotential) -> np.ndarray:
    """(Z,) eV: the atomic reference energies of the potential's head."""
    energies = potential.model.atomic_energies_fn.atomic_energies.detach().double().cpu()
    row = energies[potential.heads.index(potential.head)] if energies.ndim == 2 else energies
    return np.asarray(row.numpy())


def _note(shift: ReferenceShift) -> str:
    if not shift.applied:
        return ""
    each = ", ".join(
        f"{symbol} {1e3 * value:+.0f}" + (f" ± {1e3 * error:.0f}" if np.isfinite(error) else " (open)")
        for (symbol, value), error in zip(shift.by_symbol().items(), shift.error_eV[shift.present], strict=True)
    )
    open_combinations = int(shift.present.sum()) - shift.rank
    return (
        f"The labels are at another level of theory than the model: {1e3 * shift.typical_eV_atom:.0f} meV/atom typically "
        f"({each} meV for an atom); the model's atomic reference energies were moved by that."
        + (
            " The compositions of the data do not determine every element by itself: the shift holds for these "
            "stoichiometries, and energies of others may be off."
            if open_combinations
            else ""
        )
    )
