"""Field types of files: words are kept, paths are taken from the folder of the YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, ValidationInfo

POOL_WORDS = ("embedded", "embedded-train")


def beside(text: str, info: ValidationInfo) -> str:
    """``text`` as an absolute path, seen from the folder of the YAML file where there is one."""
    path = Path(text).expanduser()
    folder = (info.context or {}).get("folder")
    return str(path if path.is_absolute() or folder is None else Path(folder) / path)


def _pattern(text: str, info: ValidationInfo) -> str:
    return text if text in POOL_WORDS else beside(text, info)


def model_file_beside(text: str, info: ValidationInfo) -> str:
    """Names are kept unless a file of that name stands beside the YAML file."""
    path = Path(beside(text, info))
    if text.startswith("ase:") or text == "embedded":
        return text
    is_name = "/" not in text and not Path(text).suffix
    return text if is_name and not path.exists() else str(path)


FilePattern = Annotated[str, AfterValidator(_pattern)]
"""A file, glob or folder of structures, or one of :data:`POOL_WORDS`."""

FilePath = Annotated[str, AfterValidator(beside)]
"""One file or folder."""

ModelFile = Annotated[str, AfterValidator(model_file_beside)]
"""A ``.model`` file, ``embedded``, or a name that ``selectron models`` lists."""
