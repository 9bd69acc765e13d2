"""Faults that are not the structure's: a full disk, a folder that is gone, a program that is not there; and memory."""

from __future__ import annotations

import errno
import os
import re
import resource
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_NUMBERS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
_WORDS = re.compile(
    r"no space left on device|disk quota exceeded|read-only file system|stale (nfs )?file handle|too many open files"
    r"|input/output error|(error code|returned an error:?|exit status|exit code) 12[67]\b",
    re.IGNORECASE,
)
_BUILTINS = {"cd", "source", ".", "exec", "module", "ulimit", "export", "set", "eval", "test", "["}
_LEAST_ROOM = 1_000_000  # bytes


def fault_of_surroundings(error: BaseException, reason: str, folder: Path) -> bool:
    """Whether ``error``, told as ``reason``, lies outside the structure whose run was in ``folder``.

    The disk is full or fails, files cannot be opened, or a program cannot be started (the shell's exit codes 126 and 127).
    """
    if _WORDS.search(reason):
        return True
    for one in _chain(error):
        if isinstance(one, OSError) and (one.errno in _NUMBERS or _from_subprocess(one)):
            return True
        if getattr(one, "returncode", None) in (126, 127):
            return True
    try:
        return shutil.disk_usage(folder).free < _LEAST_ROOM
    except OSError:  # gone, which the engine sees to
        return False


def missing_program(command: str) -> str | None:
    """The program that the shell command begins with, where there is none of that name; None where it cannot be told."""
    try:
        words = shlex.split(command)
    except ValueError:
        return None
    first = next((word for word in words if not re.match(r"\w+=", word)), "")
    if not first or first in _BUILTINS or re.search(r"[$`(){}*?]", first):
        return None
    if "/" in first and not os.path.isabs(first):  # relative to the folder of a run
        return None
    return None if shutil.which(first) else first


def commands_of(calculator: Any) -> Iterator[str]:
    """The shell commands that an ASE calculator would run; raises what ASE raises where none is set."""
    if hasattr(calculator, "make_command"):  # VASP's, which looks into the environment
        yield calculator.make_command(getattr(calculator, "command", None))
        return
    command = getattr(getattr(calculator, "profile", None), "command", None)
    if isinstance(command, str):
        yield command


def memory_MB() -> float:
    """What this process holds now; where the system does not say (not Linux), the most that it ever held."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    except (OSError, ValueError, IndexError):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most / 1e6 if sys.platform == "darwin" else most / 1e3


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _from_subprocess(error: BaseException) -> bool:
    """Raised where a program was to be started."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and os.path.basename(trace.tb_frame.f_code.co_filename) == "subprocess.py"
