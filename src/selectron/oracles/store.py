"""Every label that was ever paid for, in one SQLite file."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from selectron.checked_rows import CheckedTable, add_checksums, connect, has_checksums, look_through
from selectron.errors import SelectronError
from selectron.oracles.base import ElectronicState, Label, Oracle
from selectron.oracles.label_rows import (
    FAILURES,
    LABELS,
    MISSHAPEN,
    ORACLES,
    SCHEMA,
    STRUCTURES,
    TABLES,
    as_bytes,
    atoms_of,
    label_of,
    row_of,
)
from selectron.oracles.worker import Outcome
from selectron.structures import structure_hash
from selectron.structures.old_labels import set_aside

STALE_S = 120.0
"""Age at which a claim of another machine counts as left behind; of this machine: as soon as its process is gone."""


class StructureKey(NamedTuple):
    """What a label belongs to: atoms (their structure hash, and magnetic moments where they matter), charge, multiplicity."""

    key: str
    hash: str
    state: ElectronicState


class StoredLabel(NamedTuple):
    """A label, what it cost, and with what it was made (``time``: UTC, ISO 8601)."""

    label: Label
    attempts: int
    wall_s: float
    core_s: float
    versions: dict[str, str]
    time: str


class StoredFailure(NamedTuple):
    """A structure without a label at some level, and why; ``structure`` is its key, ``oracle`` a fingerprint."""

    structure: str
    oracle: str
    reason: str
    attempts: int
    wall_s: float
    core_s: float
    time: str


class Spent(NamedTuple):
    """What all labels and failures in a store cost."""

    labels: int
    failures: int
    wall_s: float
    core_s: float


def structure_key(atoms: Atoms, state: ElectronicState, *, open_vectors: bool = False) -> StructureKey:
    """The key of ``atoms`` in ``state``; initial magnetic moments and charges of atoms enter where there are any.

    ``open_vectors``: the lattice vectors of directions that are not periodic enter too, to 1e-8 Å, where there are any;
    for oracles whose engine sees them (``sees_open_vectors`` of the options). Structures without them keep their key.
    """
    found = structure_hash(atoms)
    text = f"{found}|{state.charge}|{state.multiplicity}"
    if open_vectors:
        beside = np.rint(np.where(atoms.pbc[:, None], 0.0, atoms.cell.array) * 1e8).astype(np.int64)
        if beside.any():
            text += f"|open|{beside.tolist()}"
    for name in ("initial_magmoms", "initial_charges"):
        values = atoms.arrays.get(name)
        if values is not None and np.any(values):
            text += f"|{name}|{np.asarray(values, dtype=np.float64).round(6).tolist()}"
    return StructureKey(hashlib.blake2b(text.encode(), digest_size=16).hexdigest(), found, state)


class LabelStore:
    """One SQLite file (write-ahead log, every commit synchronised with the disk), for several processes at once.

    A label is known by the structure's key and the oracle's fingerprint. The first label of a pair stays; failures are
    all kept. :meth:`claim` makes sure that two processes do not pay for the same label. The file must lie on a disk of
    the machine that labels are ordered from (SQLite's write-ahead log does not work over a network file system);
    workers elsewhere never open it.

    Rows carry checksums. One that is damaged is set aside (in the table ``damaged``), told in :attr:`warnings`, and counts as
    not there, so that its label is bought again. A file from before there were checksums gets them when it is opened.

    Args:
        path: the file; made if missing.
        look: whether to have SQLite look through the file, once a process.

    Raises:
        SelectronError: from every method, where the file cannot be used or the disk is full; what was committed stays.
    """

    def __init__(self, path: str | Path, *, look: bool = True) -> None:
        self.path = Path(path)
        self.warnings: list[str] = []
        self._lock = threading.RLock()
        if not self.path.parent.is_dir():
            raise SelectronError(f"The folder {self.path.parent} for the label store {self.path.name} does not exist.")
        with self._explained():
            self._connection = connect(str(self.path), isolation_level=None, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            if look:
                self.warnings += look_through(self._connection, TABLES, self.path)
            self._connection.executescript(SCHEMA)
            if not all(has_checksums(self._connection, table) for table in TABLES):
                with self._transaction() as connection:
                    self.warnings += add_checksums(connection, TABLES, self.path, implausible={"labels": MISSHAPEN})

    def register(self, oracle: Oracle) -> None:
        """Notes name and settings of ``oracle``, once."""
        with self._transaction() as connection:
            self._whole_rows(ORACLES, "fingerprint = ?", (oracle.fingerprint,))
            row = (oracle.fingerprint, oracle.name, json.dumps(oracle.settings, sort_keys=True))
            ORACLES.insert(connection, row)

    def get(self, key: str, fingerprint: str) -> StoredLabel | None:
        """The label of the structure ``key`` by the oracle ``fingerprint``, or None."""
        for row in self._whole_rows(LABELS, _PAIR, (key, fingerprint)):
            energy_eV, forces, stress, attempts, wall_s, core_s, versions, when = row[2:]
            label = label_of(energy_eV, forces, stress)
            return StoredLabel(label, attempts, wall_s, core_s, json.loads(versions), when)
        return None

    def failure(self, key: str, fingerprint: str) -> StoredFailure | None:
        """The last failure of the pair, or None; a pair may have a label all the same, bought later."""
        rows = self._whole_rows(FAILURES, f"{_PAIR} ORDER BY id", (key, fingerprint))
        return _failure(rows[-1]) if rows else None

    def put(self, atoms: Atoms, key: StructureKey, fingerprint: str, outcome: Outcome) -> None:
        """Commits what came of a call, label or failure, and gives up the claim; on disk when this returns."""
        when = datetime.now(UTC).isoformat(timespec="seconds")
        spent = (outcome.attempts, outcome.wall_s, outcome.core_s, json.dumps(outcome.versions, sort_keys=True), when)
        with self._transaction() as connection:
            self._whole_rows(STRUCTURES, "key = ?", (key.key,))
            STRUCTURES.insert(connection, (key.key, key.hash, *key.state, *row_of(atoms)))
            if outcome.label is not None:
                energy_eV, forces, stress = outcome.label
                numbers = (energy_eV, as_bytes(forces), None if stress is None else as_bytes(stress))
                LABELS.insert(connection, (key.key, fingerprint, *numbers, *spent))
            else:
                FAILURES.insert(connection, (key.key, fingerprint, outcome.failure or "no reason was given", *spent))
            connection.execute("DELETE FROM claims WHERE structure = ? AND oracle = ?", (key.key, fingerprint))

    def claim(self, key: str, fingerprint: str, owner: str) -> bool:
        """Whether ``owner`` may now buy this label: False while another process that still lives is at it."""
        host, now = socket.gethostname(), time.time()
        with self._transaction(durable=False) as connection:
            row = connection.execute(
                "SELECT owner, host, pid, beat FROM claims WHERE structure = ? AND oracle = ?", (key, fingerprint)
            ).fetchone()
            if row is not None:
                other, its_host, its_pid, its_beat = row
                if other != owner and not _left_behind(its_host, its_pid, its_beat, host, now):
                    return False
            connection.execute(
                "INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?, ?, ?)",
                (key, fingerprint, owner, host, os.getpid(), now),
            )
        return True

    def beat(self, owner: str) -> None:
        """Says that ``owner`` still works on what it has claimed."""
        with self._transaction(durable=False) as connection:
            connection.execute("UPDATE claims SET beat = ? WHERE owner = ?", (time.time(), owner))

    def release(self, owner: str) -> None:
        """Gives up all claims of ``owner``."""
        with self._transaction(durable=False) as connection:
            connection.execute("DELETE FROM claims WHERE owner = ?", (owner,))

    def failures(self, fingerprint: str | None = None) -> list[StoredFailure]:
        """All failed calls, in the order of time, of one oracle or of all."""
        rows = self._whole_rows(FAILURES, "? IS NULL OR oracle = ? ORDER BY id", (fingerprint, fingerprint))
        return [_failure(row) for row in rows]

    def spent(self, fingerprint: str | None = None) -> Spent:
        """What was paid, for one oracle or for all, failures included."""
        asked = ("? IS NULL OR oracle = ?", (fingerprint, fingerprint))
        labels, failures = (self._whole_rows(table, *asked) for table in (LABELS, FAILURES))
        wall_s, core_s = (sum(float(row[place]) for row in [*labels, *failures]) for place in (-4, -3))
        return Spent(len(labels), len(failures), wall_s, core_s)

    def oracles(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """Name and settings of all oracles, by fingerprint."""
        rows = self._whole_rows(ORACLES, "1 ORDER BY rowid")
        return {fingerprint: (name, json.loads(settings)) for fingerprint, name, settings in rows}

    def export(self, fingerprint: str) -> Iterator[Atoms]:
        """All labelled structures of one oracle, oldest label first, with energy, forces and stress as ASE results.

        ``info`` holds ``oracle``, ``charge`` and ``multiplicity``. A label whose structure is damaged is left out, and
        told in :attr:`warnings`.
        """
        name = self.oracles().get(fingerprint, (fingerprint,))[0]
        with self._explained():
            ids = self._connection.execute("SELECT id FROM labels WHERE oracle = ? ORDER BY id", (fingerprint,))
            for (number,) in ids.fetchall():
                for label in self._whole_rows(LABELS, "id = ?", (number,)):
                    structures = self._whole_rows(STRUCTURES, "key = ?", (label[0],))
                    if not structures:
                        self.warnings.append(f"Label {number} of {self.path} is left out: its structure is damaged.")
                    for _, _, charge, multiplicity, *content in structures:
                        atoms = atoms_of(*content)
                        atoms.info = {"oracle": name, "charge": charge, "multiplicity": multiplicity}
                        yield with_label(atoms, label_of(*label[2:5]))

    def close(self) -> None:
        """Lets the file go."""
        self._connection.close()

    def __enter__(self) -> LabelStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _whole_rows(self, table: CheckedTable, where: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """The rows that ``where`` names; damaged ones are set aside and told."""
        with self._lock, self._explained():
            rows = list(table.rows(self._connection, where, values))
            damaged = [row for row in rows if not row.whole]
            if damaged:
                with nullcontext() if self._connection.in_transaction else self._transaction():
                    for row in damaged:
                        table.set_aside(self._connection, row)
                self.warnings += [table.told(row, self.path) for row in damaged]
        return [row.values for row in rows if row.whole]

    @contextmanager
    def _transaction(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """All or nothing; one that is not ``durable`` may be undone by a power cut, never half done."""
        with self._lock, self._explained():
            if not durable:
                self._connection.execute("PRAGMA synchronous=NORMAL")
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield self._connection
                    self._connection.execute("COMMIT")
                except BaseException:
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                    raise
            finally:
                if not durable:
                    self._connection.execute("PRAGMA synchronous=FULL")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            text = str(error)
            if "full" in text or "disk I/O" in text:
                why = "the disk is full (or a quota is reached); free some space, nothing that was committed is lost"
            elif "not a database" in text or "malformed" in text:
                why = "it is no label store, or damaged; name another file"
            else:
                why = text
            raise SelectronError(f"Cannot use the label store {self.path}: {why}.") from error


_PAIR = "structure = ? AND oracle = ?"


def _failure(row: tuple[Any, ...]) -> StoredFailure:
    structure, oracle, reason, attempts, wall_s, core_s, _, time = row
    return StoredFailure(structure, oracle, reason, attempts, wall_s, core_s, time)


def with_label(atoms: Atoms, label: Label) -> Atoms:
    """A copy of ``atoms`` whose calculator holds ``label``; labels that it had before are set aside under other names."""
    labelled = atoms.copy()
    labelled.calc = atoms.calc
    set_aside(labelled)
    labelled.calc = SinglePointCalculator(labelled, energy=label.energy_eV, forces=label.forces)
    if label.stress is not None:
        labelled.calc.results["stress"] = label.stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
    return labelled


def _left_behind(host: str, pid: int, beat: float, here: str, now: float) -> bool:
    if not isinstance(pid, int) or not isinstance(beat, float):
        return True  # damaged: nobody renews that
    if host == here:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
    return now - beat > STALE_S
