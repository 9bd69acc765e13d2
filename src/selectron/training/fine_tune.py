"""Fine-tuning of a MACE by mace-torch's own trainer in another process."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols

from selectron import __version__
from selectron.cores import usable_cores
from selectron.errors import SelectronError
from selectron.potentials.load import DTYPES, model_file
from selectron.potentials.mace import MacePotential
from selectron.potentials.mace_files import load_mace, read_mace
from selectron.potentials.mace_kinds import has_corrections
from selectron.potentials.threads import is_small
from selectron.structures.atomic import atomic_output
from selectron.structures.heads import head_of
from selectron.structures.label_source import LabelKeys
from selectron.training.data import read_sets
from selectron.training.evaluate import Errors, errors
from selectron.training.labels import Labelled, check_elements, write_for_mace
from selectron.training.mace_process import POLL_S, kept, run_trainer, settings_of, trained_model
from selectron.training.options import TrainOptions, resolved
from selectron.training.outcome import FineTuned, TrainingFailed
from selectron.training.progress import Epoch
from selectron.training.references import ReferenceShift, compositions, reference_energies, shift_of_level
from selectron.wording import listed

__all__ = ["OUTPUT", "FineTuned", "TrainingFailed", "fine_tune", "training_steps", "training_threads"]

OUTPUT = "fine_tuned.model"


def fine_tune(
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
    """Fine-tunes ``model`` on ``train`` in another process.

    Args:
        model: a path, a known name or ``embedded``; the file is only read.
        train: structures with energies (eV) and forces (eV/Å), from one source (docs/labels.md).
        valid: the same for validation; None or empty: ``options.validation_fraction`` of ``train`` is set aside.
        options: how; ``kind: mlp`` goes to :func:`~selectron.training.mlp_train.train_mlp`.
        folder: where everything goes; made if absent. The new model appears as ``fine_tuned.model`` when all is done
            and checked, never before. Drafts of a training that was killed are removed.
        keys: of the labels, as far as they are named; replayed structures that lack them have their own.
        on_progress: called after every epoch, while the training runs.
        say: called with each sentence of ``FineTuned.labels`` as soon as the labels are read.

    Raises:
        TrainingFailed: crash, a loss that is not finite, divergence, or out of time.
        SelectronError: labels missing or of several sources, elements that the model lacks, nothing to train on.
    """
    with closing(
        training_steps(model, train, valid, options, folder, keys=keys, on_progress=on_progress, say=say)
    ) as steps:
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value
            time.sleep(POLL_S)


def training_steps(
    model: str | Path,
    train: Sequence[Atoms],
    valid: Sequence[Atoms] | None,
    options: TrainOptions,
    folder: str | Path,
    *,
    keys: LabelKeys | None = None,
    on_progress: Callable[[Epoch], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Generator[None, None, FineTuned]:
    """:func:`fine_tune` for a caller with other things to do: yields wherever the other process has to be waited for.

    Closing the generator ends the training. An MLP is trained without a pause.
    """
    if options.kind == "mlp":
        from selectron.training.mlp_train import train_mlp

        return train_mlp(model, train, valid, options, folder, keys=keys, on_progress=on_progress, say=say)
    began = time.monotonic()
    base_path = model_file(str(model))
    base = load_mace(base_path)
    name = str(model) if str(model) == "embedded" else base_path.stem
    dtype = _dtype(base, options)
    options = options.model_copy(update={"threads": training_threads(base, options)})
    head = _head(base, train, options)
    potential = MacePotential(base, name=name, dtype=torch.float64, device=options.device, head=head)
    if potential.atomic_numbers != sorted(potential.atomic_numbers):
        raise SelectronError(
            f"{name} does not have its elements in the order of the periodic table, which training needs."
        )
    data = read_sets(train, valid, options, keys)
    for line in data.said if say is not None else ():
        say(line)  # type: ignore[misc]
    training, validation, old, isolated_eV = data.training, data.validation, data.old, data.isolated_eV
    check_elements([*training, *validation, *old], potential.atomic_numbers, model=name)
    untouched = errors(potential, validation)
    shift, known = None, [one for one in training if one.weight and one.has_energy and one.has_forces]
    if known or options.references == "atoms":
        shift = shift_of_level(potential, known or training, options, isolated_eV)
    warnings = [shift.note] if shift is not None and shift.note else []
    warnings += _about_isolated(potential, shift, isolated_eV)
    before = untouched
    if shift is not None and shift.applied:
        before = untouched.shifted(_shifts(shift, validation))

    folder = resolved(folder)
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    _write_start(base_path, run / "start.model", shift, potential.heads.index(potential.head))
    moved = _shifts(shift, old) if shift is not None and shift.applied and options.replay_level == "model" else None
    write_for_mace(run / "valid.xyz", validation)
    write_for_mace(
        run / "train.xyz",
        [*training, *old],
        np.concatenate([np.zeros(len(training)), moved if moved is not None else np.zeros(len(old))]),
    )
    references_eV = reference_energies(potential) + (shift.shift_eV if shift is not None and shift.applied else 0.0)
    settings = settings_of(options, dtype, potential, references_eV, len(training) + len(old))
    settings |= {
        "layers": options.layers,
        "selectron": __version__,
        "weighted": any(one.weight != 1.0 or one.forces_weight != 1.0 for one in [*training, *old]),
    }
    (run / "settings.json").write_text(json.dumps(settings, indent=1))
    try:
        history = yield from run_trainer(options, run, on_progress)
    except TrainingFailed:
        _say_if_refused(run, name)
        raise

    draft, kept_epoch = trained_model(run, options)
    if options.keeps_last and kept_epoch < history[-1].epoch:
        warnings.append(_about_rise(history, kept_epoch))
    after = errors(_checked(draft, potential, options), validation)
    _refuse_diverged(before, after, options, run)
    with atomic_output(folder / OUTPUT, "wb") as stream:
        stream.write(draft.read_bytes())
    core_s = float(json.loads((run / "outcome.json").read_text())["core_s"])
    for leftover in [*run.glob("checkpoints/*"), *run.glob("*.model")]:
        leftover.unlink()
    return FineTuned(
        model_path=folder / OUTPUT,
        history=history,
        kept_epoch=kept_epoch,
        seconds=time.monotonic() - began,
        core_s=core_s,
        references=shift,
        untouched=untouched,
        before=before,
        after=after,
        n_train=len(training) + len(old),
        n_valid=len(validation),
        warnings=warnings,
        labels=data.said,
    )


def _head(model: Any, train: Sequence[Atoms], options: TrainOptions) -> str | None:
    """The head of the model to train: ``options.head``, unless it only says which structures a model with one head gets."""
    one = len(getattr(model, "heads", None) or ["Default"]) == 1
    return None if one and any(head_of(atoms) == options.head for atoms in train) else options.head


def _dtype(base: torch.nn.Module, options: TrainOptions) -> torch.dtype:
    if options.dtype != "auto":
        return DTYPES[options.dtype]
    return next(p.dtype for p in base.parameters() if p.is_floating_point())


def training_threads(model: torch.nn.Module, options: TrainOptions) -> int:
    """How many threads the training of ``model`` takes: as ``options`` say, else one for a small model and all for others."""
    if options.threads != "auto":
        return options.threads
    return 1 if is_small(model) else usable_cores()


def _about_isolated(potential: MacePotential, shift: ReferenceShift | None, isolated_eV: dict[str, float]) -> list[str]:
    """How the energies of isolated atoms in the data compare with the references that the training begins with."""
    if not isolated_eV:
        return []
    references = reference_energies(potential) + (shift.shift_eV if shift is not None and shift.applied else 0.0)
    each = ", ".join(
        f"{chemical_symbols[z]} {isolated_eV[chemical_symbols[z]] - energy:+.3f}"
        for z, energy in zip(potential.atomic_numbers, references, strict=True)
        if chemical_symbols[z] in isolated_eV
    )
    return [f"Isolated atoms in the data are not trained on; they differ from the model's references by {each} eV."]


def _about_rise(history: list[Epoch], kept_epoch: int) -> str:
    """Why the result is not the last epoch's."""
    losses = {one.epoch: one.valid_loss for one in history}
    rise = 100 * (history[-1].valid_loss / losses[kept_epoch] - 1)
    return (
        f"The validation loss rose by {rise:.0f} % after epoch {kept_epoch + 1} of {history[-1].epoch + 1}, whose model is "
        "kept: fewer epochs or old data to replay may do better."
    )


def _shifts(shift: ReferenceShift, structures: Sequence[Labelled]) -> np.ndarray:
    if not structures:
        return np.zeros(0)
    return shift.of(compositions([one.atoms.numbers for one in structures], shift.numbers))


def _write_start(source: Path, target: Path, shift: ReferenceShift | None, head: int) -> None:
    """The model that the training begins with: ``source`` with the new references of one head."""
    model: Any = load_mace(source)
    if shift is not None and shift.applied:
        energies = model.atomic_energies_fn.atomic_energies
        with torch.no_grad():
            row = energies[head] if energies.ndim == 2 else energies
            row += torch.as_tensor(shift.shift_eV, dtype=energies.dtype)
    torch.save(model, target)


def _checked(draft: Path, before: MacePotential, options: TrainOptions) -> MacePotential:
    """The new model as a potential, after a look at what must not have changed."""
    model = read_mace(draft)
    if has_corrections(model):
        raise TrainingFailed("mace-torch did not merge the LoRA corrections into the model; the old model is kept.")
    after = MacePotential(model, name="fine-tuned", dtype=torch.float64, device=options.device)
    if after.atomic_numbers != before.atomic_numbers or after.cutoff_A != before.cutoff_A:
        raise TrainingFailed(
            "mace-torch returned a model with other elements or another cutoff; the old model is kept."
        )
    return after


def _say_if_refused(run: Path, name: str) -> None:
    """Raises SelectronError where fast layers were asked for and could not be had."""
    if (run / "refused.txt").exists():
        reason = (run / "refused.txt").read_text()
        raise SelectronError(
            f"{name} cannot be trained with layers: fast: {reason}; auto trains it on mace-torch's own."
        ) from None


def _refuse_diverged(before: Errors, after: Errors, options: TrainOptions, run: Path) -> None:
    """Raises TrainingFailed where the new model is not finite, or its loss as an error has grown by the factor."""
    if not after.finite:
        raise TrainingFailed(f"The training diverged: the new model predicts no finite numbers; {kept(run)}")
    squares = options.counts_squares
    losses = [one.loss(*options.final_weights, squares=squares) for one in (after, before)]
    grown = (losses[0] / max(losses[1], 1e-12)) ** (0.5 if squares else 1.0)
    if grown > options.divergence_factor:
        changes = [
            f"energies went from {before.energy_rmse_meV_atom:.1f} to {after.energy_rmse_meV_atom:.1f} meV/atom",
            f"forces from {before.force_rmse:.3f} to {after.force_rmse:.3f} eV/Å",
        ]
        known = [change for change in changes if "nan" not in change]  # the set may have no energies, or no forces
        raise TrainingFailed(
            f"The training diverged: on the validation set {listed(known)} (RMSE); {kept(run)} Often the learning rate is "
            "too large, there are too few epochs to make up for its first steps, or the validation set is unlike what was "
            "trained on."
        )
