"""The durable state of a campaign: one SQLite file, one row a finished stage."""

from __future__ import annotations

import json
import os
import resource
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from selectron.campaign.artifacts import Artifacts
from selectron.checked_rows import (
    ASIDE,
    CheckedTable,
    add_checksums,
    connect,
    has_checksums,
    look_through,
    refuse_damage,
)
from selectron.errors import SelectronError

FILE, FORMAT = "campaign.sqlite", 1
_HEARTBEAT_S = 0.5

_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL, checksum BLOB);
CREATE TABLE IF NOT EXISTS stages (
    id INTEGER PRIMARY KEY,
    key TEXT UNIQUE NOT NULL,
    name TEXT NOT NULL,
    arm TEXT NOT NULL,
    round INTEGER NOT NULL,
    inputs TEXT NOT NULL,
    output TEXT NOT NULL,
    wall_s REAL NOT NULL,
    core_s REAL NOT NULL,
    started REAL NOT NULL,
    checksum BLOB
);
CREATE TABLE IF NOT EXISTS trail (position INTEGER PRIMARY KEY, key TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS activity (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    stage TEXT NOT NULL, arm TEXT NOT NULL, round INTEGER NOT NULL,
    label TEXT NOT NULL, done INTEGER NOT NULL, total INTEGER NOT NULL,
    started REAL NOT NULL, updated REAL NOT NULL
);
"""


_COLUMNS = ("key", "name", "arm", "round", "inputs", "output", "wall_s", "core_s", "started")


def _plausible_stage(key: Any, name: Any, arm: Any, round: Any, inputs: Any, output: Any, *times: Any) -> bool:
    right = stage_key(name, json.loads(inputs), arm, round) == key and isinstance(json.loads(output), dict)
    return right and all(isinstance(one, float) for one in times)


_FACTS = CheckedTable("facts", ("name", "value"), "fact", ASIDE, lambda name, value: json.loads(value) is not ...)
_STAGES = CheckedTable("stages", _COLUMNS, "stage", f"{ASIDE}, but run again", _plausible_stage)
_TABLES = (_FACTS, _STAGES)


class Stage(NamedTuple):
    """One finished stage.

    ``key`` is the SHA-256 of its inputs, ``output`` plain JSON; ``arm`` is "" for what both arms share; times in seconds,
    ``started`` since 1970; ``core_s`` is processor time of this process and its children.
    """

    key: str
    name: str
    arm: str
    round: int
    inputs: dict[str, Any]
    output: dict[str, Any]
    wall_s: float
    core_s: float
    started: float


class Activity(NamedTuple):
    """What is being done, as ``selectron status`` tells it: counts of the current part of a stage, times since 1970."""

    stage: str
    arm: str
    round: int
    label: str
    done: int
    total: int
    started: float
    updated: float


_ACTIVITY = (str, str, int, str, int, int, float, float)


class CampaignState:
    """The stages of the campaign in ``folder``.

    Every stage is a function of its inputs; it is done when its row is committed (write-ahead log, flushed to disk). A stage
    whose row is there is never run again, so that a campaign that was killed goes on where it stood.

    Facts and stages carry checksums. A stage that is damaged is set aside and run again, which ``tell`` is told; who only
    reads gets an error. Files from before there were checksums get them when they are opened for writing.

    Raises SelectronError where the file cannot be opened or written, or is of another format.
    """

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        self.folder, self.path = folder, folder / FILE
        self.artifacts = Artifacts(folder / "artifacts")
        self._last_beat = 0.0
        self._position = 0
        self._read_only = read_only
        self.tell: Callable[[str], object] = lambda line: None
        self.warnings: list[str] = []
        if read_only and not self.path.is_file():
            raise SelectronError(f"There is no campaign in {folder}: it has no {FILE}.")
        with self._explained():
            where = f"file:{_escaped(self.path)}" + ("?mode=ro" if read_only else "")
            self._connection = connect(where, uri=True)
            if read_only:
                refuse_damage(self._connection, self.path)
            else:
                self._connection.execute("PRAGMA journal_mode=WAL")
                self._connection.execute("PRAGMA synchronous=FULL")
                with self._connection:
                    self.warnings += look_through(self._connection, _TABLES, self.path)
                    self._connection.executescript(_SCHEMA)
                if not all(has_checksums(self._connection, table) for table in _TABLES):
                    with self._connection:
                        self._connection.execute("BEGIN IMMEDIATE")
                        self.warnings += add_checksums(self._connection, _TABLES, self.path)
            found = self.fact("format")
        if found is not None and found != FORMAT:
            raise SelectronError(f"{self.path} has format {found}, and this version of selectron reads {FORMAT}.")

    def close(self) -> None:
        """Lets the file go."""
        self._connection.close()

    def fact(self, name: str) -> Any:
        """A fact about the whole campaign, or None."""
        with self._explained():
            rows = list(_FACTS.rows(self._connection, "name = ?", (name,)))
        for row in rows:
            if not row.whole:
                raise SelectronError(
                    f"What {self.path} says of the campaign's {name} is damaged: put the file back from a copy, or begin "
                    "another campaign (with label_store no label is bought again)."
                )
            return json.loads(str(row.values[1]))
        return None

    def set_facts(self, facts: Mapping[str, Any]) -> None:
        """Keeps ``facts``, all or none."""
        rows = [(name, _json(value)) for name, value in facts.items()]
        with self._explained(), self._connection:
            for row in rows:
                _FACTS.insert(self._connection, row, "REPLACE")

    def stages(self) -> list[Stage]:
        """The stages that the campaign has come through, in order.

        Stages of an earlier configuration of the same campaign, which the present one does not need, are not among them.
        """
        with self._explained(), self._connection:
            self._connection.execute("BEGIN")  # one moment, also while another process goes on
            trail = self._connection.execute("SELECT position, key FROM trail ORDER BY position").fetchall()
            rows = {row.values[0]: row for row in _STAGES.rows(self._connection, "key IN (SELECT key FROM trail)")}
        found = []
        for place, (position, key) in enumerate(trail):
            if position != place or key not in rows or not rows[key].whole:
                raise SelectronError(
                    f"What {self.path} says of stage {place + 1} of the campaign is damaged: go on with: "
                    f"selectron resume {self.folder}, which does that stage again."
                )
            found.append(_stage(rows[key].values))
        return found

    def rewind(self) -> None:
        """The campaign is gone through from its beginning."""
        self._position = 0

    def _pass(self, key: str) -> None:
        """Notes that the campaign came through the stage ``key`` next."""
        position, self._position = self._position, self._position + 1
        with self._explained():
            row = self._connection.execute("SELECT key FROM trail WHERE position = ?", (position,)).fetchone()
            if row is not None and row[0] == key:
                return
            with self._connection:
                self._connection.execute("DELETE FROM trail WHERE position >= ?", (position,))
                self._connection.execute("INSERT INTO trail VALUES (?, ?)", (position, key))

    def find(self, key: str) -> Stage | None:
        """The finished stage ``key``, or None."""
        with self._explained():
            for row in list(_STAGES.rows(self._connection, "key = ?", (key,))):
                if row.whole:
                    return _stage(row.values)
                with self._connection:
                    _STAGES.set_aside(self._connection, row)
                self.tell(_STAGES.told(row, self.path))
        return None

    def stage(
        self,
        name: str,
        inputs: Mapping[str, Any],
        run: Callable[[], Mapping[str, Any]],
        *,
        arm: str = "",
        round: int = 0,
    ) -> Stage:
        """The stage ``name`` on ``inputs``: read where it is done, else run and committed.

        Args:
            name: of the stage.
            inputs: all that the output depends on, as plain JSON; large things by the names of their artifacts.
            run: gives the output as plain JSON; whatever it writes beside artifacts must be harmless when repeated.
                Entries ``core_s``, ``wall_s`` and ``started`` stand for times that cannot be taken here: of work done
                elsewhere, or of several stages at once.
            arm: which of the campaign's arms, "" for both.
            round: number of the round, 0 before the first.
        """
        key = stage_key(name, inputs, arm, round)
        found = self.find(key)
        if found is not None:
            self._pass(key)
            return found
        started, wall, core = time.time(), time.perf_counter(), core_seconds()
        self.beat(Activity(name, arm, round, "", 0, 0, started, started), at_once=True)
        output = dict(run())
        core_s = float(output.pop("core_s", core_seconds() - core))
        wall_s = float(output.pop("wall_s", time.perf_counter() - wall))
        began = float(output.pop("started", started))
        done = Stage(key, name, arm, round, dict(inputs), output, wall_s, core_s, began)
        row = (*done[:4], _json(done.inputs), _json(done.output), *done[6:])
        with self._explained(), self._connection:
            _STAGES.insert(self._connection, row, "ABORT")
        self._pass(key)
        # as a reader of the row will have it
        return _stage(row)

    def beat(self, activity: Activity, *, at_once: bool = False) -> None:
        """Notes what is being done, at most twice a second."""
        now = time.monotonic()
        if not at_once and now - self._last_beat < _HEARTBEAT_S:
            return
        self._last_beat = now
        with self._explained(), self._connection:
            self._connection.execute(
                "INSERT OR REPLACE INTO activity (id, stage, arm, round, label, done, total, started, updated)"
                " VALUES (1, ?, ?, ?, ?, ?, ?, ?, ?)",
                activity,
            )

    def activity(self) -> Activity | None:
        """What was being done last."""
        with self._explained():
            row = self._connection.execute(
                "SELECT stage, arm, round, label, done, total, started, updated FROM activity"
            ).fetchone()
        if row is None or not all(isinstance(one, kind) for one, kind in zip(row, _ACTIVITY, strict=True)):
            return None  # nothing, or damaged: it is for people who watch alone
        return Activity(*row)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            text = str(error)
            if "full" in text or "disk I/O" in text:
                raise SelectronError(
                    f"Cannot write {self.path}: the disk is full (or a quota is reached). Nothing that was finished is lost; "
                    f"free some space, then go on with: selectron resume {self.folder}"
                ) from error
            raise SelectronError(f"The state of the campaign, {self.path}, cannot be used: {text}.") from error


def stage_key(name: str, inputs: Mapping[str, Any], arm: str, round: int) -> str:
    """SHA-256 of what a stage is and depends on."""
    return sha256(_json({"name": name, "arm": arm, "round": round, "inputs": inputs}).encode()).hexdigest()


def digest(value: Any) -> str:
    """SHA-256 of plain JSON."""
    return sha256(_json(value).encode()).hexdigest()


def _stage(row: tuple[Any, ...]) -> Stage:
    key, name, arm, round, inputs, output, wall_s, core_s, started = row
    return Stage(key, name, arm, round, json.loads(inputs), json.loads(output), wall_s, core_s, started)


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def core_seconds() -> float:
    """Processor time of this process and of those it started that have ended, s."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def _escaped(path: Path) -> str:
    return os.fspath(path.absolute()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
