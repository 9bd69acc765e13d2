"""Pools of structures: read as a stream with random access, checked, and written so that nothing is ever half there."""

from selectron.structures.atomic import atomic_output
from selectron.structures.checks import Checks
from selectron.structures.hashing import structure_hash
from selectron.structures.pool import Pool
from selectron.structures.quarantine import Quarantine, read_quarantine
from selectron.structures.reader import Reader, Source, UnreadableFrame
from selectron.structures.screening import usable_chunks
from selectron.structures.writing import write_extxyz

__all__ = [
    "Checks",
    "Pool",
    "Quarantine",
    "Reader",
    "Source",
    "UnreadableFrame",
    "atomic_output",
    "read_quarantine",
    "structure_hash",
    "usable_chunks",
    "write_extxyz",
]
