"""What a long run tells whoever watches it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called by the stages of a run, in order: ``start``, any number of ``advance``, ``finish``."""

    def start(self, label: str, total: int) -> None:
        """A stage of ``total`` structures begins."""
        ...

    def advance(self, count: int) -> None:
        """``count`` more structures are done."""
        ...

    def finish(self) -> None:
        """The stage is over."""
        ...


class Silent:
    """Tells nobody."""

    def start(self, label: str, total: int) -> None:
        """Nothing."""

    def advance(self, count: int) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""
