"""Several trainings at once, told apart in what they cost."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ase.data import chemical_symbols

from selectron.campaign.artifacts import check_room
from selectron.campaign.context import Campaign
from selectron.campaign.measuring import finite, summary
from selectron.campaign.state import core_seconds
from selectron.training.evaluate import Errors
from selectron.training.mace_process import POLL_S
from selectron.training.options import TrainOptions
from selectron.training.outcome import FineTuned, TrainingFailed
from selectron.training.references import ReferenceShift


@dataclass(frozen=True, eq=False)
class Job:
    """A training stage: whose, its ``key``, the inputs ``asked``, and how."""

    arm: str
    round: int
    key: str
    asked: dict[str, Any]
    options: TrainOptions


@dataclass(eq=False)
class _Running:
    """A training: when it was started, in seconds since 1970 and on the process's clock, and what it has cost so far."""

    steps: Generator[None, None, dict[str, Any]]
    started: float = field(default_factory=time.time)
    clock_s: float = field(default_factory=time.perf_counter)
    core_s: float = 0.0
    output: dict[str, Any] | None = None
    error: BaseException | None = None


class Trainings:
    """``jobs`` in their order, up to ``at_once`` of them at the same time; closing ends those that are not done.

    All of selectron's own work is done in turns in this thread; what runs at the same time are the trainers' processes.
    """

    def __init__(self, campaign: Campaign, jobs: Sequence[Job], at_once: int) -> None:
        self._campaign, self._at_once = campaign, at_once
        self._waiting = list(jobs)
        self._running: dict[Job, _Running] = {}
        self._total = sum(job.options.epochs for job in jobs)
        self._watched = False

    def result(self, job: Job) -> dict[str, Any]:
        """The output of the stage ``job``; raises what its training raised."""
        if not self._watched:
            self._watched = True
            self._campaign.reporter.start("training, epochs", self._total)
        while True:
            one = self._running.get(job)
            if one is not None and one.error is not None:
                raise one.error
            if one is not None and one.output is not None:
                return one.output
            if not self._advance():
                time.sleep(POLL_S)

    def _advance(self) -> bool:
        """Starts what may start and gives each training a turn; whether one of them ended."""
        live = [one for one in self._running.values() if one.output is None and one.error is None]
        while self._waiting and len(live) < self._at_once:
            job = self._waiting.pop(0)
            live.append(_Running(_steps(self._campaign, job)))
            self._running[job] = live[-1]
        ended = False
        for one in live:
            before = core_seconds()  # a process counts when it is waited for, which is in its own turn
            try:
                next(one.steps)
            except StopIteration as end:
                one.output, ended = end.value, True
            except Exception as error:
                one.error, ended = error, True
            one.core_s += core_seconds() - before
            if one.output is not None:
                wall_s = time.perf_counter() - one.clock_s
                one.output |= {"core_s": one.core_s, "wall_s": wall_s, "started": one.started}
        return ended

    def close(self) -> None:
        """Ends what is not done."""
        for one in self._running.values():
            one.steps.close()
        if self._watched:
            self._campaign.reporter.finish()


def _steps(campaign: Campaign, job: Job) -> Generator[None, None, dict[str, Any]]:
    structures = campaign.read(job.asked["train"])
    validation = campaign.read([job.asked["validation"]]) if job.asked["validation"] else None
    parent = campaign.scratch / "training"
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{job.arm}-{job.round}-", dir=parent))
    try:
        result: FineTuned = yield from campaign.training_steps(
            campaign.artifacts.whole(job.asked["model"]),
            structures,
            validation,
            job.options,
            folder,
            on_progress=lambda epoch: campaign.reporter.advance(1) if epoch.epoch >= 0 else None,
        )
    except TrainingFailed as failure:
        check_room(campaign.folder)  # a trainer that could not write is no verdict on the model
        log = folder / "run" / "log.txt"
        kept, reason = None, str(failure)
        if log.is_file():
            kept = campaign.artifacts.put_file(log)
            # the trainer names its folder, which is gone with the next training; the copy stays
            reason = reason.replace(str(log), campaign.artifacts.relative(kept))
        return {"model": None, "failure": reason, "log": kept, "structures": len(structures), "history": []}
    output = {
        "model": campaign.artifacts.put_file(result.model_path),
        "failure": None,
        "log": None,
        "structures": result.n_train,
        "validation_structures": result.n_valid,
        "history": [finite(epoch._asdict()) for epoch in result.history],
        "kept_epoch": result.kept_epoch,
        "references": _references(result.references),
        "untouched": _totals(result.untouched),
        "before": _totals(result.before),
        "after": _totals(result.after),
        "warnings": result.warnings,
    }
    shutil.rmtree(folder, ignore_errors=True)
    return output


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
