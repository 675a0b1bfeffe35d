"""Repairs a corrupt SQLite catalog: copies its readable rows into a new database."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeAlias

from sqlalchemy import Column, Integer
from sqlalchemy.dialects.sqlite.base import SQLiteDialect

from model_catalog.backups.restore import file_of_target, new_file_path, require_unused
from model_catalog.concurrency.completion import run_to_completion
from model_catalog.concurrency.threads import to_thread
from model_catalog.connection.backup_files import free_backup_path, integrity_error, sqlite_uri
from model_catalog.connection.database_file import (
    corrupt_error,
    require_regular_file,
    sidecar_paths,
)
from model_catalog.connection.error_mapping import map_errors
from model_catalog.connection.online_backup import atomic_file
from model_catalog.connection.target import Target
from model_catalog.errors import CatalogUnavailableError
from model_catalog.mapping.base import Base
from model_catalog.mapping.column_types import (
    PathText,
    UnixTimestamp,
    decode_path,
    decode_timestamp,
)
from model_catalog.mapping.revisions import (
    VERSION_TABLE,
    canonical_revision,
    head_revision,
    known_revisions,
)
from model_catalog.schema.migrate import upgrade
from model_catalog.schema.revision import require_known_revision

_Row: TypeAlias = tuple[Any, ...]

_MAX_ROWID: Final = 2**63 - 1
# Ids are usually consecutive, and a page holds at most some hundreds of rows.
_SCAN_LENGTH: Final = 512
_DIALECT: Final = SQLiteDialect()


@dataclass(frozen=True, slots=True)
class RepairedTable:
    """
    How many rows of a table were copied, and which were not.

    `kept` counts the copied rows. `lost` are the ids of rows that an index still lists, or, without
    a readable index, the ids at unreadable places. `refused` counts the rows that can be read but
    that a catalog may not contain. `mended` are the row ids and columns of values that were
    replaced: by NULL, or in a column without NULL by its default or by readable text.
    """

    table: str
    kept: int
    lost: tuple[int, ...]
    refused: int
    mended: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True, slots=True)
class RepairReport:
    """The path of the new database, and the result for each table."""

    path: Path
    tables: tuple[RepairedTable, ...]

    @property
    def is_whole(self) -> bool:
        """Whether no row is known to be lost."""
        return not any(result.lost or result.refused for result in self.tables)


async def repair(
    target: Target | None = None, path: str | os.PathLike[str] | None = None
) -> RepairReport:
    """
    Copy the readable rows of a corrupt SQLite catalog into a new file, and report the others.

    The corrupt file is not changed; use `restore` to replace it with the new file. Without `path`
    the new file is created beside it, as `catalog.db.repaired-20261123T140509Z`. Values are copied
    as they are read. A wrong value that still has the right type cannot be detected.

    Rows that can be read are refused, and counted as `refused`, if they break a constraint or refer
    to a missing row. Values that are not a time, not a number or not UTF-8 are mended.

    Raises CatalogUnavailableError for a missing file, CatalogInUseError while any process has it
    open, CatalogCorruptError if nothing can be read, and SchemaTooNewError for a file of a newer
    package. Raises InvalidTargetError for a database that is not a file of its own, and for a
    `path` that exists.
    """
    damaged, name = file_of_target(target, "repair it with the tools of the server")
    try:
        require_regular_file(damaged, name)
    except FileNotFoundError as error:
        raise CatalogUnavailableError(name, "the file does not exist") from error
    require_unused(damaged, name)
    to = free_backup_path(damaged, "repaired") if path is None else new_file_path(path)

    with map_errors(name), TemporaryDirectory(dir=to.parent, prefix=f".{to.name}.") as folder:
        # SQLite may write to a file that it opens, for example to apply a log. So it opens a copy.
        work, fresh = Path(folder, "damaged.db"), Path(folder, "fresh.db")
        await run_to_completion(to_thread(_copy_files, damaged, work))
        await upgrade(fresh, await to_thread(_read_revision, work, name))
        tables = await run_to_completion(to_thread(_copy_tables, work, fresh))
        await run_to_completion(to_thread(_publish, fresh, to))
    return RepairReport(to, tables)


def _copy_files(source: Path, destination: Path) -> None:
    shutil.copyfile(source, destination)
    sidecars = zip(sidecar_paths(source)[::2], sidecar_paths(destination)[::2], strict=True)
    for old, new in sidecars:
        with suppress(FileNotFoundError):
            shutil.copyfile(old, new)


def _publish(fresh: Path, destination: Path) -> None:
    with atomic_file(destination) as partial:
        shutil.copyfile(fresh, partial)
        if problem := integrity_error(partial):
            raise corrupt_error(repr(os.fspath(destination)), problem)


class _RawText(bytes):
    """The bytes of a text value, which may not be UTF-8. A BLOB is plain `bytes`."""

    __slots__ = ()


def _connect(path: Path) -> sqlite3.Connection:
    raw = sqlite3.connect(sqlite_uri(path, "rw"), uri=True, isolation_level=None)
    raw.text_factory = _RawText
    # Without this check, some corrupt pages are read as rows that were never written.
    raw.execute("PRAGMA cell_size_check = ON")
    return raw


def _read_revision(work: Path, name: str) -> str:
    """Return the revision of a corrupt catalog; the newest revision if it cannot be read."""
    with closing(_connect(work)) as raw:
        try:
            tables = {row[0].decode() for row in raw.execute("SELECT name FROM sqlite_master")}
        except (sqlite3.Error, UnicodeDecodeError) as error:
            reason = f"nothing in it can be read ({error})"
            raise corrupt_error(name, reason, is_readable=False) from error
        if "models" not in tables:
            raise corrupt_error(name, "it has no readable table 'models'", is_readable=False)
        if VERSION_TABLE not in tables:
            return known_revisions()[0]
        try:
            row = raw.execute(f"SELECT version_num FROM {VERSION_TABLE}").fetchone()  # noqa: S608
            revision = canonical_revision(row[0].decode())
        except (sqlite3.Error, UnicodeDecodeError, TypeError):
            return head_revision()
    require_known_revision(revision, name)
    return revision


def _copy_tables(work: Path, fresh: Path) -> tuple[RepairedTable, ...]:
    with closing(_connect(work)) as old, closing(_connect(fresh)) as new:
        # A row may be copied before the row that it refers to. Rows whose parent is missing are
        # deleted at the end.
        new.execute("PRAGMA foreign_keys = OFF")
        new.execute("BEGIN")
        tables = [table.name for table in Base.metadata.sorted_tables if _columns(new, table.name)]
        results = [_copy_table(old, new, table) for table in tables]
        orphans = [(row[0].decode(), row[1]) for row in new.execute("PRAGMA foreign_key_check")]
        for table, rowid in orphans:
            new.execute(f'DELETE FROM "{table}" WHERE rowid = ?', (rowid,))  # noqa: S608
        new.execute("COMMIT")
    refused = [table for table, _ in orphans]
    return tuple(
        RepairedTable(
            result.table,
            result.kept - refused.count(result.table),
            result.lost,
            result.refused + refused.count(result.table),
            result.mended,
        )
        for result in results
    )


def _columns(raw: sqlite3.Connection, table: str) -> list[str]:
    try:
        return [row[1].decode() for row in raw.execute(f'PRAGMA table_info("{table}")')]
    except (sqlite3.Error, UnicodeDecodeError):
        return []


def _copy_table(old: sqlite3.Connection, new: sqlite3.Connection, table: str) -> RepairedTable:
    columns = [name for name in _columns(new, table) if name in _columns(old, table)]
    if not columns:
        return RepairedTable(table, 0, (), 0)
    names = ", ".join(f'"{name}"' for name in columns)
    marks = ", ".join("?" * len(columns))
    insert = f'INSERT INTO "{table}" ({names}) VALUES ({marks})'  # noqa: S608 - our own names
    rows = _ReadableRows(old, table, names)
    mend = [_mender(Base.metadata.tables[table].columns[name]) for name in columns]
    kept: set[int] = set()
    mended: list[tuple[int, str]] = []
    refused = 0
    for rowid, *values in rows:
        whole = [mend_value(value) for mend_value, value in zip(mend, values, strict=True)]
        try:
            new.execute(insert, whole)
        except sqlite3.Error:
            refused += 1
            continue
        kept.add(rowid)
        pairs = zip(columns, values, whole, strict=True)
        mended += [(rowid, name) for name, old, new_ in pairs if _differ(old, new_)]
    expected = rows.ids_in_indexes() or rows.unreadable
    lost = expected - kept - rows.read
    return RepairedTable(table, len(kept), tuple(sorted(lost)), refused, tuple(mended))


def _differ(old: object, new: object) -> bool:
    return bytes(old) != str(new).encode() if isinstance(old, _RawText) else old != new


def _mender(column: Column[Any]) -> Callable[[Any], Any]:
    """Return the function that replaces a value which another program wrote and no model has."""
    is_time = isinstance(column.type, UnixTimestamp)
    is_number = is_time or isinstance(column.type, Integer)

    def mend(value: Any) -> Any:
        if is_number:
            is_valid = value is None or type(value) is int
            if is_valid and (not is_time or value is None or decode_timestamp(value) is not None):
                return value
            return None if column.nullable else 0
        if not isinstance(value, bytes):
            return value
        if isinstance(column.type, PathText) and not isinstance(value, _RawText):
            # An old release stored the bytes of a path as a BLOB.
            return column.type.process_bind_param(decode_path(value), _DIALECT)
        text = value.decode("utf-8", "replace")
        if text.encode() == value and "\0" not in text:
            return text
        return None if column.nullable else text.replace("\0", "\ufffd")

    return mend


class _ReadableRows:
    """Iterates over the readable rows of a table, by rowid, and skips unreadable ranges."""

    def __init__(self, raw: sqlite3.Connection, table: str, names: str) -> None:
        self._raw = raw
        self._table = table
        # Not by an index, because a corrupt index may list rows that do not exist.
        select = f'SELECT rowid, {names} FROM "{table}" NOT INDEXED'  # noqa: S608
        self._select_from = f"{select} WHERE rowid >= ? ORDER BY rowid"
        self.read: set[int] = set()
        self.unreadable: set[int] = set()

    def __iter__(self) -> Iterator[_Row]:
        start: int | None = -_MAX_ROWID
        while start is not None:
            last = start - 1
            try:
                for row in self._raw.execute(self._select_from, (start,)):
                    last = row[0]
                    yield from self._if_new(row)
            except sqlite3.Error:
                # sqlite3 reads one row ahead, and drops it if the row after it is unreadable.
                row = self._first_from(last + 1)
                if row is None:
                    start = self._next_readable(last)
                else:
                    yield from self._if_new(row)
                    start = row[0] + 1
            else:
                start = None

    def _if_new(self, row: _Row) -> Iterator[_Row]:
        # A corrupt page may point back to a page that was read already.
        if row[0] not in self.read:
            self.read.add(row[0])
            yield row

    def _first_from(self, rowid: int) -> _Row | None:
        """Return the first row whose id is at least `rowid`; None if unreadable or missing."""
        try:
            row: _Row | None = self._raw.execute(
                f"{self._select_from} LIMIT 1", (rowid,)
            ).fetchone()
        except sqlite3.Error:
            return None
        return row

    def _next_readable(self, last: int) -> int | None:
        """Return the smallest id after `last` from which rows can be read, or None."""
        # Negative ids are not searched: the first page may be corrupt, and ids start at 1.
        first = max(last, 0) + 1
        self.unreadable.add(first)
        for rowid in range(first + 1, first + _SCAN_LENGTH):
            if self._can_read_from(rowid):
                return rowid
            self.unreadable.add(rowid)
        # The ids are far apart, or an inner page above many rows is corrupt: double the step until
        # a row can be read, then search the boundary by bisection.
        low, step = first + _SCAN_LENGTH - 1, 1
        while not self._can_read_from(low + step):
            low += step
            step *= 2
            if low + step > _MAX_ROWID:
                return None
        high = low + step
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._can_read_from(middle) else (middle, high)
        return high

    def _can_read_from(self, rowid: int) -> bool:
        try:
            self._raw.execute(f"{self._select_from} LIMIT 1", (rowid,)).fetchone()
        except sqlite3.Error:
            return False
        return True

    def ids_in_indexes(self) -> set[int]:
        """Return the row ids that any readable index of the table lists."""
        ids: set[int] = set()
        with suppress(sqlite3.Error, UnicodeDecodeError):
            for row in self._raw.execute(f'PRAGMA index_list("{self._table}")').fetchall():
                select = f'SELECT rowid FROM "{self._table}" INDEXED BY "{row[1].decode()}"'  # noqa: S608
                with suppress(sqlite3.Error):
                    ids.update(rowid for (rowid,) in self._raw.execute(select))
        return ids
