"""Rows of SQLite tables that notice damage: each carries a checksum of all that it holds.

SQLite itself checks the shape of a file, not its content: a flipped bit in a number is read as another number.
"""

from __future__ import annotations

import json
import sqlite3
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from selectron.errors import SelectronError
from selectron.wording import counted

Value = None | int | float | str | bytes
"""What a column of SQLite holds."""

_ASIDE = """CREATE TABLE IF NOT EXISTS damaged (
    id INTEGER PRIMARY KEY, origin TEXT NOT NULL, content TEXT NOT NULL, time TEXT NOT NULL)"""
ASIDE = "it is set aside (in the table 'damaged') and not used"
_OF_ROWS = ("NULL value", "NUMERIC value", "TEXT value", "non-unique", "CHECK constraint")
_sound: set[tuple[int, int, int]] = set()  # files (device, inode, time of change) whose shape this process has checked


def checksum(*values: Value) -> bytes:
    """BLAKE2b, 8 bytes, of ``values`` with their types and lengths."""
    digest = blake2b(digest_size=8)
    for value in values:
        match value:
            case bytes():
                kind, content = b"b", value
            case str():
                kind, content = b"s", value.encode("utf-8", "surrogateescape")
            case float():
                kind, content = b"f", struct.pack("<d", value)
            case _:
                kind, content = b"n", str(value).encode()
        digest.update(b"%s%d:" % (kind, len(content)))
        digest.update(content)
    return digest.digest()


class Row(NamedTuple):
    """A row as it was read: its number in the table, its values, and whether they are what was written."""

    id: int
    values: tuple[Value, ...]
    whole: bool


class CheckedTable(NamedTuple):
    """A table whose rows carry a checksum of ``columns``.

    ``what`` is a row for people, and ``then`` what becomes of a damaged one; ``plausible`` judges a row that was written
    before there were checksums.
    """

    name: str
    columns: tuple[str, ...]
    what: str
    then: str
    plausible: Callable[..., bool]

    def insert(self, connection: sqlite3.Connection, values: Sequence[Value], instead: str = "IGNORE") -> None:
        """Puts in a row; where there is one of that key, ``instead`` says what happens (IGNORE, REPLACE, ABORT)."""
        marks = ", ".join("?" * len(self.columns))
        done = connection.execute(
            f"INSERT OR {instead} INTO {self.name} ({', '.join(self.columns)}) VALUES ({marks})", values
        )
        if done.rowcount == 1:  # of what SQLite keeps: a REAL column makes 2.0 of 2
            connection.execute(
                f"UPDATE {self.name} SET checksum = row_checksum({', '.join(self.columns)}) WHERE rowid = ?",
                (done.lastrowid,),
            )

    def rows(self, connection: sqlite3.Connection, where: str = "1", values: Sequence[Value] = ()) -> Iterator[Row]:
        """The rows that ``where`` (SQL, all that follows WHERE) names, judged by their checksums.

        In a file of before there were checksums, which may only be read, all that is plausible counts as whole.
        """
        query = f"SELECT rowid, {', '.join(self.columns)}, {{}} FROM {self.name} WHERE {where}"
        marked = True
        try:
            found = connection.execute(query.format("checksum"), values)
        except sqlite3.OperationalError:
            marked = has_checksums(connection, self)
            if marked:
                raise
            found = connection.execute(query.format("NULL"), values)
        for number, *content, known in found:
            whole = known == checksum(*content) if marked else _plausible(self, content)
            yield Row(number, tuple(content), whole)

    def set_aside(self, connection: sqlite3.Connection, row: Row) -> None:
        """Moves ``row`` to the table ``damaged``, where nothing reads it and it is not lost."""
        content = {
            name: value.hex() if isinstance(value, bytes) else value
            for name, value in zip(self.columns, row.values, strict=True)
        }
        connection.execute(_ASIDE)
        connection.execute(
            "INSERT INTO damaged (origin, content, time) VALUES (?, ?, ?)",
            (self.name, json.dumps(content), datetime.now(UTC).isoformat(timespec="seconds")),
        )
        connection.execute(f"DELETE FROM {self.name} WHERE rowid = ?", (row.id,))

    def told(self, row: Row, path: Path) -> str:
        """The sentence for a row that was set aside."""
        name = row.values[0]
        called = f" ({name[:12]}…)" if isinstance(name, str) and name.isalnum() and name.isascii() else ""
        return f"{self.what.capitalize()} {row.id}{called} of {path} is damaged: {self.then}."


def connect(path: str, *, uri: bool = False, **options: object) -> sqlite3.Connection:
    """A connection for checked tables: text that is damaged can be read, so that its checksum can tell."""
    connection: sqlite3.Connection = sqlite3.connect(path, uri=uri, timeout=60.0, **options)  # type: ignore[call-overload]
    connection.text_factory = lambda content: content.decode("utf-8", "surrogateescape")
    connection.create_function("row_checksum", -1, checksum, deterministic=True)
    return connection


def look_through(connection: sqlite3.Connection, tables: Sequence[CheckedTable], path: Path) -> list[str]:
    """Has SQLite look through the file; an index that does not fit its table is made anew, rows that are damaged set aside.

    Gives a sentence for each thing done. Raises SelectronError where the file is damaged beyond that.
    """
    state = path.stat()
    key = (state.st_dev, state.st_ino, state.st_mtime_ns)
    done: list[str] = []
    if key not in _sound and (wrong := _wrong(connection)):
        try:
            connection.execute("REINDEX")
        except sqlite3.DatabaseError:
            raise _beyond(path, wrong) from None
        done.append(f"An index of {path} was damaged and is made anew from its table.")
        if wrong := _wrong(connection):
            raise _beyond(path, wrong)
        for table in tables:  # what the index did not fit may have been the damaged one
            for row in list(table.rows(connection)):
                if not row.whole:
                    table.set_aside(connection, row)
                    done.append(table.told(row, path))
    _sound.add(key)
    return done


def refuse_damage(connection: sqlite3.Connection, path: Path) -> None:
    """Raises SelectronError where SQLite finds something wrong with the file; for those that only read."""
    if wrong := _wrong(connection):
        raise _beyond(path, wrong)


def _beyond(path: Path, wrong: Sequence[str]) -> SelectronError:
    return SelectronError(
        f"{path} is damaged ({wrong[0]}): put it back from a copy; what is left of it can be saved into a new file with "
        f"sqlite3 {path} .recover | sqlite3 NEW"
    )


def _wrong(connection: sqlite3.Connection) -> list[str]:
    """What SQLite finds wrong with the file; what is wrong with single rows is left to their checksums."""
    lines = [str(line) for (text,) in connection.execute("PRAGMA integrity_check") for line in str(text).splitlines()]
    return [line for line in lines if line != "ok" and not line.startswith((*_OF_ROWS, "***"))]


def add_checksums(
    connection: sqlite3.Connection,
    tables: Sequence[CheckedTable],
    path: Path,
    implausible: Mapping[str, str] | None = None,
) -> list[str]:
    """Gives the rows of ``tables`` checksums where the file is from before there were any; within a transaction.

    Rows that cannot be what was written are set aside, as are those that ``implausible`` names (SQL by table). Gives a
    sentence for what was done.
    """
    marked, aside = 0, 0
    old = [table for table in tables if not has_checksums(connection, table)]
    wrong = {
        table.name: {row.id for row in table.rows(connection, (implausible or {}).get(table.name, "0"))}
        for table in old
    }
    for table in old:
        rows = list(table.rows(connection))
        connection.execute(f"ALTER TABLE {table.name} ADD COLUMN checksum BLOB")
        for row in rows:
            if row.whole and row.id not in wrong[table.name]:
                mark = checksum(*row.values)
                connection.execute(f"UPDATE {table.name} SET checksum = ? WHERE rowid = ?", (mark, row.id))
                marked += 1
            else:
                table.set_aside(connection, row)
                aside += 1
    if not marked and not aside:
        return []
    left = f"; {counted(aside, 'row')} that cannot be right {'is' if aside == 1 else 'are'} set aside" if aside else ""
    return [f"{path} is from before rows had checksums: {counted(marked, 'row')} got one{left}."]


def has_checksums(connection: sqlite3.Connection, table: CheckedTable) -> bool:
    """Whether the table is from after there were checksums."""
    return any(row[1] == "checksum" for row in connection.execute(f"PRAGMA table_info({table.name})"))


def _plausible(table: CheckedTable, values: Sequence[Value]) -> bool:
    try:
        return table.plausible(*values)
    except Exception:  # wrong types fail in ways of their own, and mean the same
        return False
