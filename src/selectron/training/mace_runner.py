"""Runs mace-torch's ``mace_run_train`` on one settings file, without what selectron does not need of it.

Executed by path with whatever interpreter has mace-torch; selectron need not be there. The training itself (data,
loss, optimiser, schedule, steps, checkpoints) is mace-torch's. What differs from ``mace_run_train``:

* energies and forces come from selectron's layers where these cover the model and the interpreter has the same selectron;
* the model to fine-tune is taken as it is, where mace-torch would build it anew and copy weights over;
* no error tables and no TorchScript copy at the end;
* with ``keep_last`` the result is the last epoch's model, unless its validation loss is far above the lowest: which of the last
  epochs has the lowest loss on a small validation set is chance, and an early one is often a worse model;
* weights of structures and of their forces count in the force term of the absolute loss too, where mace-torch leaves them out;
* with ``absolute_stress`` the absolute loss has a stress term, which mace-torch's has not;
* ``patience`` works (in mace-torch 0.3.16 it has no effect in a single process, and a loss that is NaN counts as better);
* a loss that is not finite ends the training at once;
* it ends when the process that started it has gone.

Usage: ``python mace_runner.py settings.json`` with ``{"arguments": [...], "patience": n | null, "keep_last": true | false,
"last_stage": epoch, "rebuild": false, "threads": n, "weighted": true | false, "absolute_stress": true | false,
"layers": "auto" | "fast" | "plain", "selectron": version}``; writes
``outcome.json`` at the very end, and ``refused.txt`` where fast layers are asked for and cannot be had.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
import warnings
from contextlib import nullcontext
from importlib import import_module
from typing import Any

NOT_FINITE = 3
REFUSED = 4
TOLERANCE = 1.1
"""The last epoch's model is kept while its validation loss is below so many times the lowest."""


class _Enough(Exception):
    """No better validation loss for long enough."""


def _end_with_parent() -> None:
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _fast_forward(model: Any, data: Any, version: str) -> tuple[Any, str]:
    """The model's function on selectron's layers, or None and the reason."""
    try:
        found = import_module("selectron").__version__
    except ImportError:
        return None, "this interpreter has no selectron"
    if found != version:
        return None, f"this interpreter has selectron {found}, not {version}"
    try:
        layers: Any = import_module("selectron.training.fast_layers")
        forward = layers.fast_forward(model)
        layers.check_equal(model, forward, data)
    except Exception as error:
        return None, str(error) or type(error).__name__
    return forward, ""


def _weigh_forces() -> None:
    """Weights of structures and forces in the mean length of an atom's force error, as in all other terms of mace-torch."""
    losses: Any = import_module("mace.modules.loss")

    def mean_normed_error_forces(ref: Any, pred: Any, ddp: bool | None = None) -> Any:
        lengths = (ref["forces"] - pred["forces"]).norm(dim=-1)
        weights = (ref.weight * ref.forces_weight).repeat_interleave(ref.ptr[1:] - ref.ptr[:-1])
        return losses.reduce_loss(weights * lengths, ddp)

    losses.mean_normed_error_forces = mean_normed_error_forces


def _absolute_with_stress(args: Any) -> Any:
    """mace-torch's loss of |ΔE|/N and lengths of force errors, and the mean |Δσ| of stress components beside."""
    losses: Any = import_module("mace.modules.loss")

    class AbsoluteStressLoss(losses.WeightedEnergyForcesL1L2Loss):
        def forward(self, ref: Any, pred: Any, ddp: bool | None = None) -> Any:
            weights = (ref.weight * ref.stress_weight).view(-1, 1, 1)
            stress = losses.reduce_loss(weights * (ref["stress"] - pred["stress"]).abs(), ddp)
            return super().forward(ref, pred, ddp) + args.stress_weight * stress

    return AbsoluteStressLoss(energy_weight=args.energy_weight, forces_weight=args.forces_weight)


def main(path: str) -> None:
    """Trains as the settings file ``path`` says, in the working folder."""
    _end_with_parent()
    here = os.path.dirname(os.path.abspath(__file__))  # whose modules must not shadow packages of the same names
    sys.path[:] = [place for place in sys.path if os.path.abspath(place or ".") != here]
    warnings.filterwarnings("ignore")
    with open(path, encoding="utf-8") as stream:
        settings = json.load(stream)
    import torch

    trainer: Any = import_module("mace.cli.run_train")
    building: Any = import_module("mace.tools.model_script_utils")

    torch.set_num_threads(settings["threads"])
    torch.use_deterministic_algorithms(True, warn_only=True)  # scatter sums in one order, however many threads
    deterministic: Any = import_module("torch.utils.deterministic")
    deterministic.fill_uninitialized_memory = False  # nothing reads it; filling costs a seventh of a step

    if settings["weighted"]:
        _weigh_forces()
    if settings["absolute_stress"]:
        its_loss = trainer.get_loss_fn
        trainer.get_loss_fn = lambda args, *rest: (
            _absolute_with_stress(args) if args.loss == "stress" else its_loss(args, *rest)
        )

    class Logger(trainer.tools.MetricsLogger):
        """mace-torch's results file, with the CPU time so far; also where a training is ended early."""

        lowest: float = math.inf
        epoch = -1
        loss: float = math.inf
        waited = 0

        def log(self, d: dict[str, Any]) -> None:
            super().log({**d, "core_s": time.process_time()})
            loss = float(d["loss"])
            if not math.isfinite(loss):
                print(f"the loss is {loss} in epoch {d['epoch']}", file=sys.stderr, flush=True)
                sys.exit(NOT_FINITE)
            if d["mode"] != "eval" or d["epoch"] is None or d["epoch"] < settings["last_stage"]:
                return
            self.epoch, self.loss = int(d["epoch"]), loss
            self.waited = 0 if loss < self.lowest else self.waited + 1
            self.lowest = min(loss, self.lowest)
            if settings["patience"] is not None and self.waited >= settings["patience"]:
                raise _Enough

    layers = "plain"

    def choose_layers(model: Any, loader: Any, distributed: bool) -> None:
        nonlocal layers
        if settings["layers"] == "plain":
            return
        forward, reason = None, "the training is distributed"
        if not distributed:
            few = loader.collate_fn([loader.dataset[i] for i in range(min(2, len(loader.dataset)))])
            forward, reason = _fast_forward(
                model, few.to(next(model.parameters()).device).to_dict(), settings["selectron"]
            )
        if forward is not None:
            layers, model.forward = "fast", forward
            trainer.logging.info("Layers: selectron's.")
        elif settings["layers"] == "auto":
            trainer.logging.info("Layers: mace-torch's own, since %s.", reason)
        else:
            with open("refused.txt", "w", encoding="utf-8") as stream:
                stream.write(reason)
            sys.exit(REFUSED)

    def keep_last(model: Any, options: dict[str, Any]) -> None:
        logger, average = options["logger"], options.get("ema")
        if not logger.loss < TOLERANCE * logger.lowest:
            trainer.logging.info("The validation loss rose after its lowest; the model of that epoch is kept.")
            return
        with average.average_parameters() if average is not None else nullcontext():
            state = trainer.tools.CheckpointState(model, options["optimizer"], options["lr_scheduler"])
            options["checkpoint_handler"].save(state=state, epochs=logger.epoch)

    def train(*, model: Any, valid_loaders: Any, **options: Any) -> None:
        loader = next(iter(valid_loaders.values()))
        choose_layers(model, loader, options.get("distributed_model") is not None)
        try:
            original_train(model=model, valid_loaders=valid_loaders, **options)
        except _Enough:
            trainer.logging.info("No better validation loss for %d epochs: enough.", settings["patience"])
        finally:
            vars(model).pop("forward", None)  # what is saved is mace-torch's alone
        if settings["keep_last"]:
            keep_last(model, options)

    class NoScript:
        @staticmethod
        def compile(*_: Any, **__: Any) -> None:
            raise RuntimeError("left out")

    original_train, trainer.tools.train = trainer.tools.train, train
    trainer.tools.MetricsLogger = Logger
    trainer.jit = NoScript
    trainer.create_error_table = lambda **_: "left out"

    args = trainer.tools.build_default_arg_parser().parse_args(settings["arguments"])
    if not (args.multiheads_finetuning or settings["rebuild"]):

        def as_it_is(_: Any, model_foundations: Any, *__: Any, default_dtype: Any = None, **___: Any) -> Any:
            return model_foundations.to(default_dtype).requires_grad_(True)

        building._build_model = lambda *_, **__: None
        building.load_foundations_elements = as_it_is
    trainer.run(args)
    with open("outcome.json", "w", encoding="utf-8") as stream:
        json.dump({"core_s": time.process_time(), "layers": layers}, stream)


if __name__ == "__main__":
    main(sys.argv[1])
