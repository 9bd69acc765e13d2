"""A run on disk: the state of its sampler and what it had written, so that a killed run goes on as if nothing had been."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from torch import Tensor

from selectron.archives import load_archive
from selectron.errors import SelectronError
from selectron.structures.atomic import atomic_output
from selectron.structures.verlet import SkinList

VERSION = 1
KIND = "selectron sampling checkpoint"
REMEDY = (
    "remove it to start anew (frames of the run so far are in its outputs, or beside them as .part: copy them before)"
)


def _no_marks() -> dict[str, int]:
    return {}


class Checkpoint(NamedTuple):
    """Where a run leaves its state.

    ``marks`` tells, when the state is written, the size in bytes of each output so far, by name. Whoever continues the
    run cuts its outputs back to :func:`marks_of` before it takes the first frame.
    """

    path: Path
    marks: Callable[[], dict[str, int]] = _no_marks


class Saved(NamedTuple):
    """What a checkpoint holds.

    | field      | meaning                                                                                        |
    |------------|------------------------------------------------------------------------------------------------|
    | identity   | what the run is a function of, by name; text                                                   |
    | prepared   | plain values and tensors that were made before the first step                                  |
    | leaves     | tensors and numbers of the sampler's state, in the order of :func:`leaves_of`                  |
    | tally      | what was counted so far; plain values                                                          |
    | marks      | size of each output in bytes                                                                   |
    | done       | why the run is over; empty while it is not                                                     |
    """

    identity: dict[str, str]
    prepared: dict[str, Any]
    leaves: list[Any]
    tally: dict[str, Any]
    marks: dict[str, int]
    done: str


def leaves_of(state: Any) -> list[Any]:
    """Tensors (on the CPU) and numbers of a state made of NamedTuples, depth first.

    Neighbour lists are left out: they come back with the next step, and give the same edges in the same order.
    """
    if state is None or isinstance(state, SkinList):
        return []
    if isinstance(state, Tensor):
        return [state.detach().to("cpu", copy=True)]
    if isinstance(state, int):
        return [state]
    if isinstance(state, tuple):
        return [leaf for part in state for leaf in leaves_of(part)]
    raise TypeError(f"a state is made of tensors, whole numbers and tuples, not of {type(state).__name__}")


def restored(like: Any, leaves: list[Any]) -> Any:
    """``leaves`` in the shape of the state ``like``; tensors go to its devices.

    Raises SelectronError where they do not fit.
    """
    left = list(leaves)
    state = _filled(like, left)
    if left:
        raise _unfit()
    return state


def _filled(like: Any, left: list[Any]) -> Any:
    if like is None or isinstance(like, SkinList):
        return None
    if isinstance(like, tuple):
        parts = [_filled(part, left) for part in like]
        return type(like)(*parts) if hasattr(like, "_fields") else tuple(parts)
    if not left:
        raise _unfit()
    leaf = left.pop(0)
    if isinstance(like, Tensor):
        if not isinstance(leaf, Tensor) or leaf.dtype != like.dtype or leaf.dim() != like.dim():
            raise _unfit()
        # a state begins without hills, and these grow in number
        if any(now != first for now, first in zip(leaf.shape, like.shape, strict=True) if first):
            raise _unfit()
        return leaf.to(like.device)
    if not isinstance(leaf, int):
        raise _unfit()
    return leaf


def _unfit() -> SelectronError:
    return SelectronError(
        "The checkpoint does not fit this sampler: it is of another version of selectron; remove it to start anew."
    )


def write_checkpoint(path: Path, saved: Saved) -> None:
    """Replaces ``path`` when everything is on disk; a kill leaves the old checkpoint or the new one."""
    content = io.BytesIO()  # torch names no file, and no cause, where it cannot write
    torch.save({"kind": KIND, "version": VERSION, **saved._asdict()}, content)
    with atomic_output(path, "wb") as stream:
        stream.write(content.getbuffer())


def read_checkpoint(path: Path) -> Saved | None:
    """What ``path`` holds, None where there is no such file; loading it runs no code.

    The checksums that :func:`write_checkpoint` left in the file are compared, and each field is looked at.

    Raises SelectronError for a file that is damaged, or no checkpoint of a sampling run.
    """
    if not os.path.lexists(path):
        return None
    found = load_archive(path, kind="a checkpoint of a sampling run", remedy=REMEDY)
    if not isinstance(found, dict) or found.get("kind") != KIND:
        raise SelectronError(
            f"{path} is not a checkpoint of a sampling run; name another file, or remove it to start anew."
        )
    if found.get("version") != VERSION:
        raise SelectronError(
            f"{path} is a checkpoint of version {found.get('version')}, and this selectron reads version {VERSION}: "
            "finish the run with the selectron that began it, or remove the file to start anew."
        )
    try:
        _Content.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"][:3]))
        what = first["msg"].removeprefix("Value error, ").lower()
        raise SelectronError(f"{path} is damaged, its field {field} cannot be used ({what}): {REMEDY}.") from None
    return Saved(**{name: found[name] for name in Saved._fields})


_Size = Annotated[int, Field(ge=0)]
_STRICT = ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True)


class _Prepared(BaseModel):
    """Before the first step: positions (N, 3) in Å, thresholds, bandwidth."""

    model_config = _STRICT
    positions: Tensor
    thresholds: dict[str, float]
    bandwidth: Tensor | None

    @field_validator("positions")
    @classmethod
    def _are_positions(cls, value: Tensor) -> Tensor:
        if value.dtype != torch.float64 or value.ndim != 2 or value.shape[1] != 3 or not bool(value.isfinite().all()):
            raise ValueError("positions are rows of three finite numbers")
        return value


class _Tally(BaseModel):
    """As :class:`~selectron.sampling.frames.Tally` gives it."""

    model_config = _STRICT
    frames: _Size
    acquired: _Size
    shortened: _Size
    reasons: dict[str, _Size]
    ended: list[tuple[_Size, _Size, _Size, str]]
    journeys: list[_Size]


class _Content(BaseModel):
    """What a checkpoint of :data:`VERSION` must hold."""

    model_config = _STRICT
    kind: str
    version: int
    identity: dict[str, str]
    prepared: _Prepared
    leaves: Annotated[list[Tensor | int], Field(min_length=1)]
    tally: _Tally
    marks: dict[str, _Size]
    done: Literal["", "steps", "iterations", "acquisitions", "nothing moves any more"]

    @field_validator("leaves")
    @classmethod
    def _begin_with_the_step(cls, value: list[Tensor | int]) -> list[Tensor | int]:
        if not isinstance(value[0], int) or value[0] < 0:
            raise ValueError("a state begins with the number of its step")
        return value


def marks_of(path: Path) -> dict[str, int]:
    """Sizes in bytes that the outputs of the run had at its checkpoint; empty where there is none."""
    saved = read_checkpoint(path)
    return {} if saved is None else saved.marks


def check_identity(path: Path, saved: Saved, identity: dict[str, str]) -> None:
    """Raises SelectronError, naming what differs, where the checkpoint is of another run than ``identity``."""
    names = sorted(saved.identity.keys() | identity.keys())
    for name in names:
        before, now = saved.identity.get(name), identity.get(name)
        if before != now:
            raise SelectronError(
                f"The checkpoint {path} is of another run: its {name} was {_short(before)} and is now {_short(now)}; "
                "give what the run began with, or another file to start anew."
            )


def _short(text: str | None) -> str:
    if text is None:
        return "not given"
    return text if len(text) <= 60 else f"{text[:57]}..."
