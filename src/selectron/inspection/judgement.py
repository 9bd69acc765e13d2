"""What a model says of labelled structures: its errors, the shift of level of theory, and the structures it errs on most."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from ase.data import chemical_symbols

from selectron.inspection.result import Judgement, ModelErrors, Shift, Worst
from selectron.potentials.base import Potential
from selectron.structures import Pool
from selectron.structures.label_values import LabelSource, LabelValues, read_labels
from selectron.structures.label_weights import counts_for_nothing
from selectron.training.evaluate import Errors, errors, summarise
from selectron.training.labels import Labelled
from selectron.training.references import compositions, fit_shift

if TYPE_CHECKING:
    from selectron.screening.progress import Progress

CHUNK = 250
WORST = 10
UNLABELLED = 100
"""Structures without labels that are evaluated, to say what a screening would cost."""
FEATURES_COST = 1.5
"""Of energy-ntk features, in evaluations of energies and forces (docs/features/README.md)."""


def judge(
    potential: Potential,
    pool: Pool,
    places: np.ndarray,
    source: LabelSource | None,
    *,
    at_most: int | None,
    seed: int,
    lacking: dict[str, int],
    progress: Progress | None = None,
) -> Judgement:
    """Evaluates the structures at ``places`` of ``pool``, of which ``at_most`` are drawn with ``seed`` (None: all)."""
    total = len(places)
    wanted = UNLABELLED if source is None else at_most
    if wanted is not None and total > wanted:
        places = np.sort(np.random.default_rng(seed).choice(places, wanted, replace=False))
    if progress is not None:
        progress.start(f"errors of {potential.name}", len(places))
    parts: list[Errors] = []
    numbers: list[np.ndarray] = []
    seconds = 0.0
    for start in range(0, len(places), CHUNK):
        chunk = [_labelled(pool, int(place), source) for place in places[start : start + CHUNK]]
        began = time.perf_counter()
        parts.append(errors(potential, chunk))
        seconds += time.perf_counter() - began
        numbers += [one.atoms.numbers for one in chunk]
        if progress is not None:
            progress.advance(len(chunk))
    if progress is not None:
        progress.finish()
    found = Judgement(
        model=potential.name,
        structures=len(places),
        of=total,
        lacking=lacking,
        seconds=seconds,
        features_s=FEATURES_COST * seconds * total / max(len(places), 1),
    )
    if source is None or not len(places):
        return found
    whole = _joined(parts)
    present = np.unique(np.concatenate(numbers))
    counts = compositions(numbers, present)
    known = np.isfinite(whole.energy_errors_eV)
    after = whole
    if known.sum() > 1:
        force_errors = np.nan_to_num(whole.force_rmse_by_structure[known])
        fitted = fit_shift(counts[known], -whole.energy_errors_eV[known], force_errors, present.tolist())
        after = whole.shifted(fitted.of(counts))
        found.shift = {
            chemical_symbols[int(z)]: Shift(float(value), float(error))
            for z, value, error in zip(present, fitted.shift_eV, fitted.error_eV, strict=True)
        }
        found.shift_determined = fitted.rank == len(present)
        found.shift_significant = fitted.significant
        found.typical_shift_eV_atom = fitted.typical_eV_atom
    found.before, found.after = _totals(whole), _totals(after)
    found.worst = _worst(after, pool, places)
    return found


def _labelled(pool: Pool, place: int, source: LabelSource | None) -> Labelled:
    atoms = pool[place]
    values = LabelValues(None, None, None) if source is None else read_labels(atoms, source, index=place)
    energy, forces = values.energy_eV, values.forces
    if energy is None or counts_for_nothing(atoms, "energy"):
        energy = np.nan
    if forces is None or counts_for_nothing(atoms, "forces"):
        forces = np.full((len(atoms), 3), np.nan)
    return Labelled(atoms, energy, forces)


def _joined(parts: Sequence[Errors]) -> Errors:
    return summarise(
        np.concatenate([one.energy_errors_eV for one in parts]),
        np.concatenate([one.force_rmse_by_structure for one in parts]),
        np.concatenate([one.force_mae_by_structure for one in parts]),
        np.concatenate([one.atoms for one in parts]),
    )


def _totals(one: Errors) -> ModelErrors:
    return ModelErrors(one.energy_mae_meV_atom, one.energy_rmse_meV_atom, one.force_mae, one.force_rmse)


def _worst(after: Errors, pool: Pool, places: np.ndarray) -> list[Worst]:
    """By the energy per atom after the shift, or the forces: whichever is further beyond its own median."""
    energy = 1e3 * after.energy_errors_eV / after.atoms
    parts = np.stack([_relative(np.abs(energy)), _relative(after.force_rmse_by_structure)])
    order = np.argsort(-parts.max(axis=0), kind="stable")[:WORST]
    found = []
    for i in order.tolist():
        source = pool.source(int(places[i]))
        why = "energy" if parts[0, i] >= parts[1, i] else "forces"
        found.append(
            Worst(
                source.path,
                source.index,
                pool[int(places[i])].get_chemical_formula(),
                float(energy[i]),
                float(after.force_rmse_by_structure[i]),
                why,
            )
        )
    return found


def _relative(values: np.ndarray) -> np.ndarray:
    """In units of the median; 0 where there is none."""
    known = values[~np.isnan(values)]
    middle = float(np.median(known)) if len(known) else 0.0
    return np.nan_to_num(values / middle, nan=0.0, posinf=np.inf) if middle > 0.0 else np.zeros(len(values))
