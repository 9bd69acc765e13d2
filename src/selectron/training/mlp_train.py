"""Fitting the small planar MLP with the same call, options and result as a MACE."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from ase import Atoms

from selectron.errors import SelectronError
from selectron.potentials.mlp import MLPPotential
from selectron.structures.label_source import LabelKeys
from selectron.training.data import read_sets
from selectron.training.evaluate import Errors, errors, summarise
from selectron.training.labels import Labelled
from selectron.training.mlp_fit import fit_mlp
from selectron.training.options import TrainOptions, resolved
from selectron.training.outcome import FineTuned, TrainingFailed
from selectron.training.progress import Epoch

OUTPUT = "fine_tuned.mlp"


def train_mlp(
    model: str | Path,
    train: Sequence[Atoms],
    valid: Sequence[Atoms] | None,
    options: TrainOptions,
    folder: str | Path,
    *,
    keys: LabelKeys | None = None,
    on_progress: Callable[[Epoch], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> FineTuned:
    """Fits the networks in ``model`` (a ``.mlp`` file) to one-atom structures, starting from where they are.

    ``options.epochs`` is the most Levenberg–Marquardt iterations, ``energy_weight`` (1/eV²) and ``forces_weight`` (Å²/eV²)
    are those of :func:`~selectron.training.mlp_fit.fit_mlp`; all networks of a stack see all structures. It runs in this
    process, as it takes seconds, and deterministically: no seed but that of the validation split. Errors are of all
    networks together. The constant of the network is its reference energy, so ``options.references`` has no meaning.

    Raises TrainingFailed where the fit breaks down, SelectronError for labels that are missing and for molecules.
    """
    wall, core = time.monotonic(), time.process_time()
    potential = MLPPotential.load(model)
    data = read_sets(train, valid, options, keys, planar=True)
    training, validation = data.training, data.validation
    if any(one.energy_weight != 1.0 or one.forces_weight != 1.0 for one in [*training, *validation]):
        raise SelectronError(
            "An MLP is fitted to energies and forces together: config_weight is the only weight it takes."
        )
    for line in data.said if say is not None else ():
        say(line)  # type: ignore[misc]
    potential.batch([one.atoms for one in [*training, *validation]])  # refuses structures of more than one atom
    before = stack_errors(potential, validation)

    def stacked(rows: np.ndarray) -> torch.Tensor:
        shared = torch.as_tensor(rows, dtype=torch.float64)
        return shared.expand(potential.networks, *shared.shape)

    try:
        fitted, fit = fit_mlp(
            potential,
            stacked(np.array([one.atoms.positions[0, :2] for one in training])),
            stacked(np.array([one.energy_eV for one in training])),
            stacked(np.array([one.forces[0, :2] for one in training])),
            energy_weight=options.energy_weight,
            force_weight=options.forces_weight,
            steps=options.epochs,
            mask=stacked(np.array([one.weight for one in training]))
            if any(one.weight != 1.0 for one in training)
            else None,
        )
    except SelectronError as error:
        raise TrainingFailed(f"The fit of the MLP failed: {error} The model that it began with is kept.") from None
    after = stack_errors(fitted, validation)
    if not after.finite:
        raise TrainingFailed("The fit of the MLP diverged: it predicts no finite numbers; the old model is kept.")
    nan = float("nan")
    history = [
        Epoch(number - 1, 1, float(loss.mean()), nan, nan, nan, nan, nan) for number, loss in enumerate(fit.loss)
    ]
    for epoch in history if on_progress is not None else ():
        on_progress(epoch)  # type: ignore[misc]
    folder = resolved(folder)
    folder.mkdir(parents=True, exist_ok=True)
    fitted.save(folder / OUTPUT)
    return FineTuned(
        model_path=folder / OUTPUT,
        history=history,
        kept_epoch=len(history) - 2,
        seconds=time.monotonic() - wall,
        core_s=time.process_time() - core,
        references=None,
        untouched=before,
        before=before,
        after=after,
        n_train=len(training),
        n_valid=len(validation),
        warnings=[],
        labels=data.said,
    )


def stack_errors(potential: MLPPotential, structures: Sequence[Labelled]) -> Errors:
    """Errors of all networks of a stack together, network after network: n is networks times structures."""
    each = [errors(potential.network(k), structures) for k in range(potential.networks)]
    return summarise(
        np.concatenate([one.energy_errors_eV for one in each]),
        np.concatenate([one.force_rmse_by_structure for one in each]),
        np.concatenate([one.force_mae_by_structure for one in each]),
        np.concatenate([one.atoms for one in each]),
    )
