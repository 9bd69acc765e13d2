"""``selectron train``: a model fine-tuned on labelled structures."""

from __future__ import annotations

import math
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from selectron.cli import options as o
from selectron.cli.progress import Bar, Lines, progress_for
from selectron.errors import SelectronError
from selectron.training.options import TrainOptions
from selectron.wording import counted

if TYPE_CHECKING:
    from selectron.structures import Pool
    from selectron.training.evaluate import Errors
    from selectron.training.fine_tune import FineTuned
    from selectron.training.progress import Epoch


def register(app: typer.Typer) -> None:
    """Adds the command to ``app``."""
    app.command("train")(train)


def train(
    train: Annotated[
        list[str],
        typer.Option("--train", "-t", help="Labelled structures to learn from; more than once for several files."),
    ],
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            help="What to start from: a mace-torch .model file (a pickle: open only what you trust), 'embedded', or a name "
            "from 'selectron models'.",
        ),
    ],
    valid: Annotated[
        list[str],
        typer.Option("--valid", "-v", help="Labelled structures to judge by.", show_default="a part of --train"),
    ] = [],  # noqa: B006
    output: Annotated[Path, typer.Option("--output", "-o", help="The new model.")] = Path("fine_tuned.model"),
    preset: Annotated[str | None, typer.Option(help="paper-lora: LoRA and schedule of the SKMD paper.")] = None,
    method: Annotated[str | None, typer.Option(help="full or lora.", show_default="full")] = None,
    rank: Annotated[int | None, typer.Option(help="Of LoRA.", show_default="4")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes through the training set.", show_default="40")] = None,
    loss: Annotated[str | None, typer.Option(help="absolute or squares.", show_default="absolute")] = None,
    lr: Annotated[
        float | None, typer.Option("--lr", help="Learning rate at the beginning.", show_default="0.01")
    ] = None,
    energy_weight: Annotated[float | None, typer.Option(help="Of energies per atom.", show_default="100")] = None,
    forces_weight: Annotated[float | None, typer.Option(help="Of forces.", show_default="10")] = None,
    stress_weight: Annotated[
        float | None, typer.Option(help="Of stresses, of structures that have one.", show_default="0")
    ] = None,
    energy_key: o.EnergyKeyOption = None,
    forces_key: o.ForcesKeyOption = None,
    stress_key: o.StressKeyOption = None,
    stage_two_start: Annotated[int | None, typer.Option(help="Epoch of stage two.", show_default="never")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Structures a step.", show_default="10")] = None,
    ema: Annotated[float | None, typer.Option(help="Decay of averaged parameters.", show_default="0.99")] = None,
    no_ema: Annotated[bool, typer.Option("--no-ema", help="The last parameters, not averaged ones.")] = False,
    patience: Annotated[int | None, typer.Option(help="Epochs without a better loss.", show_default="no end")] = None,
    keep: Annotated[
        str | None, typer.Option(help="Which epoch's model is the result: auto, last or best.", show_default="auto")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="given (config_weight, which picks carry, and its kin) or equal.", show_default="given"),
    ] = None,
    validation_fraction: Annotated[float | None, typer.Option(help="Without --valid.", show_default="0.1")] = None,
    replay: Annotated[list[str], typer.Option(help="Old labelled structures to mix in.")] = [],  # noqa: B006
    replay_count: Annotated[int | None, typer.Option(help="How many of them.", show_default="100")] = None,
    references: Annotated[
        str | None,
        typer.Option(help="Atomic reference energies: auto, keep or fit.", show_default="auto"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of shuffling, LoRA, split and replay.")] = 0,
    device: o.DeviceOption = "cpu",
    dtype: Annotated[str, typer.Option(help="auto (that of the model), float32 or float64.")] = "auto",
    head: Annotated[
        str | None, typer.Option(help="Head of a model with several, and of structures that say different ones.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.", show_default="one for a small model")] = None,
    layers: Annotated[
        str | None, typer.Option(help="auto, fast (selectron's) or plain (mace-torch's own).", show_default="auto")
    ] = None,
    time_limit: Annotated[float | None, typer.Option(help="Seconds.", show_default="none")] = None,
    interpreter: Annotated[
        str | None, typer.Option(help="Python with mace-torch that trains.", show_default="this one")
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(help="Where log and results of the training are kept.", show_default="beside the output"),
    ] = None,
    extra: Annotated[
        list[str],
        typer.Option(
            "--extra", help="Argument of mace_run_train, verbatim, but for those that name keys, data or references."
        ),
    ] = [],  # noqa: B006
) -> None:
    """Fine-tune a model on labelled structures; a training that fails leaves an existing output as it is."""
    if no_ema and ema is not None:
        raise SelectronError("--ema and --no-ema exclude each other.")
    settings = _options(
        preset=preset,
        method=method,
        rank=rank,
        epochs=epochs,
        loss=loss,
        learning_rate=lr,
        energy_weight=energy_weight,
        forces_weight=forces_weight,
        stress_weight=stress_weight,
        stage_two_start=stage_two_start,
        batch_size=batch_size,
        ema=ema,
        averaged=not no_ema,
        patience=patience,
        keep=keep,
        weights=weights,
        validation_fraction=validation_fraction,
        replay=replay or None,
        replay_count=replay_count,
        references=references,
        seed=seed,
        device=device,
        dtype=dtype,
        head=head,
        threads=threads,
        layers=layers,
        time_limit_s=time_limit,
        interpreter=interpreter,
        extra=extra or None,
    )
    o.check_outputs([output], [*train, *valid, *replay])

    from selectron.structures import Pool, atomic_output
    from selectron.structures.label_source import LabelKeys
    from selectron.training.fine_tune import fine_tune
    from selectron.training.labels import usable

    work = folder or output.with_name(f"{output.stem}-training")
    console, log = Console(), Console(stderr=True)
    with Pool.open(train) as known, progress_for(log) as progress:
        judged = Pool.open(valid) if valid else None
        progress.start("epochs", settings.epochs)
        result = fine_tune(
            model,
            list(usable(_entries(known), what="training")),
            list(usable(_entries(judged), what="validation")) if judged is not None else None,
            settings,
            work,
            keys=LabelKeys(energy=energy_key, forces=forces_key, stress=stress_key),
            on_progress=_Live(progress, log),
            say=lambda line: console.print(line, soft_wrap=True, highlight=False),
        )
        progress.finish()
    if output.resolve() != result.model_path.resolve():
        with atomic_output(output, "wb") as target, open(result.model_path, "rb") as source:
            shutil.copyfileobj(source, target)
        result.model_path.unlink()
    for line in [*known.warnings, *(judged.warnings if judged is not None else [])]:
        console.print(f"Warning: {line}", soft_wrap=True, highlight=False)
    _summarise(result, console)
    console.print(f"wrote {output}; log and losses are in {work}", soft_wrap=True, highlight=False)


def _options(*, averaged: bool, **given: Any) -> TrainOptions:
    """The options that were given; the preset or the default stands for the rest."""
    chosen = {key: value for key, value in given.items() if value is not None}
    try:
        return TrainOptions(**(chosen if averaged else chosen | {"ema": None}))
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}: " for part in first["loc"][:1])
        raise SelectronError(f"{where}{first['msg'].removeprefix('Value error, ')}.") from None


def _entries(pool: Pool) -> Any:
    return (entry for chunk in pool.chunks(512) for _, entry in chunk)


class _Live:
    """Shows each epoch: a step of the bar on a terminal, a line of losses now and then in a log."""

    def __init__(self, progress: Bar | Lines, log: Console) -> None:
        self._progress, self._log = progress, log
        self._stage = 0

    def __call__(self, epoch: Epoch) -> None:
        if epoch.epoch >= 0:
            self._progress.advance(1)
        if self._stage != epoch.stage or epoch.epoch % 10 == 9 or sys.stderr.isatty():
            began = f"epoch {epoch.epoch + 1}, stage {epoch.stage}: loss {epoch.train_loss:.4g}, "
            self._log.print(
                f"{began if epoch.epoch >= 0 else 'before training: '}validation loss {epoch.valid_loss:.4g}, "
                f"energy {_digits(epoch.energy_rmse_meV_atom, 1)} meV/atom, forces {_digits(1e3 * epoch.force_rmse, 0)} meV/Å",
                highlight=False,
                soft_wrap=True,
            )
        self._stage = epoch.stage


def _digits(value: float, decimals: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{decimals}f}"  # NaN: the validation set has no such labels


def _summarise(result: FineTuned, console: Console) -> None:
    for warning in result.warnings:
        console.print(warning, soft_wrap=True, highlight=False)
    shift = result.references
    rows: list[tuple[str, Errors]] = [("before", result.untouched)]
    if shift is not None and shift.applied:
        rows.append(("with new references", result.before))
    rows.append(("after", result.after))
    table = Table("validation", "energy MAE", "energy RMSE", "total energy RMSE", "force MAE", "force RMSE")
    table.add_row("", "meV/atom", "meV/atom", "eV", "eV/Å", "eV/Å", style="dim")
    for name, errors in rows:
        table.add_row(
            name,
            _digits(errors.energy_mae_meV_atom, 1),
            _digits(errors.energy_rmse_meV_atom, 1),
            _digits(errors.energy_rmse_eV, 3),
            _digits(errors.force_mae, 3),
            _digits(errors.force_rmse, 3),
        )
    console.print(table)
    if not result.improved:
        console.print("Warning: the new model is no better on the validation set than the old one.", highlight=False)
    console.print(
        f"{counted(result.n_train, 'structure')} to learn from, {result.n_valid} to judge by; epoch {result.kept_epoch + 1} "
        f"kept of {max(len(result.history) - 1, 0)}; {result.seconds:.0f} s, {result.core_s:.0f} core seconds",
        soft_wrap=True,
        highlight=False,
    )
