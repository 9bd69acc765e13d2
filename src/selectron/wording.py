"""Numbers with their nouns, as sentences for people have them."""

from __future__ import annotations

from collections.abc import Iterable


def counted(count: int, one: str, many: str | None = None) -> str:
    """``count`` with its noun: "1 label", "2 labels", "3,000 trajectories"; ``many`` is ``one`` with an s where it is None."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def listed(names: Iterable[str]) -> str:
    """``names`` as a sentence has them: "a", "a and b", "a, b and c"."""
    *first, last = list(names) or [""]
    return f"{', '.join(first)} and {last}" if first else last
