"""Files of ``torch.save``, whose checksums are compared before anything in them is used.

Such a file is a ZIP archive. PyTorch writes a CRC-32 beside each part, and its own reader (torch 2.13.0) looks at none of
them: a flipped bit in the numbers loads as another number.
"""

from __future__ import annotations

import contextlib
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch

from selectron.errors import SelectronError
from selectron.notes import note

_ARCHIVE = b"PK\x03\x04"
_BEFORE_1_6 = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How torch < 1.6 begins its files: a pickle of its magic number. They carry no checksums."""
_CHUNK = 1 << 20


def load_archive(path: str | Path, *, kind: str, remedy: str, runs_code: bool = False) -> Any:
    """The object in ``path``, on the CPU.

    Args:
        path: a file that ``torch.save`` wrote.
        kind: what it should be, with its article, for the person who named it.
        remedy: what helps when it is damaged, as the end of a sentence.
        runs_code: whether the file is a pickle of any classes, which can run code; else it may hold tensors and plain values
            only.

    Raises SelectronError: the file cannot be read, is no such file, is damaged, or needs what is not installed.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise SelectronError(f"{path} is not {kind} but a {'folder' if path.is_dir() else 'device or pipe'}.")
    try:
        with open(path, "rb") as stream:
            _check(stream, path, kind, remedy, old_format=runs_code)
            stream.seek(0)
            with _default_dtype_kept(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return torch.load(stream, map_location="cpu", weights_only=not runs_code)
    except SelectronError:
        raise
    except FileNotFoundError:
        raise SelectronError(f"There is no file {path}.") from None
    except OSError as error:
        raise SelectronError(f"Cannot read {path}: {error.strerror or error}.") from None
    except Exception as error:  # torch, and the classes in the file, raise anything
        raise SelectronError(f"{path} cannot be read as {kind}: {_reason(error)}.") from error


def _check(stream: IO[bytes], path: Path, kind: str, remedy: str, *, old_format: bool) -> None:
    """Raises SelectronError unless each part of the archive has the checksum that was written beside it."""
    head = stream.read(len(_BEFORE_1_6))
    if not head:
        raise SelectronError(f"{path} is empty, not {kind}.")
    if old_format and head == _BEFORE_1_6:
        note(f"{path} is of a PyTorch before 1.6 and carries no checksums: damage would not be noticed.")
        return
    if not head.startswith(_ARCHIVE):
        raise SelectronError(f"{path} is not {kind}: torch.save did not write it, or its beginning is damaged.")
    try:
        with zipfile.ZipFile(stream) as archive:
            for part in archive.infolist():
                with archive.open(part) as content:
                    while content.read(_CHUNK):
                        pass
    except OSError:
        raise
    except Exception as error:  # zipfile raises many kinds for one cause
        why = f"a part does not have its checksum or is missing ({_words(error)})"
        raise SelectronError(f"{path} is damaged or cut short, {why}: {remedy}.") from None


def _reason(error: Exception) -> str:
    """Why unpickling failed: what is not installed, by name, or what was said."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        package, _, module = error.name.partition(".")
        if module:
            return f"it needs the module {error.name}, which the installed {package} does not have"
        return f"it needs the package {package}, which is not installed"
    lacking = re.match(r"Can't get attribute '([^']+)' on <module '([^']+)'", str(error))
    if lacking:
        return f"it needs {lacking[1]} of {lacking[2]}, which the installed version does not have"
    return f"PyTorch says {_words(error)}"


def _words(error: Exception) -> str:
    """The first sentence of an error, short."""
    said = " ".join(str(error).split()).split(". ")[0].rstrip(".:")
    name = type(error).__name__
    return f"{name}: {said[:117] + '...' if len(said) > 120 else said}" if said else name


@contextlib.contextmanager
def _default_dtype_kept() -> Iterator[None]:
    before = torch.get_default_dtype()
    try:
        yield
    finally:
        torch.set_default_dtype(before)
