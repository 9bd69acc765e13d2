"""The files that a run fills while it goes on, and that a killed run can go on filling."""

from __future__ import annotations

import csv
import io
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import IO

from selectron.errors import SelectronError
from selectron.sampling.frames import Ended, Frame
from selectron.structures.atomic import cannot_write
from selectron.structures.writing import Losses, frame_lines

ENDED_HEADER = ("step", "ensemble", "particle", "reason")


class RunFiles:
    """Frames, acquired frames and broken trajectories of one run.

    Each output grows under its name with ``.part`` behind it and gets its own at the end (:meth:`publish`). What stops
    before leaves the parts where they are: frames that are paid for are not thrown away. Sizes (:meth:`marks`) go into
    the checkpoint, and a run that goes on first cuts its parts back to them. ``losses`` counts what frames carried that cannot
    be written. A context manager.

    Args:
        frames: extended XYZ of all frames.
        ended: CSV of trajectories that broke, with the columns step, ensemble, particle, reason. Where none did there is
            no such file in the end, and an older one of that name is removed.
        acquired: extended XYZ of the acquired frames, where wanted.
        marks: sizes in bytes at the checkpoint from which the run goes on; None for a run from the beginning.

    Raises:
        SelectronError: a file cannot be written, or the parts of a run that goes on are missing or too short.
    """

    def __init__(
        self, frames: Path, *, ended: Path, acquired: Path | None = None, marks: dict[str, int] | None = None
    ) -> None:
        self.paths = {"frames": frames, "ended": ended}
        if acquired is not None:
            self.paths["acquired"] = acquired
        if marks is not None and marks.keys() != self.paths.keys():
            raise SelectronError(
                f"The run that the checkpoint is of wrote {', '.join(sorted(marks))}, and this one would write "
                f"{', '.join(sorted(self.paths))}: name the same outputs, or another checkpoint to start anew."
            )
        self.losses = Losses()
        self._streams: dict[str, IO[bytes]] = {}
        for name, path in self.paths.items():
            part = part_of(path)
            try:
                if marks is not None:
                    _cut(part, path, marks[name])
                self._streams[name] = open(part, "wb" if marks is None else "ab")  # noqa: SIM115  closed on exit
            except SelectronError:
                self.__exit__(None, None, None)
                raise
            except OSError as error:
                self.__exit__(None, None, None)
                raise cannot_write(part, error) from error

    def write(self, frame: Frame) -> None:
        """Adds a frame."""
        block = frame_lines(frame.atoms, self.losses).encode()
        self._add("frames", block)
        if frame.acquired and "acquired" in self._streams:
            self._add("acquired", block)

    def note(self, ended: Ended) -> None:
        """Adds a trajectory that broke."""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        if self._streams["ended"].tell() == 0:
            rows.writerow(ENDED_HEADER)
        rows.writerow(ended)
        self._add("ended", text.getvalue().encode())

    def _add(self, name: str, block: bytes) -> None:
        try:
            self._streams[name].write(block)
        except OSError as error:
            raise cannot_write(self.paths[name], error) from error

    def marks(self) -> dict[str, int]:
        """Sizes in bytes, by name, when everything so far is on disk."""
        sizes = {}
        for name, stream in self._streams.items():
            try:
                stream.flush()
                os.fsync(stream.fileno())
            except OSError as error:
                raise cannot_write(self.paths[name], error) from error
            sizes[name] = stream.tell()
        return sizes

    def publish(self) -> list[Path]:
        """Gives the files their names; which there are."""
        sizes = self.marks()
        self.__exit__(None, None, None)
        there = []
        for name, path in self.paths.items():
            if name == "ended" and sizes[name] == 0:
                part_of(path).unlink(missing_ok=True)
                path.unlink(missing_ok=True)
                continue
            try:
                os.replace(part_of(path), path)
            except OSError as error:
                raise cannot_write(path, error) from error
            there.append(path)
        return there

    def __enter__(self) -> RunFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        full: SelectronError | None = None
        for name, stream in self._streams.items():
            try:
                stream.close()
            except OSError as failed:  # what was not flushed yet does not fit on the disk
                full = full or cannot_write(self.paths[name], failed)
        if full is not None and error is None:
            raise full


def part_of(path: Path) -> Path:
    """Where ``path`` grows."""
    return path.with_name(f"{path.name}.part")


def _cut(part: Path, path: Path, size: int) -> None:
    """Makes ``part`` the first ``size`` bytes of what the run had written, from ``path`` where it was finished before."""
    if not part.exists() and path.exists() and path.stat().st_size == size:
        shutil.copyfile(path, part)
    if size == 0:
        part.touch()
    if not part.exists() or part.stat().st_size < size:
        raise SelectronError(
            f"The checkpoint goes on from {size:,} bytes of {path.name}, but {part} is not there or shorter: bring it back, "
            "or remove the checkpoint to start anew."
        )
    os.truncate(part, size)
