"""Files under the name of their content: whole or not there, never overwritten, never twice."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from selectron.errors import SelectronError
from selectron.structures.atomic import cannot_write

_BLOCK = 1 << 20
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
PROBE_BYTES = 4 << 20


class Artifacts:
    """Content-addressed files in ``folder``: ``ab/abcdef….suffix``, named by the SHA-256 of what they hold.

    A file is written under a temporary name, flushed to disk and renamed, so that a name that exists names a whole file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._whole: set[str] = set()

    def path(self, name: str) -> Path:
        """Where the artifact ``name`` (``<sha256><suffix>``) is."""
        return self.folder / name[:2] / name

    def whole(self, name: str) -> Path:
        """The path of an artifact that is there and has the content that its name says.

        The content is looked at once, and not where it was put there by this object.

        Raises SelectronError where somebody or a disk did away with it.
        """
        path = self.path(name)
        if name in self._whole:
            return path
        end = "put it back from a copy, or begin another campaign (with label_store no label is bought again)."
        try:
            digest = file_digest(path)
        except FileNotFoundError:
            raise SelectronError(f"{path}, which the campaign needs, is gone: {end}") from None
        except OSError as error:
            raise SelectronError(
                f"{path}, which the campaign needs, cannot be read ({error.strerror}): {end}"
            ) from None
        if digest != name.partition(".")[0]:
            raise SelectronError(
                f"{path}, which the campaign needs, is damaged, its content is not that of its name: {end}"
            )
        self._whole.add(name)
        return path

    def relative(self, name: str) -> str:
        """The same, as seen from the campaign's folder."""
        return self.path(name).relative_to(self.folder.parent).as_posix()

    def put(self, write: Callable[[Path], object], suffix: str) -> str:
        """Lets ``write`` fill a temporary file, and gives the name under which its content is kept.

        Raises SelectronError where the disk is full or the folder cannot be written.
        """
        draft = self.folder / f".draft-{os.getpid()}-{secrets.token_hex(6)}{suffix}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write(draft)
            name = f"{file_digest(draft)}{suffix}"
            target = self.path(name)
            target.parent.mkdir(exist_ok=True)
            with open(draft, "rb") as stream:
                os.fsync(stream.fileno())
            os.replace(draft, target)
            _sync_folder(target.parent)
            self._whole.add(name)
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        finally:
            draft.unlink(missing_ok=True)
        return name

    def put_file(self, path: Path) -> str:
        """Keeps a copy of ``path``."""
        return self.put(lambda draft: _copy(path, draft), path.suffix)

    def put_bytes(self, content: bytes, suffix: str) -> str:
        """Keeps ``content``."""
        return self.put(lambda draft: draft.write_bytes(content), suffix)

    def sweep(self) -> None:
        """Removes drafts that a killed process left; only its successor, which holds the campaign's lock, may call this."""
        for draft in self.folder.glob(".draft-*"):
            draft.unlink(missing_ok=True)


def file_digest(path: Path) -> str:
    """SHA-256 of the file ``path`` in hexadecimal."""
    digest = sha256()
    with open(path, "rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def check_room(folder: Path) -> None:
    """Raises SelectronError where ``folder`` takes no more data: what failed just now may have failed for that reason.

    A few megabytes are written and removed again; free space as the system reports it knows neither quotas nor limits.
    """
    probe = folder / f".draft-room-{os.getpid()}"
    try:
        with open(probe, "wb") as stream:
            stream.write(bytes(PROBE_BYTES))
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise cannot_write(folder, error) from None
        raise
    finally:
        probe.unlink(missing_ok=True)


def _copy(source: Path, target: Path) -> None:
    with open(source, "rb") as reading, open(target, "wb") as writing:
        while block := reading.read(_BLOCK):
            writing.write(block)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
