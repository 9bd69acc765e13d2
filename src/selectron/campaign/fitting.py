"""Fine-tuning on the labels of the arms, and errors of what comes out."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

from selectron.campaign.context import Campaign
from selectron.campaign.inputs import Inputs
from selectron.campaign.measuring import Predictions, finite, predict, summary
from selectron.campaign.state import Stage, stage_key
from selectron.campaign.trainings import Job, Trainings
from selectron.cores import usable_cores
from selectron.potentials.mace_files import load_mace
from selectron.training.fine_tune import training_threads
from selectron.training.labels import labelled


@dataclass(frozen=True)
class Wanted:
    """A training that an arm wants in a round: of the model ``start`` on the artifacts ``sets``."""

    arm: str
    start: str
    sets: tuple[str, ...]


def train(campaign: Campaign, inputs: Inputs, round: int, wanted: Sequence[Wanted]) -> list[Stage]:
    """Fine-tunes for every arm that wants it, on the initial training set too where that is asked for.

    On a CPU that has cores for several, they run at the same time. A training that fails is an output too: ``model`` is None
    and ``failure`` the reason.
    """
    jobs = [_job(campaign, inputs, round, one) for one in wanted]
    todo = [job for job in jobs if campaign.state.find(job.key) is None]
    _clear(campaign)
    campaign.reporter.stage("train", " and ".join(job.arm for job in todo or jobs), round)
    with closing(Trainings(campaign, todo, at_once=_at_once(campaign, todo))) as trainings:
        stages = []
        for job in jobs:
            run = partial(trainings.result, job)
            stages.append(campaign.state.stage("train", job.asked, run, arm=job.arm, round=round))
        return stages


def _job(campaign: Campaign, inputs: Inputs, round: int, wanted: Wanted) -> Job:
    config = campaign.config
    initial = [inputs.train] if inputs.train is not None and config.train is not None and config.train.fit else []
    head = config.trainer.head or campaign.head(wanted.start)
    options = config.trainer.model_copy(update={"seed": config.trainer.seed + config.seed, "head": head})
    asked = {
        "model": wanted.start,
        "train": [*initial, *wanted.sets],
        "validation": inputs.validation,
        "options": options.model_dump(mode="json"),
    }
    return Job(wanted.arm, round, stage_key("train", asked, wanted.arm, round), asked, options)


def _clear(campaign: Campaign) -> None:
    """Removes what trainings that were interrupted left."""
    shutil.rmtree(campaign.scratch / "training", ignore_errors=True)


def _at_once(campaign: Campaign, jobs: Sequence[Job]) -> int:
    """How many of ``jobs`` may run at the same time; one on a GPU, whose memory they would have to share."""
    if len(jobs) < 2 or any(job.options.device != "cpu" or job.options.kind != "mace" for job in jobs):
        return 1
    models = {job.asked["model"]: job.options for job in jobs}
    threads = max(training_threads(load_mace(campaign.artifacts.whole(name)), how) for name, how in models.items())
    return max(1, usable_cores() // threads)


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
