"""``selectron validate``: whether a campaign can run, before anything is spent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def register(app: typer.Typer) -> None:
    """Adds the command to ``app``."""
    app.command("validate")(validate)


def validate(
    config: Annotated[Path, typer.Argument(metavar="CAMPAIGN.YAML", help="See 'selectron template campaign'.")],
) -> None:
    """Check a campaign file: keys and values, files, elements, labels, model, oracle, trainer."""
    from selectron.campaign.check import check_campaign
    from selectron.config.campaign import CampaignConfig
    from selectron.config.load import checked
    from selectron.config.yaml_document import read_yaml

    document = read_yaml(config)
    findings = check_campaign(document, checked(document, CampaignConfig))
    findings.raise_mistakes()
    console = Console()
    for note in findings.notes:
        console.print(f"Note: {note}", soft_wrap=True, highlight=False)
    console.print(f"{config} can be run: selectron run {config}", soft_wrap=True, highlight=False)
