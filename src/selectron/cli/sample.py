"""``selectron sample``: structures where there is no pool."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from selectron.cli import options as o
from selectron.cli.sample_plot import plot_frames
from selectron.cli.sample_progress import sample_progress_for
from selectron.errors import SelectronError
from selectron.wording import counted

if TYPE_CHECKING:
    from ase import Atoms

    from selectron.potentials import Potential
    from selectron.sampling.frames import Progress
    from selectron.sampling.options import SampleOptions

INSTEAD = {"temperature_K": ("kT_eV",), "kT_eV": ("temperature_K",), "step_size": ("timestep_fs", "damping_amu_per_ps")}
"""What an option of the command line drives out of the file beside itself."""


def register(app: typer.Typer) -> None:
    """Adds the command to ``app``."""
    app.command("sample")(sample)


def sample(
    start: Annotated[
        list[str],
        typer.Argument(
            metavar="[START...]", help="Files, globs or folders with starting structures.", show_default=False
        ),
    ] = [],  # noqa: B006
    model: Annotated[
        list[str],
        typer.Option(
            "--model",
            "-m",
            help="As for 'select', or surface:NAME for an analytic surface. More than once for a committee (udd, hal).",
        ),
    ] = [],  # noqa: B006
    method: Annotated[
        str | None,
        typer.Option(
            help="skmd, a-skmd, synchronous-skmd, langevin, brownian, udd, hal or metad.", show_default="skmd"
        ),
    ] = None,
    options: Annotated[
        Path | None, typer.Option(help="YAML file with any of the options; those of the command line win.")
    ] = None,
    at: Annotated[
        list[str], typer.Option(metavar="X,Y", help="A starting point on a surface, in place of START; more than once.")
    ] = [],  # noqa: B006
    temperature: Annotated[
        float | None, typer.Option(help="K.", show_default="50 for SKMD, as in the paper, else 300")
    ] = None,
    kt: Annotated[float | None, typer.Option("--kT", help="kT in eV in place of a temperature, for surfaces.")] = None,
    timestep: Annotated[float | None, typer.Option(help="fs.", show_default="1 underdamped, 0.1 overdamped")] = None,
    step_size: Annotated[
        float | None, typer.Option(help="Å²/eV in place of time step and damping, for surfaces.")
    ] = None,
    dynamics: Annotated[
        str | None, typer.Option(help="underdamped or overdamped, for udd, hal and metad.", show_default="underdamped")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of every ensemble.", show_default="10000")] = None,
    iterations: Annotated[
        int | None, typer.Option(help="End after so many journeys of an ensemble (skmd, a-skmd).")
    ] = None,
    acquisitions: Annotated[int | None, typer.Option(help="End after so many acquired structures.")] = None,
    particles: Annotated[
        int | None,
        typer.Option(help="Particles of an ensemble, or trajectories.", show_default="30 for SKMD, else one a start"),
    ] = None,
    ensembles: Annotated[int | None, typer.Option(help="Independent copies in one batch.", show_default="1")] = None,
    stop_after: Annotated[
        int | None, typer.Option(help="Acquire after so many steps: the journeys of SKMD.", show_default="500 for skmd")
    ] = None,
    bias_norm: Annotated[
        str | None,
        typer.Option(help="Acquire below this norm of the bias, eV/Å, or 'auto'.", show_default="auto for a-skmd"),
    ] = None,
    uncertainty: Annotated[
        str | None,
        typer.Option(help="Acquire above this uncertainty, eV, or 'auto'.", show_default="auto for udd and hal"),
    ] = None,
    min_steps: Annotated[int | None, typer.Option(help="But not before so many steps.", show_default="50")] = None,
    descriptor: Annotated[
        str | None,
        typer.Option(
            help="node-features, mean-node-features, coordinates or inverse-distances.",
            show_default="node-features; coordinates for surfaces",
        ),
    ] = None,
    bandwidth: Annotated[
        str | None,
        typer.Option(help="median, initial-median or a number.", show_default="median; initial-median for a-skmd"),
    ] = None,
    alignment: Annotated[str | None, typer.Option(help="none, kabsch or minimum-image.", show_default="none")] = None,
    constraints: Annotated[
        str | None,
        typer.Option(help="keep: atoms that are held in the starts stay; ignore: all move.", show_default="keep"),
    ] = None,
    relax: Annotated[
        bool | None,
        typer.Option("--relax/--no-relax", help="Relax the starts with the model first."),
    ] = None,
    burn_in: Annotated[
        int | None, typer.Option(help="Steps before the first snapshot of SKMD's ensemble.", show_default="4000")
    ] = None,
    snapshot_every: Annotated[
        int | None, typer.Option(help="Steps between the snapshots of SKMD's ensemble.", show_default="200")
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(help="Steps between frames; 0: acquired structures only.", show_default="100"),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of all noise.", show_default="0")] = None,
    head: o.HeadOption = None,
    device: o.DeviceOption = "cpu",
    dtype: o.DtypeOption = "float32",
    output: Annotated[Path, typer.Option("--output", "-o", help="All frames, as extended XYZ.")] = Path(
        "samples.extxyz"
    ),
    acquired: Annotated[Path | None, typer.Option(help="The acquired structures, as extended XYZ.")] = None,
    ended: Annotated[
        Path | None,
        typer.Option(help="CSV of trajectories that broke.", show_default="the output's name with .ended.csv"),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Picture of the run, as PNG.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Save the state here as the run goes; the same command then goes on from it.")
    ] = None,
    checkpoint_every: Annotated[
        int | None, typer.Option(help="Steps between checkpoints.", show_default="1000")
    ] = None,
) -> None:
    """Sample structures with a model: SKMD, Langevin dynamics, biased dynamics."""
    given = {
        "method": method,
        "dynamics": dynamics,
        "temperature_K": temperature,
        "kT_eV": kt,
        "timestep_fs": timestep,
        "step_size": step_size,
        "steps": steps,
        "iterations": iterations,
        "acquisitions": acquisitions,
        "particles": particles,
        "ensembles": ensembles,
        "stopping": _stopping(stop_after, bias_norm, uncertainty, min_steps),
        "descriptor": {"name": descriptor},
        "kernel": {"bandwidth": _number_or_word(bandwidth), "alignment": alignment},
        "initial": {"relax": relax, "burn_in_steps": burn_in, "snapshot_every": snapshot_every},
        "constraints": constraints,
        "stride": stride,
        "seed": seed,
        "checkpoint_every": checkpoint_every,
    }
    wanted = _merged(options, given)
    files = _Files(output, ended or output.with_name(f"{output.stem}.ended.csv"), acquired, plot, checkpoint)
    files.check([*start, *model, *([str(options)] if options else [])])
    from selectron.potentials import load_potential, settle_threads

    if not model:
        raise SelectronError("Sampling needs a model: give --model.")
    potentials = [load_potential(spec, device=device, dtype=dtype, head=head) for spec in model]
    settle_threads(potentials)
    _run(potentials, _starts(start, at, potentials[0]), wanted, files)


class _Files:
    """Where a run writes."""

    def __init__(
        self, output: Path, ended: Path, acquired: Path | None, plot: Path | None, checkpoint: Path | None
    ) -> None:
        self.output, self.ended, self.acquired, self.plot, self.checkpoint = output, ended, acquired, plot, checkpoint

    def check(self, inputs: list[str]) -> None:
        for path in (self.output, self.acquired):
            if path is not None and path.suffix.lower() not in {".extxyz", ".xyz"}:
                raise SelectronError(f"Frames are extended XYZ: name {path.with_suffix('.extxyz')}, not {path}.")
        if self.plot is not None and self.plot.suffix.lower() != ".png":
            raise SelectronError(f"The picture is a PNG: name {self.plot.with_suffix('.png')}, not {self.plot}.")
        given = [self.output, self.ended, self.acquired, self.plot, self.checkpoint]
        o.check_outputs([path for path in given if path is not None], inputs)


def _merged(path: Path | None, given: dict[str, Any]) -> SampleOptions:
    """The options of the file and of the command line, which wins."""
    from selectron.config.load import checked
    from selectron.config.yaml_document import read_yaml
    from selectron.sampling.options import SampleOptions, sample_options

    document = None if path is None else read_yaml(path)
    values: dict[str, Any] = {} if document is None else document.data
    if not isinstance(values, dict):
        raise SelectronError(f"{path} holds no mapping of options to values.")
    for name, value in given.items():
        if isinstance(value, dict):
            inner = {key: one for key, one in value.items() if one is not None}
            if inner:
                before = values.get(name)
                values[name] = {**(before if isinstance(before, dict) else {}), **inner}
        elif value is not None:
            for other in INSTEAD.get(name, ()):
                if given.get(other) is None:
                    values.pop(other, None)
            values[name] = value
    return sample_options(values) if document is None else checked(document, SampleOptions)


def _number_or_word(text: str | None) -> float | str | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def _stopping(
    stop_after: int | None, bias_norm: str | None, uncertainty: str | None, min_steps: int | None
) -> list[dict[str, Any]] | None:
    """Criteria in the order: bias norm, uncertainty, fixed steps; None where none is named."""
    least = {} if min_steps is None else {"min_steps": min_steps}
    found: list[dict[str, Any]] = []
    for kind, threshold in (("bias-norm-below", bias_norm), ("uncertainty-above", uncertainty)):
        if threshold is not None:
            found.append({"kind": kind, "threshold": _number_or_word(threshold), **least})
    if stop_after is not None:
        found.append({"kind": "fixed-steps", "steps": stop_after})
    if not found and min_steps is not None:
        raise SelectronError("--min-steps belongs to --bias-norm or --uncertainty: name the threshold, or 'auto'.")
    return found or None


def _starts(files: list[str], points: list[str], potential: Potential) -> list[Atoms]:
    from ase import Atoms

    from selectron.structures import Pool

    if points and files:
        raise SelectronError("Give starting structures or --at, not both.")
    if points:
        if getattr(potential, "dimensions", 3) != 2:
            raise SelectronError(
                f"--at names points on a surface, and {potential.name} is none: name a file to start from."
            )
        return [Atoms("X", positions=[[*_point(text), 0.0]]) for text in points]
    if not files:
        raise SelectronError("There is nothing to start from: name a file of structures (on a surface: --at X,Y).")
    with Pool.open(files) as pool:
        return [pool[index] for index in range(len(pool))]


def _point(text: str) -> tuple[float, float]:
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        raise SelectronError(f"A starting point is two numbers, such as --at -0.55,1.44, not {text!r}.") from None
    return x, y


def _run(potentials: list[Potential], starts: list[Atoms], options: SampleOptions, files: _Files) -> None:
    from selectron.sampling.checkpoint import Checkpoint, read_checkpoint
    from selectron.sampling.output import RunFiles, part_of
    from selectron.sampling.run import run_sampling
    from selectron.sampling.starts import constrained
    from selectron.structures.constraints import held_sentence

    console, log = Console(), Console(stderr=True)
    saved = None if files.checkpoint is None else read_checkpoint(files.checkpoint)
    # looks at everything before a file is touched
    run_sampling(
        potentials, starts, options, checkpoint=None if files.checkpoint is None else Checkpoint(files.checkpoint)
    )
    held = held_sentence(constrained(starts, options))
    if held is not None:
        log.print(held, highlight=False, soft_wrap=True)
    marks = None if saved is None else saved.marks
    with RunFiles(files.output, ended=files.ended, acquired=files.acquired, marks=marks) as written:
        last: list[Progress] = []
        with sample_progress_for(log) as shown:
            if saved is not None:
                step = saved.leaves[0]
                shown.pace.begin("sampling", step)
                log.print(f"going on from step {step:,} of {files.checkpoint}", highlight=False, soft_wrap=True)

            def tell(progress: Progress) -> None:
                last[:] = [progress]
                shown(progress)

            try:
                for frame in run_sampling(
                    potentials,
                    starts,
                    options,
                    on_step=tell,
                    on_ended=written.note,
                    checkpoint=None if files.checkpoint is None else Checkpoint(files.checkpoint, written.marks),
                ):
                    written.write(frame)
            except (KeyboardInterrupt, SystemExit):
                rest = (
                    "the same command goes on from its checkpoint"
                    if files.checkpoint
                    else "--checkpoint lets a run go on"
                )
                log.print(f"Stopped; the frames so far are in {part_of(files.output)}, and {rest}.", highlight=False)
                raise
        there = written.publish()
    if files.plot is not None and last[0].tally.frames:
        _plot(potentials[0], options, files, last[0])
        there.append(files.plot)
    lost = [f"Warning: {written.losses.sentence()}"] if written.losses else []
    for line in [*lost, *_summary(last[0], options, shown.pace.steps_per_s, files)]:
        console.print(line, soft_wrap=True, highlight=False)
    console.print("wrote " + ", ".join(str(path) for path in there), soft_wrap=True, highlight=False)


def _plot(potential: Potential, options: SampleOptions, files: _Files, last: Progress) -> None:
    from selectron.sampling.build import needs_descriptor
    from selectron.structures import Pool

    assert files.plot is not None
    fixed: dict[str, float] = {
        one.kind: float(one.threshold)
        for one in options.criteria
        if one.kind != "fixed-steps" and one.threshold != "auto"
    }
    with Pool.open([files.output]) as pool:
        plot_frames(
            pool,
            potential,
            needs_descriptor(potential, options),
            files.plot,
            name=options.method,
            thresholds={**fixed, **last.thresholds},
        )


def _summary(last: Progress, options: SampleOptions, rate: float, files: _Files) -> list[str]:
    """What a person wants to know at the end."""
    tally = last.tally
    per_day = (
        "" if last.time_fs is None or not last.step else f", {rate * last.time_fs / last.step * 0.0864:.3g} ns/day"
    )
    pace = f" at {rate:,.1f} steps/s{per_day}" if rate else ""
    lines = [f"{options.method}: {last.step:,} steps{pace}; ended by {_ENDS[last.finished]}."]
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in tally.reasons.items())
    lines.append(f"{counted(tally.frames, 'frame')}, {tally.acquired:,} acquired{f' ({reasons})' if reasons else ''}.")
    lines += [f"From a pilot: {_FOUND[kind].format(value)}." for kind, value in last.thresholds.items()]
    if tally.ended:
        why = ", ".join(f"{count} × {reason}" for reason, count in Counter(e.reason for e in tally.ended).items())
        lines.append(
            f"{counted(len(tally.ended), 'trajectory', 'trajectories')} broke ({why}): {files.ended} says when."
        )
    if tally.shortened:
        lines.append(f"{counted(tally.shortened, 'step')} had a drift that was shortened to the largest displacement.")
    if options.criteria and not tally.acquired:
        lines.append("Nothing was acquired: no stopping criterion held in so many steps.")
    return lines


_FOUND = {
    "bias-norm-below": "threshold of the bias norm {:.4g} eV/Å",
    "uncertainty-above": "threshold of the uncertainty {:.4g} eV",
    "udd-width": "width of the uncertainty bias {:.4g} eV",
}
_ENDS = {
    "steps": "the number of steps",
    "iterations": "the number of iterations",
    "acquisitions": "the number of acquisitions",
    "nothing moves any more": "the end of the last trajectory",
    "": "nothing",
}
