"""``selectron select``: the batch that is worth a label."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from selectron.cli import options as o
from selectron.cli.progress import progress_for
from selectron.errors import SelectronError
from selectron.wording import counted

if TYPE_CHECKING:
    from selectron.screening import Screening
    from selectron.structures import Quarantine

DEFAULT_FEATURES, DEFAULT_SELECTOR, DEFAULT_NOISE = "energy-ntk", "isd", 1e-3


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
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The picks, as extended XYZ; gzipped where it ends in .gz.")
    ] = Path("picks.extxyz"),
    by_chance: Annotated[
        float,
        typer.Option(help="Share of the batch drawn at random first, which the selector counts as labelled."),
    ] = 0.0,
    shortlist: Annotated[
        int | None,
        typer.Option(help="The selector sees so many of the largest variances.", show_default="all, up to 20,000"),
    ] = None,
    rank_by: o.RankByOption = "variance",
    per_atom: Annotated[
        bool | None,
        typer.Option(
            help="Variances of the picks' atoms, from exact force rows.", show_default="where it is not too dear"
        ),
    ] = None,
    scores: Annotated[Path | None, typer.Option(help="Also write the variance of every structure, as CSV.")] = None,
    picture: Annotated[bool, typer.Option(help="Draw the map beside the output, as .png and .html.")] = True,
    dim: o.DimOption = 512,
    parameters: o.ParametersOption = "all",
    normalise: o.NormaliseOption = "none",
    probes: o.ProbesOption = "4",
    train_probes: o.TrainProbesOption = "auto",
    energy_weight: o.EnergyWeightOption = 1.0,
    force_weight: o.ForceWeightOption = 10.0,
    noise: o.NoiseOption = DEFAULT_NOISE,
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
    listed = quarantine or output.with_name("quarantine.csv")
    images = _images(output) if picture else []
    tables = [scores] if scores is not None else []
    o.check_outputs([output, *tables, *images, listed], [*pool, *train, *model])

    from selectron.features import FeatureOptions
    from selectron.report.table import picks_table
    from selectron.screening import check_selection, draw, pick_rows, screen, write_picks, write_scores
    from selectron.structures import Quarantine

    check_selection(selector, budget, len(model), shortlist, by_chance)
    setup = o.set_up(
        pool,
        model,
        train,
        features,
        FeatureOptions(
            dim=dim,
            parameters=parameters,
            normalise=normalise,
            seed=seed,
            probes=o.parse_probes(probes),
            energy_weight=energy_weight,
            force_weight=force_weight,
        ),
        train_probes=train_probes,
        head=head,
        device=device,
        dtype=dtype,
        batch_size=batch_size,
        min_distance=min_distance,
        cache=cache,
        no_cache=no_cache,
    )
    console, log = Console(), Console(stderr=True)
    with closing(setup.store), closing(setup.train_store):
        with Quarantine(listed) as bad, progress_for(log) as progress:
            screening = screen(
                setup.pool,
                setup.features,
                train=setup.train,
                selector=selector,
                budget=budget,
                by_chance=by_chance,
                shortlist=shortlist,
                rank_by=rank_by,
                per_atom=per_atom,
                committee=setup.committee,
                checks=setup.checks,
                quarantine=bad,
                store=setup.store,
                train_features=setup.train_features,
                train_store=setup.train_store,
                batch_size=setup.batch_size,
                noise=noise,
                seed=seed,
                progress=progress,
            )
        lost: list[str] = []
        write_picks(screening, output, tell=lost.append)
        for table in tables:
            write_scores(screening, table)
        if images:
            names = ", ".join(potential.name for potential in setup.potentials) or "no model"
            draw(screening, *images, subtitle=f"{features} of {names}, {selector}, budget {budget}")
    summarise(screening, setup, bad, console, lost)
    if screening.picks:
        console.print(picks_table(pick_rows(screening)))
    empty = "" if screening.picks else " (empty)"
    rest = "".join(f", {path}" for path in [*tables, *images])
    console.print(f"wrote {output}{empty}{rest}", soft_wrap=True, highlight=False)


def summarise(
    screening: Screening, setup: o.Setup, bad: Quarantine, console: Console, lost: Sequence[str] = ()
) -> None:
    """What a person wants to know before the table."""
    lines = [f"Warning: {warning}" for warning in setup.pool.warnings]
    lines += [f"Warning: {warning}" for warning in (setup.train.warnings if setup.train else [])]
    lines += [f"Warning: {line}" for line in lost]
    if setup.committee is not None and not (screening.selector or "").startswith("committee"):
        lines.append(f"Features come from {setup.potentials[0].name}; the other models only narrow the elements.")
    known = (
        f", {counted(len(screening.training), 'structure')} in the training set"
        if screening.training is not None
        else ""
    )
    lines.append(f"{counted(len(screening.catalogue), 'usable structure')} in the pool{known}.")
    if len(bad):
        lines.append(f"{counted(len(bad), 'structure')} could not be used: {bad.path} says why.")
    for line in [*lines, *screening.notes]:
        console.print(line, soft_wrap=True, highlight=False)


def _images(output: Path) -> list[Path]:
    """Where the map goes: the name of the picks, ended in .png and in .html."""
    if output.suffix.lower() in {".png", ".html"}:
        raise SelectronError(f"The picks are extended XYZ: name {output.with_suffix('.extxyz')}, not {output}.")
    name = output.with_suffix("") if output.suffix == ".gz" else output
    return [name.with_suffix(".png"), name.with_suffix(".html")]
