"""``selectron template``: a complete file to start from."""

from __future__ import annotations

from typing import Annotated

import typer

from selectron.config.templates import TEMPLATES
from selectron.errors import SelectronError


def register(app: typer.Typer) -> None:
    """Adds the command to ``app``."""
    app.command("template")(template)


def template(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND", help="; ".join(f"{name}: {what}" for name, (what, _) in TEMPLATES.items()) + "."
        ),
    ] = "campaign",
) -> None:
    """Print a complete campaign file."""
    if kind not in TEMPLATES:
        raise SelectronError(f"There is no template {kind!r}; there are {', '.join(TEMPLATES)}.")
    typer.echo(TEMPLATES[kind][1], nl=False)
