"""What a training learns from and is judged by: its sets, read from one source of labels, divided and weighed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ase import Atoms

from selectron.errors import SelectronError
from selectron.structures.isolated import is_isolated_atom
from selectron.structures.label_source import LabelKeys
from selectron.structures.label_values import LabelSource
from selectron.structures.level_groups import (
    about_levels,
    about_unexplained,
    level_groups,
    symbols_of,
    unexplained_eV_atom,
)
from selectron.training.extra import check_weights
from selectron.training.labels import (
    Labelled,
    LabelledSet,
    equally_weighted,
    labelled_set,
    split,
    without_isolated_atoms,
)
from selectron.training.options import TrainOptions


class TrainingData(NamedTuple):
    """The sets of a training, without isolated atoms, whose energies in eV by element are apart.

    ``old`` are replayed structures; ``said`` are sentences about where labels come from, for a person.
    """

    training: list[Labelled]
    validation: list[Labelled]
    old: list[Labelled]
    isolated_eV: dict[str, float]
    said: list[str]


def read_sets(
    train: Sequence[Atoms],
    valid: Sequence[Atoms] | None,
    options: TrainOptions,
    keys: LabelKeys | None = None,
    *,
    planar: bool = False,
) -> TrainingData:
    """Training, validation and replayed structures with their labels, ready to be written for the trainer.

    Raises SelectronError where labels are missing or of several sources, and where nothing is left to learn from.
    """
    how = {"keys": keys, "head": options.head, "planar": planar}
    first = labelled_set(train, what="training", **how)  # type: ignore[arg-type]
    second = labelled_set(valid or [], what="validation", **how)  # type: ignore[arg-type]
    _refuse_two_sources(first.source, second.source)
    training, isolated_eV = (first.structures, {}) if planar else without_isolated_atoms(first.structures)
    validation = second.structures if planar else without_isolated_atoms(second.structures, what="validation")[0]
    old = _replayed(options, keys)
    if not validation:
        training, validation = split(training, options.validation_fraction, options.seed)
    validation = equally_weighted(validation)
    if options.weights == "equal":
        training = equally_weighted(training)
    if not any(one.weight and (one.has_energy or one.has_forces) for one in training):
        raise SelectronError("The training set is empty." if not training else "All labels have the weight 0.")
    check_weights(options.extra, weighted=any(one.weight != 1.0 for one in training))
    said = [*first.said, *second.said, *(old.said if old is not None else []), *_about_stress(options, training)]
    said += [] if planar else _about_levels(first.structures)
    replayed = [] if old is None else equally_weighted(without_isolated_atoms(old.structures, what="replay")[0])
    return TrainingData(training, validation, replayed, isolated_eV, said)


def _refuse_two_sources(first: LabelSource | None, second: LabelSource | None) -> None:
    if first is None or second is None or first[:2] == second[:2]:
        return
    raise SelectronError(
        f"The training set has its labels in {first.energy} and {first.forces}, the validation set in {second.energy} and "
        f"{second.forces}: errors between two sources mean nothing; name keys that both sets have with --energy-key and "
        "--forces-key, or write both under the same keys."
    )


def _about_levels(structures: Sequence[Labelled]) -> list[str]:
    """Where energies fall into groups of levels of theory, or scatter more than one level's do."""
    if not structures:
        return []
    numbers = np.unique(np.concatenate([one.atoms.numbers for one in structures]))
    counts = np.stack([(one.atoms.numbers[:, None] == numbers).sum(axis=0) for one in structures])
    energies_eV = np.array([np.nan if is_isolated_atom(one.atoms) else one.energy_eV for one in structures])
    said = about_levels(level_groups(counts, energies_eV), symbols_of(numbers))
    said = said or about_unexplained(unexplained_eV_atom(counts, energies_eV))
    return [f"Warning: {said}"] if said else []


def _about_stress(options: TrainOptions, training: Sequence[Labelled]) -> list[str]:
    if not options.stress_weight:
        return []
    count = sum(one.stress is not None for one in training)
    if not count:
        raise SelectronError(
            f"stress_weight is {options.stress_weight:g}, but no structure of the training set has a stress and three periodic "
            "directions."
        )
    return [
        f"Stresses of {count:,} of {len(training):,} structures are fitted, with the weight {options.stress_weight:g}."
    ]


def _replayed(options: TrainOptions, keys: LabelKeys | None) -> LabelledSet | None:
    """Old structures, drawn with the seed; by ``keys`` where they have these, else by their own."""
    if not options.replay:
        return None
    from selectron.structures import Pool

    with Pool.open(options.replay) as pool:
        count = min(options.replay_count, len(pool))
        chosen = np.sort(np.random.default_rng(options.seed).choice(len(pool), count, replace=False))
        structures = [pool[int(i)] for i in chosen]
    try:
        return labelled_set(structures, what="replay", keys=keys, head=options.head)
    except SelectronError:
        if keys is None or keys == LabelKeys():
            raise
        return labelled_set(structures, what="replay", head=options.head)
