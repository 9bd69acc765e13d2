"""``selectron select``: the batch that is worth a label."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from selectron.cli import options as o
from selectron.cli.progress import progress_for
from selectron.errors import SelectronError
from selectron.features import FeatureOptions
from selectron.report.table import picks_table
from selectron.screening import Screening, draw, pick_rows, screen, write_picks, write_scores
from selectron.screening.screen import RELATIVE_NOISE
from selectron.structures import Quarantine

DEFAULT_FEATURES, DEFAULT_SELECTOR = "energy-ntk", "ipv"


def register(app: typer.Typer) -> None:
    """Adds the command to ``app``."""
    app.command("select")(select)


def select(
    pool: o.PoolArgument,
    budget: Annotated[int, typer.Option("--budget", "-n", help="How many structures to pick.")],
    model: o.ModelOption = [],  # noqa: B006
    train: o.TrainOption = [],  # noqa: B006
    features: o.FeaturesOption = DEFAULT_FEATURES,
    selector: Annotated[str, typer.Option("--selector", "-s", help="See 'selectron selectors'.")] = DEFAULT_SELECTOR,
    output: Annotated[Path, typer.Option("--output", "-o", help="The picks, as extended XYZ.")] = Path("picks.extxyz"),
    shortlist: Annotated[
        int | None,
        typer.Option(help="The selector sees so many of the largest variances.", show_default="all, up to 20,000"),
    ] = None,
    scores: Annotated[Path | None, typer.Option(help="Also write the variance of every structure, as CSV.")] = None,
    picture: Annotated[bool, typer.Option(help="Draw the map beside the output, as .png and .html.")] = True,
    dim: o.DimOption = 512,
    parameters: o.ParametersOption = "all",
    normalise: o.NormaliseOption = "none",
    noise: o.NoiseOption = RELATIVE_NOISE,
    head: o.HeadOption = None,
    device: o.DeviceOption = "cpu",
    dtype: o.DtypeOption = "float32",
    seed: o.SeedOption = 0,
    batch_size: o.BatchSizeOption = "auto",
    min_distance: o.MinDistanceOption = None,
    cache: o.CacheOption = None,
    no_cache: o.NoCacheOption = False,
    quarantine: o.QuarantineOption = None,
) -> None:
    """Pick the most informative structures of a pool with a pretrained model."""
    if budget < 1:
        raise SelectronError(f"The budget is the number of structures to pick, at least 1, not {budget}.")
    output = o.writable(output)
    console, log = Console(), Console(stderr=True)
    setup = o.set_up(
        pool,
        model,
        train,
        features,
        FeatureOptions(dim=dim, parameters=parameters, normalise=normalise, seed=seed),
        head=head,
        device=device,
        dtype=dtype,
        batch_size=batch_size,
        min_distance=min_distance,
        cache=cache,
        no_cache=no_cache,
    )
    with (
        Quarantine(quarantine or output.with_name("quarantine.csv")) as bad,
        progress_for(log) as progress,
    ):
        screening = screen(
            setup.pool,
            setup.features,
            train=setup.train,
            selector=selector,
            budget=budget,
            shortlist=shortlist,
            committee=setup.committee,
            checks=setup.checks,
            quarantine=bad,
            store=setup.store,
            batch_size=setup.batch_size,
            noise=noise,
            seed=seed,
            progress=progress,
        )
    write_picks(screening, output)
    written = [output]
    if scores is not None:
        write_scores(screening, o.writable(scores))
        written.append(scores)
    if picture and len(screening.catalogue):
        names = ", ".join(potential.name for potential in setup.potentials) or "no model"
        images = [output.with_suffix(".png"), output.with_suffix(".html")]
        draw(screening, *images, subtitle=f"{features} of {names}, {selector}, budget {budget}")
        written += images
    summarise(screening, setup, bad, console)
    if screening.picks:
        console.print(picks_table(pick_rows(screening)))
    console.print("wrote " + ", ".join(str(path) for path in written), soft_wrap=True, highlight=False)


def summarise(screening: Screening, setup: o.Setup, bad: Quarantine, console: Console) -> None:
    """What a person wants to know before the table."""
    for warning in [*setup.pool.warnings, *(setup.train.warnings if setup.train else [])]:
        console.print(f"Warning: {warning}", soft_wrap=True, highlight=False)
    known = f", {len(screening.training)} in the training set" if screening.training is not None else ""
    console.print(f"{len(screening.catalogue)} usable structures{known}", highlight=False)
    if len(bad):
        console.print(f"{len(bad)} structures could not be used: see {bad.path}", soft_wrap=True, highlight=False)
    for note in screening.notes:
        console.print(note, soft_wrap=True, highlight=False)
