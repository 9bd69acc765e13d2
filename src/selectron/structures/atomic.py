"""Output that is either whole or not there at all."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from selectron.errors import SelectronError

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def cannot_write(path: Path, error: OSError) -> SelectronError:
    """The sentence for a failed write to ``path``."""
    if error.errno in _NO_ROOM:
        return SelectronError(f"cannot write {path}: the disk is full (or a quota is reached); free some space.")
    return SelectronError(f"cannot write {path}: {error.strerror or error}.")


@contextmanager
def atomic_output(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """An open stream whose content appears at ``path`` only when the block ends without an error.

    The stream writes to a hidden file in the same folder, which is flushed to disk and renamed over ``path`` at the
    end and deleted on any failure, so that a reader sees the old file or the new one and never half of it. A ``path``
    that exists and is no regular file (``/dev/stdout``, a named pipe) is written straight through. Symbolic links are
    followed.

    Args:
        path: where the output goes; its folder must exist.
        mode: ``"w"`` for UTF-8 text with ``\\n`` line ends, ``"wb"`` for bytes.

    Raises:
        SelectronError: the folder is missing or not writable, or the disk is full.
    """
    if mode not in ("w", "wb"):
        raise ValueError(f"mode is 'w' or 'wb', not {mode!r}")
    text = {"encoding": "utf-8", "newline": "\n"} if mode == "w" else {}
    target = Path(os.path.realpath(path))
    special = target.exists() and not target.is_file()
    if target.is_dir():
        raise SelectronError(f"cannot write {path}: it is a folder; name a file.")
    if not target.parent.is_dir():
        raise SelectronError(f"cannot write {path}: the folder {target.parent} does not exist.")
    draft = target if special else target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        stream = open(draft, mode if special else mode.replace("w", "x"), **text)  # type: ignore[call-overload] # noqa: SIM115
    except OSError as error:
        raise cannot_write(Path(path), error) from error
    try:
        yield stream
        try:
            stream.flush()
            if not special:
                os.fsync(stream.fileno())
            stream.close()
            if not special:
                os.replace(draft, target)
        except OSError as error:
            raise cannot_write(Path(path), error) from error
    except BaseException as error:
        with suppress(OSError):
            stream.close()
        if not special:
            draft.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            raise cannot_write(Path(path), error) from error
        raise
