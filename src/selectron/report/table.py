"""The picks as a table for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from rich.table import Table

LONG_NAME = 40
"""Characters of a file's name that are shown at most."""


@dataclass(frozen=True)
class PickRow:
    """One picked structure.

    | field    | meaning                                                                                        |
    |----------|------------------------------------------------------------------------------------------------|
    | rank     | order of the pick, as written to the picks file                                                |
    | source   | file it comes from; the table shows the file's name without its folders                        |
    | index    | its place in that file                                                                         |
    | formula  | chemical formula                                                                               |
    | score    | what the selector ranked it by; NaN or None where the selector has none                        |
    | variance | posterior variance, feature units squared; NaN or None where none was computed                 |
    | distance | feature distance to the nearest training structure; None hides the column when all are None    |
    """

    rank: int
    source: str
    index: int
    formula: str
    score: float | None = None
    variance: float | None = None
    distance: float | None = None


def _number(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.4g}"


def picks_table(rows: Sequence[PickRow], max_rows: int = 20) -> Table:
    """A table of the first ``max_rows`` picks in the order given; its caption counts the others."""
    with_distance = any(row.distance is not None for row in rows)
    hidden = len(rows) - max_rows
    table = Table(caption=f"… {hidden} more" if hidden > 0 else None, caption_justify="left")
    table.add_column("rank", justify="right", no_wrap=True)
    # the one column that gives way on a narrow terminal
    table.add_column("source", overflow="ellipsis", max_width=LONG_NAME)
    table.add_column("index", justify="right", no_wrap=True)
    table.add_column("formula", overflow="ellipsis", no_wrap=True)
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("variance", justify="right", no_wrap=True)
    if with_distance:
        table.add_column("distance\nto training\nset", justify="right", no_wrap=True)
    for row in rows[:max_rows]:
        cells = [str(row.rank), PurePath(row.source).name, str(row.index), row.formula]
        cells += [_number(row.score), _number(row.variance)]
        table.add_row(*cells, *([_number(row.distance)] if with_distance else []))
    return table
