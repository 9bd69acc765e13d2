"""``selectron schema``: every key of a campaign file, for editors and for people."""

from __future__ import annotations

import json

import typer


def register(app: typer.Typer) -> None:
    """Adds the command to ``app``."""
    app.command("schema")(schema)


def schema() -> None:
    """Print the JSON schema of a campaign file: keys, meanings, defaults, ranges."""
    from selectron.config.campaign import CampaignConfig

    found = CampaignConfig.model_json_schema()
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    typer.echo(json.dumps({**head, **found}, indent=2, ensure_ascii=False))
