"""``selectron inspect``: what is in files, before anything is spent on them."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from selectron.cli import options as o
from selectron.cli.progress import progress_for
from selectron.errors import SelectronError

WIDTH = 100
"""Columns of the table where there is no terminal, and at most."""


def register(app: typer.Typer) -> None:
    """Adds the command to ``app``."""
    app.command("inspect")(inspect)


def inspect(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="Files, globs or folders with structures; read as one sequence."),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Also say what this model makes of the labels: a mace-torch .model file (a pickle: open only what you trust), "
            "'embedded', or a name from 'selectron models'.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output, for scripts.")] = False,
    energy_key: Annotated[
        str | None, typer.Option(help="Key of the energies.", show_default="REF_energy, else energy")
    ] = None,
    forces_key: Annotated[
        str | None, typer.Option(help="Key of the forces.", show_default="those that go with the energies")
    ] = None,
    stress_key: Annotated[
        str | None,
        typer.Option(help="Key of the stress or virial.", show_default="the one that goes with the energies"),
    ] = None,
    head: Annotated[str | None, typer.Option(help="Head of structures and of a model with several.")] = None,
    sample: Annotated[
        int, typer.Option(min=1, help="Structures, drawn with the seed, that the model is asked about.")
    ] = 2000,
    everything: Annotated[bool, typer.Option("--all", help="Ask the model about all of them.")] = False,
    seed: Annotated[int, typer.Option(help="Of that draw.")] = 0,
    device: o.DeviceOption = "cpu",
    min_distance: Annotated[
        float | None, typer.Option(help="Å; structures with atoms closer than this are refused.", show_default="0.4")
    ] = None,
) -> None:
    """What is in files, before anything is spent on them; exit code 2 where train would refuse their labels."""
    from selectron.cli.inspect_table import print_table
    from selectron.inspection import inspect as look_at
    from selectron.structures.label_source import LabelKeys

    o.check_min_distance(min_distance)
    with progress_for(Console(stderr=True)) as progress:
        found = look_at(
            files,
            model,
            labels=LabelKeys(energy=energy_key, forces=forces_key, stress=stress_key),
            head=head,
            min_distance_A=min_distance,
            at_most=None if everything else sample,
            seed=seed,
            device=device,
            progress=progress,
        )
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2, allow_nan=False))
    else:
        console = Console()
        console.width = min(console.width, WIDTH) if console.is_terminal else WIDTH
        print_table(found, console)
    if found.refusal:
        raise SelectronError(found.refusal)
