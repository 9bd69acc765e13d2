"""A run on disk: the state of its sampler and what it had written, so that a killed run goes on as if nothing had been."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from selectron.errors import SelectronError
from selectron.structures.atomic import atomic_output
from selectron.structures.verlet import SkinList

VERSION = 1
_KIND = "selectron sampling checkpoint"


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
        # shapes may differ: hills grow in number
        if not isinstance(leaf, Tensor) or leaf.dtype != like.dtype or leaf.dim() != like.dim():
            raise _unfit()
        return leaf.to(like.device)
    if not isinstance(leaf, int):
        raise _unfit()
    return leaf


def _unfit() -> SelectronError:
    return SelectronError(
        "The checkpoint does not fit this sampler: it is of another version of selectron; start anew."
    )


def write_checkpoint(path: Path, saved: Saved) -> None:
    """Replaces ``path`` when everything is on disk; a kill leaves the old checkpoint or the new one."""
    with atomic_output(path, "wb") as stream:
        torch.save({"kind": _KIND, "version": VERSION, **saved._asdict()}, stream)


def read_checkpoint(path: Path) -> Saved | None:
    """What ``path`` holds, None where there is no such file; loading it runs no code.

    Raises SelectronError for a file that is no checkpoint of a sampling run.
    """
    if not os.path.lexists(path):
        return None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception:  # whatever torch makes of a file that is something else
        found = None
    if not isinstance(found, dict) or found.get("kind") != _KIND:
        raise SelectronError(
            f"{path} is no checkpoint of a sampling run; name another file, or remove it to start anew."
        )
    if found.get("version") != VERSION:
        raise SelectronError(
            f"{path} is a checkpoint of version {found.get('version')}, and this selectron reads version {VERSION}: "
            "finish the run with the selectron that began it, or remove the file to start anew."
        )
    return Saved(**{name: found[name] for name in Saved._fields})


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
