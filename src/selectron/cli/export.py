"""``selectron export``: what a campaign leaves for mace-torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Adds the command to ``app``."""
    app.command("export")(export)


def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the campaign.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the files; made if missing.")],
    arm: Annotated[str, typer.Option(help="selected, or random for the twin.")] = "selected",
) -> None:
    """Write training set, test set and model for mace-torch, with the licence note of the starting model."""
    from selectron.campaign.export import export_campaign
    from selectron.campaign.history import read_campaign

    files = export_campaign(read_campaign(folder), output, arm=arm)
    typer.echo("wrote " + ", ".join(str(path) for path in files))
