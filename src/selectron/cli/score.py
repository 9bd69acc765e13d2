"""``selectron score``: the variance of every structure."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from selectron.cli import options as o
from selectron.cli.progress import progress_for
from selectron.cli.select import DEFAULT_FEATURES, DEFAULT_NOISE, summarise


def register(app: typer.Typer) -> None:
    """Adds the command to ``app``."""
    app.command("score")(score)


def score(
    pool: o.PoolArgument,
    model: o.ModelOption = [],  # noqa: B006
    train: o.TrainOption = [],  # noqa: B006
    features: o.FeaturesOption = DEFAULT_FEATURES,
    output: Annotated[Path, typer.Option("--output", "-o", help="One line a structure, as CSV.")] = Path("scores.csv"),
    structures: Annotated[
        Path | None,
        typer.Option(
            help="Also write the structures with their variances, with --probes exact those of their atoms too."
        ),
    ] = None,
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
    """Write the posterior variance of every structure of a pool."""
    listed = quarantine or output.with_name("quarantine.csv")
    others = [structures] if structures is not None else []
    o.check_outputs([output, listed, *others], [*pool, *train, *model])

    from selectron.features import FeatureOptions
    from selectron.screening import screen, write_scored, write_scores
    from selectron.structures import Quarantine

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
    console = Console()
    with closing(setup.store), closing(setup.train_store):
        with Quarantine(listed) as bad, progress_for(Console(stderr=True)) as progress:
            screening = screen(
                setup.pool,
                setup.features,
                train=setup.train,
                checks=setup.checks,
                quarantine=bad,
                store=setup.store,
                train_features=setup.train_features,
                train_store=setup.train_store,
                batch_size=setup.batch_size,
                noise=noise,
                progress=progress,
            )
        write_scores(screening, output)
        lost: list[str] = []
        for path in others:
            write_scored(screening, path, tell=lost.append)
    summarise(screening, setup, bad, console, lost)
    console.print("wrote " + ", ".join(str(path) for path in [output, *others]), soft_wrap=True, highlight=False)
