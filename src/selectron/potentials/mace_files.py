"""Reading a mace-torch ``.model`` file."""

from __future__ import annotations

import contextlib
import io
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from selectron.errors import SelectronError
from selectron.potentials import mace_torch  # noqa: F401  what the pickle refers to, imported in the right order


def load_mace(path: str | Path) -> torch.nn.Module:
    """The model in a mace-torch ``.model`` file.

    The file is a pickle and can run code when it is opened: open only files whose origin you trust.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SelectronError(f"Cannot read the model {path}: {error.strerror}.") from None
    refusal = SelectronError(f"{path} is not a mace-torch model file: torch.load cannot read it as a model.")
    try:
        with _default_dtype_kept(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = torch.load(io.BytesIO(content), map_location="cpu", weights_only=False)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        ImportError,
        AttributeError,
        OSError,
    ) as error:
        raise refusal from error
    if not isinstance(model, torch.nn.Module):
        raise SelectronError(
            f"{path} is not a model file, it holds an object of type {type(model).__name__}; "
            "mace-torch saves a whole model in a .model file."
        )
    return model


@contextlib.contextmanager
def _default_dtype_kept() -> Iterator[None]:
    before = torch.get_default_dtype()
    try:
        yield
    finally:
        torch.set_default_dtype(before)
