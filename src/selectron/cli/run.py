"""``selectron run``: a campaign, from its YAML file to its end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def register(app: typer.Typer) -> None:
    """Adds the command to ``app``."""
    app.command("run")(run)


def run(
    config: Annotated[Path, typer.Argument(metavar="CAMPAIGN.YAML", help="See 'selectron template campaign'.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder of the campaign.", show_default="named as the file, in this folder"
        ),
    ] = None,
) -> None:
    """Run a campaign: pick, label, fine-tune, measure, repeat. The same command after a kill goes on where it was."""
    from selectron.campaign.check import check_campaign
    from selectron.campaign.run import begin
    from selectron.config.campaign import CampaignConfig
    from selectron.config.load import checked
    from selectron.config.yaml_document import read_yaml

    document = read_yaml(config)
    campaign = checked(document, CampaignConfig)
    folder = output or Path(config.stem)
    findings = check_campaign(document, campaign)
    findings.raise_mistakes()
    console = Console()
    for note in [*findings.notes, *begin(campaign, config.read_text(encoding="utf-8"), folder)]:
        console.print(f"Note: {note}", soft_wrap=True, highlight=False)
    go_on(folder, console)


def go_on(folder: Path, console: Console) -> None:
    """Runs the campaign in ``folder`` to its end, and says what came of it."""
    from selectron.campaign.history import read_campaign
    from selectron.campaign.run import run_campaign
    from selectron.cli.campaign_progress import watcher_for
    from selectron.cli.status import summarise

    try:
        with watcher_for(console) as watcher:
            run_campaign(folder, watcher=watcher)
    except (KeyboardInterrupt, SystemExit):
        console.print(
            f"Nothing that was finished is lost; go on with: selectron resume {folder}", soft_wrap=True, highlight=False
        )
        raise
    summarise(read_campaign(folder), console)
    console.print(f"selectron report {folder} writes the report.", soft_wrap=True, highlight=False)
