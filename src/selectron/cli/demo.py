"""``selectron demo``: a selection on the embedded model and pool."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from selectron.cli.select import select


def register(app: typer.Typer) -> None:
    """Adds the command to ``app``."""
    app.command("demo")(demo)


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results; made if missing.")] = Path(
        "demo-output"
    ),
    budget: Annotated[int, typer.Option("--budget", "-n", help="How many structures to pick.")] = 20,
) -> None:
    """Pick the most informative structures of the embedded reactive pool with the embedded model."""
    output.mkdir(parents=True, exist_ok=True)
    picks = output / "picks.extxyz"
    typer.echo(
        f"selectron select embedded --train embedded-train --model embedded --budget {budget} --output {picks}\n"
    )
    select(
        pool=["embedded"],
        train=["embedded-train"],
        model=["embedded"],
        budget=budget,
        output=picks,
        scores=output / "scores.csv",
        no_cache=True,
    )
