"""``selectron resume``: go on with a campaign that was interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from selectron.cli.run import go_on


def register(app: typer.Typer) -> None:
    """Adds the command to ``app``."""
    app.command("resume")(resume)


def resume(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the campaign.")],
) -> None:
    """Go on with a campaign where it was interrupted; nothing that was finished is done again."""
    go_on(folder, Console())
