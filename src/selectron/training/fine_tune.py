"""Fine-tuning of a MACE by mace-torch's own trainer in another process."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms

from selectron.errors import SelectronError
from selectron.potentials.load import DTYPES, model_file
from selectron.potentials.mace import MacePotential
from selectron.potentials.mace_files import load_mace
from selectron.structures.atomic import atomic_output
from selectron.training.evaluate import Errors, errors
from selectron.training.labels import Labelled, check_elements, labelled, split, write_for_mace
from selectron.training.options import TrainOptions, resolved
from selectron.training.progress import Epoch, EpochReader
from selectron.training.references import ReferenceShift, compositions, reference_energies, shift_of_level

OUTPUT = "fine_tuned.model"
RUNNER = Path(__file__).with_name("mace_runner.py")
POLL_S = 0.2
LOG_LINES = 15


class TrainingFailed(SelectronError):
    """The training came to nothing: it crashed, diverged or ran out of time. The model that it began with is untouched."""


class FineTuned(NamedTuple):
    """A training that came to an end, and what it was good for.

    ``before`` is the model with its new references, ``untouched`` the model as it was given; all errors are of the
    validation set. ``core_s`` is CPU time of the training process, ``seconds`` wall time of everything.
    """

    model_path: Path
    history: list[Epoch]
    best_epoch: int
    seconds: float
    core_s: float
    references: ReferenceShift | None
    untouched: Errors
    before: Errors
    after: Errors
    n_train: int
    n_valid: int
    warnings: list[str]

    @property
    def improved(self) -> bool:
        """Whether forces or energies of the validation set got better and neither got much worse (a tenth)."""
        energy = self.after.energy_rmse_meV_atom / max(self.before.energy_rmse_meV_atom, 1e-12)
        force = self.after.force_rmse / max(self.before.force_rmse, 1e-12)
        return min(energy, force) < 1.0 and max(energy, force) < 1.1


def fine_tune(
    model: str | Path,
    train: Sequence[Atoms],
    valid: Sequence[Atoms] | None,
    options: TrainOptions,
    folder: str | Path,
    *,
    on_progress: Callable[[Epoch], None] | None = None,
) -> FineTuned:
    """Fine-tunes ``model`` on ``train`` in another process.

    Args:
        model: a path, a known name or ``embedded``; the file is only read.
        train: structures with energies (eV) and forces (eV/Å).
        valid: the same for validation; None or empty: ``options.validation_fraction`` of ``train`` is set aside.
        options: how.
        folder: where everything goes; made if absent. The new model appears as ``fine_tuned.model`` when all is done
            and checked, never before. Drafts of a training that was killed are removed.
        on_progress: called after every epoch, while the training runs.

    Raises:
        TrainingFailed: crash, a loss that is not finite, divergence, or out of time.
        SelectronError: labels missing, elements that the model lacks, nothing to train on.
    """
    began = time.monotonic()
    base_path = model_file(str(model))
    base = load_mace(base_path)
    name = str(model) if str(model) == "embedded" else base_path.stem
    dtype = _dtype(base, options)
    potential = MacePotential(base, name=name, dtype=torch.float64, device=options.device, head=options.head)
    if potential.atomic_numbers != sorted(potential.atomic_numbers):
        raise SelectronError(
            f"{name} does not have its elements in the order of the periodic table, which training needs."
        )
    training = labelled(train, what="training")
    validation = labelled(valid or [], what="validation")
    check_elements([*training, *validation], potential.atomic_numbers, model=name)
    old = _replayed(options)
    check_elements(old, potential.atomic_numbers, model=name)
    if not validation:
        training, validation = split(training, options.validation_fraction, options.seed)
    if not training:
        raise SelectronError("The training set is empty.")

    untouched = errors(potential, validation)
    shift = shift_of_level(potential, [*training, *validation], options)
    warnings = [shift.note] if shift is not None and shift.note else []
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
    settings = _settings(options, dtype, potential, references_eV, len(training) + len(old))
    (run / "settings.json").write_text(json.dumps(settings, indent=1))
    history = _run(options, run, on_progress)

    draft, best_epoch = _result(run, options)
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
        best_epoch=best_epoch,
        seconds=time.monotonic() - began,
        core_s=core_s,
        references=shift,
        untouched=untouched,
        before=before,
        after=after,
        n_train=len(training) + len(old),
        n_valid=len(validation),
        warnings=warnings,
    )


def _dtype(base: torch.nn.Module, options: TrainOptions) -> torch.dtype:
    if options.dtype != "auto":
        return DTYPES[options.dtype]
    return next(p.dtype for p in base.parameters() if p.is_floating_point())


def _replayed(options: TrainOptions) -> list[Labelled]:
    """Old structures, drawn with the seed."""
    if not options.replay:
        return []
    from selectron.structures import Pool

    with Pool.open(options.replay) as pool:
        count = min(options.replay_count, len(pool))
        chosen = np.sort(np.random.default_rng(options.seed).choice(len(pool), count, replace=False))
        return labelled([pool[int(i)] for i in chosen], what="replay")


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


def _settings(
    options: TrainOptions, dtype: torch.dtype, potential: MacePotential, references_eV: np.ndarray, n_train: int
) -> dict[str, Any]:
    """What the runner reads; mace-torch drops the last batch where it is not full, so the batch size is made to fit."""
    steps = math.ceil(n_train / options.batch_size)
    batch_size = n_train // steps
    references = dict(zip(potential.atomic_numbers, references_eV.tolist(), strict=True))
    arguments = [
        "--name=model",
        "--work_dir=.",
        "--foundation_model=start.model",
        f"--foundation_head={potential.head}",
        "--foundation_model_elements=True",
        "--multiheads_finetuning=False",
        f"--E0s={references}",
        "--train_file=train.xyz",
        "--valid_file=valid.xyz",
        f"--batch_size={batch_size}",
        f"--valid_batch_size={options.valid_batch_size}",
        f"--max_num_epochs={options.epochs}",
        f"--lr={options.learning_rate}",
        f"--energy_weight={options.energy_weight}",
        f"--forces_weight={options.forces_weight}",
        f"--weight_decay={options.weight_decay}",
        f"--clip_grad={options.clip_grad}",
        f"--seed={options.seed}",
        f"--device={options.device.partition(':')[0]}",
        f"--default_dtype={str(dtype).removeprefix('torch.')}",
        "--patience=1000000000",
        "--amsgrad",
        "--save_cpu",
        "--plot=False",
        "--num_workers=0",
    ]
    if options.method == "lora":
        arguments += ["--lora=True", f"--lora_rank={options.rank}", f"--lora_alpha={options.alpha}"]
    if options.ema is not None:
        arguments += ["--ema", f"--ema_decay={options.ema}"]
    if options.stage_two_start is not None:
        arguments += [
            "--stage_two",
            f"--start_stage_two={options.stage_two_start}",
            f"--stage_two_lr={options.stage_two_learning_rate}",
            f"--stage_two_energy_weight={options.stage_two_energy_weight}",
            f"--stage_two_forces_weight={options.stage_two_forces_weight}",
        ]
    return {
        "arguments": [*arguments, *options.extra],
        "patience": options.patience,
        "last_stage": options.stage_two_start or 0,
        "threads": options.threads,
        "rebuild": False,
    }


def _run(options: TrainOptions, run: Path, on_progress: Callable[[Epoch], None] | None) -> list[Epoch]:
    """Starts the trainer, passes on its epochs, and returns them when it has ended well."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "MKL_NUM_THREADS": str(options.threads)}
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if options.interpreter != sys.executable:  # what they say is about this interpreter, not about that one
        environment = {key: value for key, value in environment.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    if ":" in options.device:
        environment["CUDA_VISIBLE_DEVICES"] = options.device.partition(":")[2]
    history: list[Epoch] = []
    deadline = math.inf if options.time_limit_s is None else time.monotonic() + options.time_limit_s
    with open(run / "log.txt", "wb") as log:
        try:
            process = subprocess.Popen(
                [options.interpreter, str(RUNNER), "settings.json"],
                cwd=run,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
            )
        except OSError as error:
            raise SelectronError(
                f"The interpreter {options.interpreter} that should train cannot be started: {error.strerror}."
            ) from None
        try:
            epochs = EpochReader(run, options.stage_two_start)
            while True:
                ended = process.poll() is not None
                for epoch in epochs.new():
                    history.append(epoch)
                    if on_progress is not None:
                        on_progress(epoch)
                if ended:
                    break
                if time.monotonic() > deadline:
                    raise TrainingFailed(
                        f"The training took longer than {options.time_limit_s:g} s and was stopped after "
                        f"{len(history)} of {options.epochs} epochs; {_kept(run)}"
                    )
                time.sleep(POLL_S)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if process.returncode == 3:
        raise TrainingFailed(f"The training diverged: {_last_lines(run, 1)}; {_kept(run)}")
    if process.returncode != 0 or not (run / "outcome.json").exists():
        how = f"signal {-process.returncode}" if process.returncode < 0 else f"exit code {process.returncode}"
        raise TrainingFailed(
            f"The training ended with {how}; {_kept(run)} Its last lines:\n{_last_lines(run, LOG_LINES)}"
        )
    return history


def _last_lines(run: Path, count: int) -> str:
    lines = (run / "log.txt").read_text(errors="replace").splitlines()
    return "\n".join([line for line in lines if line.strip()][-count:])


def _kept(run: Path) -> str:
    return f"the model that it began with is kept, {run / 'log.txt'} says more."


def _result(run: Path, options: TrainOptions) -> tuple[Path, int]:
    """The model file of the last stage and the epoch it is from."""
    two = options.stage_two_start is not None
    path = run / ("model_stagetwo.model" if two else "model.model")
    if not path.exists():
        raise TrainingFailed(f"mace-torch left no model; {_kept(run)}")
    ends = "_swa.pt" if two else ".pt"
    stages = [p for p in run.glob("checkpoints/*_epoch-*.pt") if p.name.endswith("_swa.pt") == two]
    return path, max((int(p.name.removesuffix(ends).rpartition("_epoch-")[2]) for p in stages), default=-1)


def _checked(draft: Path, before: MacePotential, options: TrainOptions) -> MacePotential:
    """The new model as a potential, after a look at what must not have changed."""
    after = MacePotential(load_mace(draft), name="fine-tuned", dtype=torch.float64, device=options.device)
    if after.atomic_numbers != before.atomic_numbers or after.cutoff_A != before.cutoff_A:
        raise TrainingFailed(
            "mace-torch returned a model with other elements or another cutoff; the old model is kept."
        )
    leftover = [name for name, _ in after.model.named_parameters() if "lora_" in name]
    if leftover:
        raise TrainingFailed("mace-torch did not merge the LoRA corrections into the model; the old model is kept.")
    return after


def _refuse_diverged(before: Errors, after: Errors, options: TrainOptions, run: Path) -> None:
    """Raises TrainingFailed where the new model is not finite, or its loss as an error has grown by the factor."""
    if not after.finite:
        raise TrainingFailed(f"The training diverged: the new model predicts no finite numbers; {_kept(run)}")
    grown = math.sqrt(after.loss(*options.final_weights) / max(before.loss(*options.final_weights), 1e-12))
    if grown > options.divergence_factor:
        raise TrainingFailed(
            f"The training diverged: on the validation set energies went from {before.energy_rmse_meV_atom:.1f} to "
            f"{after.energy_rmse_meV_atom:.1f} meV/atom and forces from {before.force_rmse:.3f} to {after.force_rmse:.3f} eV/Å "
            f"(RMSE); {_kept(run)}"
        )
