"""``selectron report``: a campaign as one HTML page."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from selectron.errors import SelectronError

PAGE = "selectron.report.campaign_page"


def register(app: typer.Typer) -> None:
    """Adds the command to ``app``."""
    app.command("report")(report)


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the campaign.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The page.", show_default="report.html in the folder")
    ] = None,
) -> None:
    """Write the report of a campaign, as far as it has come: one HTML file that needs no network."""
    from selectron.campaign.history import read_campaign

    record = read_campaign(folder)
    path = output or folder / "report.html"
    try:
        write = import_module(PAGE).write_campaign_report
    except ModuleNotFoundError as error:
        if error.name != PAGE:
            raise
        raise SelectronError(
            "This version of selectron cannot write reports; selectron status shows the numbers."
        ) from None
    write(record, path)
    typer.echo(f"wrote {path}")
