"""``selectron demo``: a small real campaign on what comes along."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Adds the command to ``app``."""
    app.command("demo")(demo)


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the campaign; a demo that was stopped there goes on.")
    ] = Path("demo-output"),
) -> None:
    """Run a small campaign on the embedded model and pool, with GFN2-xTB labels and a random twin, and write its report."""
    from selectron.campaign.history import read_campaign
    from selectron.cli.run import run
    from selectron.config.templates import TEMPLATES
    from selectron.errors import SelectronError
    from selectron.report.campaign_page import write_campaign_report
    from selectron.report.campaign_statistics import curves_of
    from selectron.report.campaign_summary import sentences

    text = TEMPLATES["campaign"][1]
    output.mkdir(parents=True, exist_ok=True)
    config = output / "campaign.yaml"
    if config.exists() and config.read_text(encoding="utf-8") != text:
        raise SelectronError(f"{config} is not the demo's file: name another folder with --output, or remove this one.")
    config.write_text(text, encoding="utf-8")
    folder = output / "campaign"
    typer.echo(f"selectron template campaign > {config}\nselectron run {config} --output {folder}\n")
    run(config=config, output=folder)
    record = read_campaign(folder)
    page = folder / "report.html"
    write_campaign_report(record, page)
    typer.echo(f"\nReport: {page}")
    for sentence in sentences(record, curves_of(record)):
        typer.echo(sentence)
