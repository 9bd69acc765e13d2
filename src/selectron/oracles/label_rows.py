"""What the tables of a label store hold, and how rows become labels and structures again."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
from ase import Atoms

from selectron.checked_rows import ASIDE, CheckedTable
from selectron.oracles.base import Label
from selectron.structures import structure_hash

SCHEMA = """
CREATE TABLE IF NOT EXISTS oracles (
    fingerprint TEXT PRIMARY KEY, name TEXT NOT NULL, settings TEXT NOT NULL, checksum BLOB);
CREATE TABLE IF NOT EXISTS structures (
    key TEXT PRIMARY KEY, hash TEXT NOT NULL, charge INTEGER NOT NULL, multiplicity INTEGER NOT NULL,
    numbers BLOB NOT NULL, positions BLOB NOT NULL, cell BLOB, pbc INTEGER NOT NULL, checksum BLOB);
CREATE TABLE IF NOT EXISTS labels (
    id INTEGER PRIMARY KEY, structure TEXT NOT NULL, oracle TEXT NOT NULL, energy_eV REAL NOT NULL, forces BLOB NOT NULL,
    stress BLOB, attempts INTEGER NOT NULL, wall_s REAL NOT NULL, core_s REAL NOT NULL, versions TEXT NOT NULL,
    time TEXT NOT NULL, checksum BLOB, UNIQUE (structure, oracle));
CREATE TABLE IF NOT EXISTS failures (
    id INTEGER PRIMARY KEY, structure TEXT NOT NULL, oracle TEXT NOT NULL, reason TEXT NOT NULL,
    attempts INTEGER NOT NULL, wall_s REAL NOT NULL, core_s REAL NOT NULL, versions TEXT NOT NULL, time TEXT NOT NULL,
    checksum BLOB);
CREATE INDEX IF NOT EXISTS failures_of ON failures (structure, oracle);
CREATE TABLE IF NOT EXISTS claims (
    structure TEXT NOT NULL, oracle TEXT NOT NULL, owner TEXT NOT NULL, host TEXT NOT NULL, pid INTEGER NOT NULL,
    beat REAL NOT NULL, PRIMARY KEY (structure, oracle));
"""

MISSHAPEN = """rowid IN (SELECT labels.rowid FROM labels JOIN structures ON structures.key = labels.structure
    WHERE length(forces) <> 12 * length(numbers))"""
"""SQL for labels whose forces (24 bytes an atom) do not fit their structure's atomic numbers (2 bytes an atom)."""


def as_bytes(values: np.ndarray) -> bytes:
    """Little-endian float64."""
    return np.ascontiguousarray(values, dtype="<f8").tobytes()


def label_of(energy_eV: float, forces: bytes, stress: bytes | None) -> Label:
    """The label in a row of ``labels``."""
    tensor = None if stress is None else np.frombuffer(stress, dtype="<f8").reshape(3, 3).copy()
    return Label(energy_eV, np.frombuffer(forces, dtype="<f8").reshape(-1, 3).copy(), tensor)


def row_of(atoms: Atoms) -> tuple[bytes, bytes, bytes | None, int]:
    """Atomic numbers, positions, cell and periodicity, as a row of ``structures`` has them."""
    cell = as_bytes(atoms.cell.array) if atoms.cell.array.any() else None
    return atoms.numbers.astype("<i2").tobytes(), as_bytes(atoms.positions), cell, int(np.dot(atoms.pbc, [1, 2, 4]))


def atoms_of(numbers: bytes, positions: bytes, cell: bytes | None, pbc: int) -> Atoms:
    """The structure of which :func:`row_of` gave that."""
    return Atoms(
        np.frombuffer(numbers, dtype="<i2"),
        np.frombuffer(positions, dtype="<f8").reshape(-1, 3),
        cell=None if cell is None else np.frombuffer(cell, dtype="<f8").reshape(3, 3),
        pbc=[bool(pbc & bit) for bit in (1, 2, 4)],
    )


def _plausible_cost(attempts: Any, wall_s: Any, core_s: Any, versions: Any, time: Any) -> bool:
    numbers = isinstance(attempts, int) and attempts >= 0 and all(math.isfinite(one) for one in (wall_s, core_s))
    return numbers and isinstance(json.loads(versions), dict) and isinstance(time, str)


def _plausible_label(structure: Any, oracle: Any, energy_eV: Any, forces: Any, stress: Any, *paid: Any) -> bool:
    label = label_of(energy_eV, forces, stress)
    finite = isinstance(energy_eV, float) and math.isfinite(energy_eV) and np.isfinite(label.forces).all()
    return bool(finite and (label.stress is None or np.isfinite(label.stress).all())) and _plausible_cost(*paid)


def _plausible_structure(key: Any, hash: Any, charge: Any, multiplicity: Any, *atoms: Any) -> bool:
    whole = isinstance(charge, int) and isinstance(multiplicity, int)
    return whole and structure_hash(atoms_of(*atoms)) == hash


ORACLES = CheckedTable(
    "oracles",
    ("fingerprint", "name", "settings"),
    "oracle",
    ASIDE,
    lambda fingerprint, name, settings: isinstance(json.loads(settings), dict),
)
STRUCTURES = CheckedTable(
    "structures",
    ("key", "hash", "charge", "multiplicity", "numbers", "positions", "cell", "pbc"),
    "structure",
    ASIDE,
    _plausible_structure,
)
_PAID = ("attempts", "wall_s", "core_s", "versions", "time")
LABELS = CheckedTable(
    "labels",
    ("structure", "oracle", "energy_eV", "forces", "stress", *_PAID),
    "label",
    f"{ASIDE}, but bought again where it is asked for",
    _plausible_label,
)
FAILURES = CheckedTable(
    "failures",
    ("structure", "oracle", "reason", *_PAID),
    "failure",
    f"{ASIDE}, and its structure is tried again where it is asked for",
    lambda structure, oracle, reason, *paid: isinstance(reason, str) and _plausible_cost(*paid),
)
TABLES = (ORACLES, STRUCTURES, LABELS, FAILURES)
