"""``selectron label``: energies and forces from an oracle, each bought once and kept."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from selectron.cli import options as o
from selectron.cli.progress import progress_for
from selectron.errors import SelectronError

if TYPE_CHECKING:
    from ase import Atoms

    from selectron.oracles import Label, Labelled, OracleOptions
    from selectron.oracles.written import OldLabels, StateTally
    from selectron.structures import Pool


def register(app: typer.Typer) -> None:
    """Adds the command to ``app``."""
    app.command("label")(label)


def label(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="Files, globs or folders with structures to label.")
    ],
    oracle: Annotated[
        str,
        typer.Option(
            help="gfn2-xtb, gfn1-xtb, dft:FUNCTIONAL/BASIS, mace:MODEL, surface:NAME, ase:MODULE:CLASS, or a .yaml file; "
            "options follow a question mark: dft:wb97x/6-31g*?grid_level=4"
        ),
    ] = "gfn2-xtb",
    output: Annotated[Path, typer.Option("--output", "-o", help="Extended XYZ; gzipped where it ends in .gz.")] = Path(
        "labelled.extxyz"
    ),
    store: Annotated[
        Path | None,
        typer.Option(help="Where labels are kept, each as it comes.", show_default="labels.db beside the output"),
    ] = None,
    workers: Annotated[int, typer.Option(help="Structures at once.")] = 1,
    threads: Annotated[
        int | None, typer.Option(help="Of each worker.", show_default="OMP_NUM_THREADS, or the cores shared")
    ] = None,
    parsl: Annotated[
        str | None, typer.Option(help="MODULE:NAME of a Parsl configuration whose workers are used instead.")
    ] = None,
    charge: Annotated[
        int | None, typer.Option(help="Of structures whose info has no charge.", show_default="0")
    ] = None,
    multiplicity: Annotated[
        str | None,
        typer.Option(help="2S + 1, or 'lowest', of structures whose info has none.", show_default="1"),
    ] = None,
    time_limit: Annotated[
        float | None, typer.Option(help="Seconds for one attempt.", show_default="by oracle: 600 for gfn2-xtb")
    ] = None,
    attempts: Annotated[
        int | None, typer.Option(help="Recipes to try on a structure that fails.", show_default="by oracle: 3")
    ] = None,
    max_force: Annotated[
        float | None,
        typer.Option(
            help="eV/Å; labels with a larger force on an atom are kept in the store and not written.",
            show_default="200",
        ),
    ] = None,
    retry_failures: Annotated[bool, typer.Option("--retry-failures", help="Try known failures again.")] = False,
) -> None:
    """Label structures with an oracle; the same command after a kill goes on where it was."""
    from selectron.execution import ExecutionOptions, ParslOptions, make_executor
    from selectron.oracles import LabelStore, label_structures, make_oracle, parse_oracle
    from selectron.structures import Pool

    if workers < 1 or (threads is not None and threads < 1):
        raise SelectronError("Workers and threads are whole numbers from 1.")
    options = parse_oracle(
        oracle,
        charge=charge,
        multiplicity=_multiplicity(multiplicity),
        time_limit_s=time_limit,
        attempts=attempts,
        max_force_eV_A=max_force,
    )
    failures = _failures_file(output)
    kept = store or output.with_name("labels.db")
    o.check_outputs([output, failures, kept], files)
    name = make_oracle(options).name
    execution = ExecutionOptions(
        kind="parsl" if parsl else "threads",
        workers=workers,
        threads=threads,
        parsl=ParslOptions(config=parsl),
    )
    console, log = Console(), Console(stderr=True)
    with closing(Pool.open(files)) as pool, LabelStore(kept) as labels:
        run = _Run(pool)
        with make_executor(execution) as executor, progress_for(log) as progress:
            progress.start(f"labels by {name}", len(pool))
            found = label_structures(run.readable(), options, labels, executor=executor, retry_failures=retry_failures)
            with closing(found):
                for labelled in found:
                    run.note(labelled)
                    progress.advance(1 + run.take_skipped())
            progress.advance(run.take_skipped())
            progress.finish()
        _write_failures(run, failures)
        if not run.labels:
            left = f" {output} is of an earlier run." if output.exists() else ""
            none = (
                "The structure got no label" if len(pool) == 1 else f"None of the {len(pool):,} structures got a label"
            )
            first = run.failures[min(run.failures)][0] if run.failures else "there are none"
            raise SelectronError(f"{none}: {failures} says why (the first: {first}).{left}")
        from selectron.oracles.written import OldLabels, StateTally
        from selectron.structures import write_extxyz

        states, old = StateTally(options, name), OldLabels()
        lost: list[str] = []
        write_extxyz(output, run.labelled(name, options, states, old), tell=lost.append)
    warnings = [f"Warning: {warning}" for warning in [*pool.warnings, *labels.warnings, *lost]]
    about = [*states.lines(), *([line] if (line := old.line()) else [])]
    for line in [*warnings, *run.summary(name, failures, retry_failures), *about]:
        console.print(line, soft_wrap=True, highlight=False)
    console.print(f"wrote {output}; every label is kept in {kept}", soft_wrap=True, highlight=False)


@dataclass
class _Run:
    """What came of each structure of a pool."""

    pool: Pool
    labels: dict[int, Label] = field(default_factory=dict)
    failures: dict[int, tuple[str, int]] = field(default_factory=dict)  # reason, attempts
    new: int = 0
    known_failures: int = 0
    refused: int = 0
    blameless: int = 0
    wall_s: float = 0.0
    core_s: float = 0.0
    _places: list[int] = field(default_factory=list)
    _skipped: int = 0

    def readable(self) -> Iterator[Atoms]:
        """The structures that can be parsed; the others are failures."""
        from selectron.structures import UnreadableFrame

        for index in range(len(self.pool)):
            try:
                atoms = self.pool[index]
            except UnreadableFrame as error:
                self.failures[index] = (f"the structure cannot be read: {error}", 0)
                self._skipped += 1
                continue
            self._places.append(index)
            yield atoms

    def take_skipped(self) -> int:
        """Unreadable structures since the last call."""
        count, self._skipped = self._skipped, 0
        return count

    def note(self, labelled: Labelled) -> None:
        """Keeps one result."""
        index = self._places[labelled.index]
        self.wall_s += labelled.wall_s
        self.core_s += labelled.core_s
        if labelled.label is not None:
            self.labels[index] = labelled.label
            self.new += not labelled.reused
        else:
            self.failures[index] = (labelled.failure or "no reason was given", labelled.attempts)
            self.known_failures += labelled.reused and not labelled.refused
            self.refused += labelled.refused
            self.blameless += labelled.blameless

    def labelled(self, name: str, options: OracleOptions, states: StateTally, old: OldLabels) -> Iterator[Atoms]:
        """Labelled structures in the order of the pool, with their ``info`` and the oracle's name in it."""
        from selectron.oracles.written import labelled_atoms

        for index in sorted(self.labels):
            atoms = self.pool[index]
            states.add(atoms)
            old.add(atoms)
            atoms = labelled_atoms(atoms, self.labels[index], options)
            atoms.info["oracle"] = name
            yield atoms

    def summary(self, name: str, failures: Path, retried: bool) -> list[str]:
        """What a person wants to know."""
        reused, failed = len(self.labels) - self.new, len(self.failures)
        lines = [
            f"{name}: {self.new:,} new, {reused:,} reused, {failed:,} failed; "
            f"{self.core_s:,.1f} core seconds, {self.wall_s:,.1f} s of workers' time."
        ]
        if failed:
            again = ""
            if self.known_failures and not retried:
                again = f" {self.known_failures:,} known before were not tried again: --retry-failures does."
            first = self.failures[min(self.failures)][0]
            lines.append(f"{failures} says why they failed (the first: {first}).{again}")
        if self.blameless:
            lines.append(
                f"By no fault of their own (disk, program, worker), and not kept as failures: {self.blameless:,} of them; "
                "mend that, and the same command tries them again."
            )
        if self.refused:
            lines.append(f"In the store, but refused by --max-force: {self.refused:,} of them.")
        return lines


def _write_failures(run: _Run, path: Path) -> None:
    """A line for each failed structure; no file where none failed."""
    from selectron.structures import atomic_output

    if not run.failures:
        path.unlink(missing_ok=True)
        return
    with atomic_output(path) as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["index", "source", "source_index", "attempts", "reason"])
        for index, (reason, attempts) in sorted(run.failures.items()):
            source = run.pool.source(index)
            table.writerow([index, source.path, source.index, attempts, reason])


def _failures_file(output: Path) -> Path:
    name = output.with_suffix("") if output.suffix == ".gz" else output
    return name.with_suffix(".failures.csv")


def _multiplicity(text: str | None) -> int | str | None:
    if text is None or text == "lowest":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise SelectronError(f"The multiplicity is a whole number from 1, or 'lowest', not {text!r}.")
    return int(text)
