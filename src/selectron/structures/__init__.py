"""Pools of structures: read as a stream with random access, checked, and written so that nothing is ever half there.

Neighbour lists for moving atoms (``SkinList``, ``skin_list``, ``refreshed``) are imported when first used: they need torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from selectron.structures.atomic import atomic_output
from selectron.structures.checks import Checks
from selectron.structures.hashing import structure_hash
from selectron.structures.pool import Pool
from selectron.structures.quarantine import Quarantine, read_quarantine
from selectron.structures.reader import Reader, Source, UnreadableFrame
from selectron.structures.screening import usable_chunks
from selectron.structures.writing import WEIGHT_KEY, write_extxyz

if TYPE_CHECKING:
    from selectron.structures.verlet import SkinList, refreshed, skin_list

__all__ = [
    "WEIGHT_KEY",
    "Checks",
    "Pool",
    "Quarantine",
    "Reader",
    "SkinList",
    "Source",
    "UnreadableFrame",
    "atomic_output",
    "read_quarantine",
    "refreshed",
    "skin_list",
    "structure_hash",
    "usable_chunks",
    "write_extxyz",
]


def __getattr__(name: str) -> Any:
    if name not in ("SkinList", "refreshed", "skin_list"):
        raise AttributeError(f"module 'selectron.structures' has no attribute {name!r}")
    return getattr(import_module("selectron.structures.verlet"), name)
