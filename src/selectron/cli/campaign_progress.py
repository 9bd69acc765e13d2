"""What a person sees of a running campaign: the part in hand as one bar, what is done as lines."""

from __future__ import annotations

from typing import Self

from rich.console import Console

from selectron.cli.progress import Bar, Lines


class CampaignBar(Bar):
    """One bar at a time, for a campaign has too many parts to keep them all; results stay above it."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._console = console

    def __enter__(self) -> Self:
        super().__enter__()
        return self

    def start(self, label: str, total: int) -> None:
        """The bar of the part before gives way to a new one."""
        self._progress.remove_task(self._task)
        super().start(label, total)

    def finish(self) -> None:
        """The bar goes."""
        self._progress.update(self._task, visible=False)

    def say(self, line: str) -> None:
        """A line above the bar."""
        self._console.print(line, soft_wrap=True, highlight=False)


class CampaignLines(Lines):
    """Lines for a log file."""

    def __init__(self, console: Console) -> None:
        super().__init__(lambda line: console.print(line, soft_wrap=True, highlight=False))
        self._console = console

    def __enter__(self) -> Self:
        return self

    def say(self, line: str) -> None:
        """One line."""
        self._console.print(line, soft_wrap=True, highlight=False)


def watcher_for(console: Console) -> CampaignBar | CampaignLines:
    """A bar where ``console`` is a terminal, lines elsewhere; a context manager."""
    return CampaignBar(console) if console.is_terminal else CampaignLines(console)
