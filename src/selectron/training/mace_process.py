"""The process in which mace-torch trains: its settings, its epochs while it runs, how it ended."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from selectron.errors import SelectronError
from selectron.potentials.mace import MacePotential
from selectron.training.options import TrainOptions
from selectron.training.outcome import TrainingFailed
from selectron.training.progress import Epoch, EpochReader
from selectron.waiting import wait_briefly

RUNNER = Path(__file__).with_name("mace_runner.py")
POLL_S = 0.2
LOG_LINES = 15
NOT_FINITE = 3


def settings_of(
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
    arguments += loss_arguments(options)
    if options.method == "lora":
        arguments += ["--lora=True", f"--lora_rank={options.rank}", f"--lora_alpha={options.alpha}"]
    if options.stage_two_start is not None:
        arguments += [
            "--stage_two",
            f"--start_stage_two={options.stage_two_start}",
            f"--stage_two_lr={options.stage_two_learning_rate}",
            f"--stage_two_energy_weight={options.stage_two_energy_weight}",
            f"--stage_two_forces_weight={options.stage_two_forces_weight}",
            f"--stage_two_stress_weight={options.stress_weight}",
        ]
    return {
        "arguments": [*arguments, *options.extra],
        "patience": options.patience,
        "keep_last": options.keeps_last,
        "last_stage": options.stage_two_start or 0,
        "threads": options.threads,
        "rebuild": False,
        "absolute_stress": bool(options.stress_weight) and options.loss == "absolute",
    }


def loss_arguments(options: TrainOptions) -> list[str]:
    """Loss, learning rate and moving average of the first stage, as arguments of mace_run_train."""
    arguments = [
        f"--energy_weight={options.energy_weight}",
        f"--forces_weight={options.forces_weight}",
        f"--stress_weight={options.stress_weight}",
        f"--lr={options.learning_rate}",
    ]
    if options.stress_weight:
        arguments += ["--loss=stress"]
    elif options.loss == "absolute":
        arguments += ["--loss=l1l2energyforces"]
    if options.rate_factor is not None:
        arguments += ["--scheduler=ExponentialLR", f"--lr_scheduler_gamma={options.rate_factor}"]
    if options.ema is not None:
        arguments += ["--ema", f"--ema_decay={options.ema}"]
    return arguments


def run_trainer(
    options: TrainOptions, run: Path, on_progress: Callable[[Epoch], None] | None
) -> Generator[None, None, list[Epoch]]:
    """Starts the trainer, passes on its epochs, and returns them when it has ended well; yields while it has to wait.

    The trainer is killed when the generator is closed.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "MKL_NUM_THREADS": str(options.threads)}
    wait_briefly(environment)
    environment.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it products on a GPU differ from run to run
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
                        f"{len(history)} of {options.epochs} epochs; {kept(run)}"
                    )
                yield
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if process.returncode == NOT_FINITE:
        raise TrainingFailed(f"The training diverged: {_last_lines(run, 1)}; {kept(run)}")
    if process.returncode != 0 or not (run / "outcome.json").exists():
        how = f"signal {-process.returncode}" if process.returncode < 0 else f"exit code {process.returncode}"
        raise TrainingFailed(
            f"The training ended with {how}; {kept(run)} Its last lines:\n{_last_lines(run, LOG_LINES)}"
        )
    return history


def _last_lines(run: Path, count: int) -> str:
    lines = (run / "log.txt").read_text(errors="replace").splitlines()
    return "\n".join([line for line in lines if line.strip()][-count:])


def kept(run: Path) -> str:
    """How a message about a failed training ends."""
    return f"the model that it began with is kept, {run / 'log.txt'} says more."


def trained_model(run: Path, options: TrainOptions) -> tuple[Path, int]:
    """The model file of the last stage and the epoch that it is of."""
    two = options.stage_two_start is not None
    path = run / ("model_stagetwo.model" if two else "model.model")
    if not path.exists():
        raise TrainingFailed(f"mace-torch left no model; {kept(run)}")
    ends = "_swa.pt" if two else ".pt"
    stages = [p for p in run.glob("checkpoints/*_epoch-*.pt") if p.name.endswith("_swa.pt") == two]
    return path, max((int(p.name.removesuffix(ends).rpartition("_epoch-")[2]) for p in stages), default=-1)
