"""Progress with rate and time left: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

LINE_EVERY_S = 10.0


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if not task.finished_speed and not task.speed else f"{task.finished_speed or task.speed:,.0f}/s")


class Bar:
    """One bar a stage."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("{task.description:>22}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
        )
        self._progress = RichProgress(*columns, console=console)
        self._task = self._progress.add_task("", total=None, visible=False)

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def start(self, label: str, total: int) -> None:
        """A new bar."""
        self._task = self._progress.add_task(label, total=total)

    def advance(self, count: int) -> None:
        """Moves it."""
        self._progress.advance(self._task, count)

    def finish(self) -> None:
        """Leaves it full."""
        self._progress.stop_task(self._task)


class Lines:
    """A line at the end of each stage, and every ten seconds inside a long one.

    The rate is that since the line before: what a cache had ready does not make the rest look quick.
    """

    def __init__(self, write: Callable[[str], object], clock: Callable[[], float] = time.monotonic) -> None:
        self._write, self._clock = write, clock

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def start(self, label: str, total: int) -> None:
        """Remembers when."""
        self._label, self._total, self._done = label, total, 0
        self._began = self._last = self._clock()
        self._done_at_last = 0

    def advance(self, count: int) -> None:
        """Writes a line if the last is long ago."""
        self._done += count
        now = self._clock()
        if now - self._last >= LINE_EVERY_S and self._done < self._total:
            rate = (self._done - self._done_at_last) / (now - self._last)
            self._last, self._done_at_last = now, self._done
            left = _duration((self._total - self._done) / rate) if rate else "unknown time"
            self._write(f"{self._label}: {self._done}/{self._total}, {rate:.1f}/s, {left} left")

    def finish(self) -> None:
        """Writes what the stage took."""
        seconds = self._clock() - self._began
        self._write(f"{self._label}: {self._done}/{self._total} done in {_duration(seconds)}")


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def progress_for(console: Console) -> Bar | Lines:
    """A bar where ``console`` is a terminal, lines elsewhere."""
    return Bar(console) if console.is_terminal else Lines(lambda line: console.print(line, highlight=False))
