"""One process a campaign: a lock of the operating system, which dies with the process that holds it."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from selectron.errors import SelectronError

FILE = "lock"
_ATTEMPTS, _PAUSE_S = 5, 0.05
_held: set[Path] = set()


@contextmanager
def campaign_lock(folder: Path) -> Iterator[None]:
    """Holds the campaign in ``folder`` for this process.

    The lock is a record lock (POSIX ``fcntl``): child processes do not inherit it, so that an orphan of a killed campaign
    never keeps its successor out.

    Raises SelectronError where another process holds it.
    """
    with open(folder / FILE, "a+", encoding="ascii", errors="replace") as stream:
        # whoever asks for the status holds the lock for a moment
        for attempt in range(_ATTEMPTS):
            if _taken(stream):
                break
            if attempt == _ATTEMPTS - 1:
                stream.seek(0)
                owner = stream.read().strip()
                who = f"process {owner}" if owner else "another process"
                raise SelectronError(
                    f"The campaign in {folder} is being run by {who} already; wait for it, or stop it first."
                )
            time.sleep(_PAUSE_S)
        stream.seek(0)
        stream.truncate()
        stream.write(f"{os.getpid()}\n")
        stream.flush()
        _held.add(folder.resolve())
        try:
            yield
        finally:
            _held.discard(folder.resolve())


def running(folder: Path) -> int | None:
    """The process that runs the campaign in ``folder``, or None where none does."""
    if folder.resolve() in _held:  # to open and close the file here would let the lock go
        return os.getpid()
    try:
        stream = open(folder / FILE, "r+", encoding="ascii", errors="replace")  # noqa: SIM115
    except OSError:
        return None
    with stream:
        for _ in range(_ATTEMPTS):
            if _taken(stream):
                return None
            stream.seek(0)
            owner = stream.read().strip()
            if owner.isdecimal():
                return int(owner)
            time.sleep(_PAUSE_S)  # it holds the lock and has not said so yet
    return None


def _taken(stream: IO[str]) -> bool:
    try:
        fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
