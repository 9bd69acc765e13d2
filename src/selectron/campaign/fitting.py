"""Fine-tuning on the labels of an arm, and errors of what comes out."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ase.data import chemical_symbols

from selectron.campaign.artifacts import check_room
from selectron.campaign.context import Campaign
from selectron.campaign.inputs import Inputs
from selectron.campaign.measuring import Predictions, finite, predict, summary
from selectron.campaign.state import Stage
from selectron.training.evaluate import Errors
from selectron.training.fine_tune import FineTuned, TrainingFailed
from selectron.training.labels import labelled
from selectron.training.options import TrainOptions
from selectron.training.references import ReferenceShift


def train(campaign: Campaign, inputs: Inputs, *, arm: str, round: int, start: str, sets: Sequence[str]) -> Stage:
    """Fine-tunes the model ``start`` on the artifacts ``sets``, and on the initial training set where that is wanted.

    A training that fails is an output too: ``model`` is None and ``failure`` the reason.
    """
    config = campaign.config
    initial = [inputs.train] if inputs.train is not None and config.train is not None and config.train.fit else []
    head = campaign.head(start)
    options = config.trainer.model_copy(
        update={"seed": config.trainer.seed + config.seed, "head": config.trainer.head or head}
    )
    asked = {
        "model": start,
        "train": [*initial, *sets],
        "validation": inputs.validation,
        "options": options.model_dump(mode="json"),
    }
    campaign.reporter.stage("train", arm, round)
    return campaign.state.stage(
        "train", asked, lambda: _train(campaign, asked, options, f"{arm}-{round}"), arm=arm, round=round
    )


def _train(campaign: Campaign, asked: dict[str, Any], options: TrainOptions, name: str) -> dict[str, Any]:
    structures = campaign.read(asked["train"])
    validation = campaign.read([asked["validation"]]) if asked["validation"] else None
    folder = _folder_for(campaign, name)
    campaign.reporter.start("training, epochs", options.epochs)
    try:
        result: FineTuned = campaign.fine_tune(
            campaign.artifacts.path(asked["model"]),
            structures,
            validation,
            options,
            folder,
            on_progress=lambda epoch: campaign.reporter.advance(1) if epoch.epoch >= 0 else None,
        )
    except TrainingFailed as failure:
        check_room(campaign.folder)  # a trainer that could not write is no verdict on the model
        log = folder / "run" / "log.txt"
        kept = campaign.artifacts.put_file(log) if log.is_file() else None
        return {"model": None, "failure": str(failure), "log": kept, "structures": len(structures), "history": []}
    finally:
        campaign.reporter.finish()
    output = {
        "model": campaign.artifacts.put_file(result.model_path),
        "failure": None,
        "log": None,
        "structures": result.n_train,
        "validation_structures": result.n_valid,
        "history": [finite(epoch._asdict()) for epoch in result.history],
        "best_epoch": result.best_epoch,
        "references": _references(result.references),
        "untouched": _totals(result.untouched),
        "before": _totals(result.before),
        "after": _totals(result.after),
        "warnings": result.warnings,
    }
    shutil.rmtree(folder, ignore_errors=True)
    return output


def _folder_for(campaign: Campaign, name: str) -> Path:
    """An empty folder; what trainings that were interrupted left is removed."""
    parent = campaign.scratch / "training"
    parent.mkdir(parents=True, exist_ok=True)
    for other in parent.iterdir():
        shutil.rmtree(other, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=parent))


def _totals(errors: Errors) -> dict[str, Any]:
    return finite(summary(errors))


def _references(shift: ReferenceShift | None) -> dict[str, Any] | None:
    if shift is None:
        return None
    entries = list(
        zip(shift.numbers.tolist(), shift.present, shift.shift_eV.tolist(), shift.error_eV.tolist(), strict=True)
    )
    shifts = {chemical_symbols[number]: value for number, here, value, _ in entries if here}
    errors = {chemical_symbols[number]: error for number, here, _, error in entries if here}
    return {
        "shift_eV": finite(shifts),
        "error_eV": finite(errors),
        "significant": bool(shift.significant),
        "applied": bool(shift.applied),
        "note": shift.note,
    }


def measure(campaign: Campaign, inputs: Inputs, *, arm: str, round: int, model: str) -> Stage:
    """Errors of ``model`` on the test set and, where there is one, the validation set, with the predictions as artifacts."""
    sets = {"test": inputs.test, "validation": inputs.validation}
    asked = {"model": model, "head": campaign.head(model), "device": campaign.config.model.device, **sets}
    campaign.reporter.stage("measure", arm, round)
    return campaign.state.stage("measure", asked, lambda: _measure(campaign, asked, sets), arm=arm, round=round)


def _measure(campaign: Campaign, asked: dict[str, Any], sets: dict[str, str | None]) -> dict[str, Any]:
    potential = campaign.potential(asked["model"], dtype="float64")
    output: dict[str, Any] = {}
    for name, artifact in sets.items():
        if artifact is None:
            output[name] = None
            continue
        predictions: Predictions = predict(potential, labelled(campaign.read([artifact]), what=name))
        kept = campaign.artifacts.put(predictions.write, ".npz")
        output[name] = {"errors": finite(summary(predictions.errors())), "predictions": kept}
    return output
