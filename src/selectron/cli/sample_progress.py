"""Progress of a sampling run: a live line on a terminal, plain lines in a log."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from selectron.cli.progress import LINE_EVERY_S

if TYPE_CHECKING:
    from selectron.sampling.frames import Progress

STAGES = {"ensemble": "initial ensemble", "pilot": "pilot", "sampling": "sampling"}


class Pace:
    """Steps a second of the stage that is going on, not counting what a checkpoint had."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._stage, self._began, self._first = "", clock(), 0
        self.steps_per_s = 0.0

    def begin(self, stage: str, step: int) -> None:
        """A stage that begins after ``step`` steps."""
        self._stage, self._began, self._first = stage, self._clock(), step

    def at(self, progress: Progress) -> float:
        """The rate so far."""
        if progress.stage != self._stage:
            # the first report of a stage comes with steps done already; they are few
            self.begin(progress.stage, progress.step)
        seconds = self._clock() - self._began
        if seconds > 0.0 and progress.step > self._first:
            self.steps_per_s = (progress.step - self._first) / seconds
        return self.steps_per_s


class SampleBar:
    """A bar a stage, with what the sampler sees at present."""

    def __init__(self, console: Console) -> None:
        self.pace = Pace()
        self._progress = RichProgress(
            TextColumn("{task.description:>16}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[sees]}"),
            console=console,
        )
        self._tasks: dict[str, int] = {}

    def __enter__(self) -> SampleBar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, progress: Progress) -> None:
        """Shows it."""
        rate = self.pace.at(progress)
        if progress.stage not in self._tasks:
            self._tasks[progress.stage] = self._progress.add_task(STAGES[progress.stage], total=None, rate="", sees="")
        self._progress.update(
            self._tasks[progress.stage],  # type: ignore[arg-type]  # rich's TaskID is a number
            completed=progress.step,
            total=progress.steps,
            rate=f"{rate:,.0f}/s" if rate else "",
            sees=seen(progress),
        )


class SampleLines:
    """A line every ten seconds, and one at the end of each stage."""

    def __init__(self, write: Callable[[str], object], clock: Callable[[], float] = time.monotonic) -> None:
        self._write, self._clock = write, clock
        self.pace = Pace(clock)
        self._last = clock()

    def __enter__(self) -> SampleLines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, progress: Progress) -> None:
        """Writes a line if the last is long ago, or the stage is over."""
        rate, now = self.pace.at(progress), self._clock()
        over = bool(progress.finished) or (progress.stage != "sampling" and progress.step == progress.steps)
        if now - self._last < LINE_EVERY_S and not over:
            return
        self._last = now
        of = f"/{progress.steps}" if progress.steps is not None else ""
        parts = [f"{STAGES[progress.stage]}: step {progress.step}{of}"]
        parts += [f"{rate:.1f} steps/s"] if rate else []
        parts += [seen(progress)] if seen(progress) else []
        self._write(", ".join(parts))


def seen(progress: Progress) -> str:
    """What the sampler sees: temperature, energy, norm of the bias, acquired so far, broken so far."""
    if progress.stage != "sampling":
        return ""
    shown = [
        f"{value:{form}} {unit}"
        for value, form, unit in (
            (progress.temperature_K, ".0f", "K"),
            (progress.energy_eV, ".4f", "eV"),
        )
        if not math.isnan(value)
    ]
    if progress.bias_norm > 0.0:
        shown.append(f"bias {progress.bias_norm:.3g} eV/Å")
    shown.append(f"{progress.tally.acquired} acquired")
    if progress.tally.ended:
        shown.append(f"{len(progress.tally.ended)} broken")
    return ", ".join(shown)


def sample_progress_for(console: Console) -> SampleBar | SampleLines:
    """A bar where ``console`` is a terminal, lines elsewhere."""
    if console.is_terminal:
        return SampleBar(console)
    return SampleLines(lambda line: console.print(line, highlight=False, soft_wrap=True))
