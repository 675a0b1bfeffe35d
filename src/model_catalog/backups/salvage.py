"""What can still be read of a damaged SQLite catalog, saved into a new one."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeAlias

from model_catalog.backups.restore import absolute, file_of_target, refuse_users
from model_catalog.concurrency.completion import run_to_completion
from model_catalog.concurrency.threads import to_thread
from model_catalog.connection.backup_files import free_backup_path, integrity_error, sqlite_uri
from model_catalog.connection.database_file import corrupt_error, sidecar_paths
from model_catalog.connection.error_mapping import map_errors
from model_catalog.connection.online_backup import atomic_file
from model_catalog.connection.target import Target
from model_catalog.errors import CatalogUnavailableError
from model_catalog.mapping.revisions import head_revision
from model_catalog.mapping.tables import Base
from model_catalog.schema.migrate import upgrade
from model_catalog.schema.revision import VERSION_TABLE, require_known_revision

_Row: TypeAlias = tuple[Any, ...]

_LAST_ID: Final = 2**63 - 1
# Rows are numbered one after the other, and a page holds some hundreds at the most.
_IDS_OF_A_PAGE: Final = 512


@dataclass(frozen=True, slots=True)
class RepairedTable:
    """
    What was saved of one table.

    `lost` are the ids that an index still names, or that lie where nothing can be read; `refused`
    counts the rows that can be read and say what no catalog may hold.
    """

    table: str
    kept: int
    lost: tuple[int, ...]
    refused: int


@dataclass(frozen=True, slots=True)
class RepairReport:
    """The new database, and what of each table is in it."""

    path: Path
    tables: tuple[RepairedTable, ...]

    @property
    def is_whole(self) -> bool:
        """Whether nothing is known to be lost."""
        return not any(saved.lost or saved.refused for saved in self.tables)


async def repair(
    target: Target | None = None, path: str | os.PathLike[str] | None = None
) -> RepairReport:
    """
    Save what can be read of a SQLite catalog into a new one, row by row; say what is lost.

    The damaged file is not written to, and stays where it is: `restore` puts the new one in its
    place. That lies beside it, as `catalog.db.repaired-20261123T140509Z`, unless `path` says
    otherwise. Values are taken as they are read: a text that was damaged and still is text, or a
    number that is another, cannot be told from a sound one.

    Raises CatalogInUseError while any process has the file open, and CatalogCorruptError where
    nothing can be read.
    """
    damaged, name = file_of_target(target)
    if not damaged.is_file():
        raise CatalogUnavailableError(name, "the file does not exist")
    refuse_users(damaged, name)
    to = free_backup_path(damaged, "repaired") if path is None else absolute(path)

    with map_errors(name), TemporaryDirectory(dir=to.parent, prefix=f".{to.name}.") as folder:
        # SQLite writes to what it opens: a log is read into its database.
        work, fresh = Path(folder, "damaged.db"), Path(folder, "fresh.db")
        await run_to_completion(to_thread(_copy_files, damaged, work))
        await upgrade(fresh, await to_thread(_revision_of, work, name))
        saved = await run_to_completion(to_thread(_save, work, fresh))
        await run_to_completion(to_thread(_publish, fresh, to))
    return RepairReport(to, saved)


def _copy_files(source: Path, to: Path) -> None:
    shutil.copyfile(source, to)
    for old, new in zip(sidecar_paths(source)[::2], sidecar_paths(to)[::2], strict=True):
        with suppress(FileNotFoundError):
            shutil.copyfile(old, new)


def _publish(fresh: Path, to: Path) -> None:
    with atomic_file(to) as part:
        shutil.copyfile(fresh, part)
        if fault := integrity_error(part):
            raise corrupt_error(repr(os.fspath(to)), fault)


class _Text(bytes):
    """What SQLite takes for text, and what may be none; a blob is bytes."""

    __slots__ = ()


def _connected(path: Path) -> sqlite3.Connection:
    raw = sqlite3.connect(sqlite_uri(path, "rw"), uri=True, isolation_level=None)
    raw.text_factory = _Text
    # Without it some damaged pages are read as rows that were never written.
    raw.execute("PRAGMA cell_size_check = ON")
    return raw


def _revision_of(work: Path, name: str) -> str:
    """The revision of what is to be saved, or the newest where it cannot be read."""
    with closing(_connected(work)) as raw:
        try:
            tables = {row[0].decode() for row in raw.execute("SELECT name FROM sqlite_master")}
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise corrupt_error(name, f"nothing in it can be read ({error})") from error
        if "models" not in tables:
            raise corrupt_error(name, "no table 'models' can be found in it")
        if VERSION_TABLE not in tables:
            return "0001"
        try:
            found = raw.execute(f"SELECT version_num FROM {VERSION_TABLE}").fetchone()  # noqa: S608
            revision: str = found[0].decode()
        except (sqlite3.Error, UnicodeDecodeError, TypeError):
            return head_revision()
    require_known_revision(revision, name)
    return revision


def _save(work: Path, fresh: Path) -> tuple[RepairedTable, ...]:
    with closing(_connected(work)) as old, closing(_connected(fresh)) as new:
        # As it is when a table is written whose parent is not there; what refers to nothing goes
        # at the end.
        new.execute("PRAGMA foreign_keys = OFF")
        new.execute("BEGIN")
        tables = [each.name for each in Base.metadata.sorted_tables if _columns(new, each.name)]
        saved = [_save_table(old, new, table) for table in tables]
        orphans = [(row[0].decode(), row[1]) for row in new.execute("PRAGMA foreign_key_check")]
        for table, rowid in orphans:
            new.execute(f'DELETE FROM "{table}" WHERE rowid = ?', (rowid,))  # noqa: S608
        new.execute("COMMIT")
    refused = [table for table, _ in orphans]
    return tuple(
        RepairedTable(
            each.table,
            each.kept - refused.count(each.table),
            each.lost,
            each.refused + refused.count(each.table),
        )
        for each in saved
    )


def _columns(raw: sqlite3.Connection, table: str) -> list[str]:
    try:
        return [row[1].decode() for row in raw.execute(f'PRAGMA table_info("{table}")')]
    except (sqlite3.Error, UnicodeDecodeError):
        return []


def _save_table(old: sqlite3.Connection, new: sqlite3.Connection, table: str) -> RepairedTable:
    columns = [name for name in _columns(new, table) if name in _columns(old, table)]
    if not columns:
        return RepairedTable(table, 0, (), 0)
    names = ", ".join(f'"{name}"' for name in columns)
    marks = ", ".join("?" * len(columns))
    insert = f'INSERT INTO "{table}" ({names}) VALUES ({marks})'  # noqa: S608 - our own names
    rows = _Rows(old, table, names)
    kept: set[int] = set()
    refused = 0
    for rowid, *values in rows:
        try:
            texts = [value.decode() if isinstance(value, _Text) else value for value in values]
            new.execute(insert, texts)
            kept.add(rowid)
        except (sqlite3.Error, UnicodeDecodeError):
            refused += 1
    known = rows.ids_of_indexes()
    lost = (known or rows.unreadable) - kept - rows.read
    return RepairedTable(table, len(kept), tuple(sorted(lost)), refused)


class _Rows:
    """The rows of a table that can be read, by their ids; what lies between is stepped over."""

    def __init__(self, raw: sqlite3.Connection, table: str, names: str) -> None:
        self._raw = raw
        self._table = table
        # Not by an index: that may name rows which are not there.
        select = f'SELECT rowid, {names} FROM "{table}" NOT INDEXED'  # noqa: S608
        self._from = f"{select} WHERE rowid >= ? ORDER BY rowid"
        self.read: set[int] = set()
        self.unreadable: set[int] = set()

    def __iter__(self) -> Iterator[_Row]:
        start: int | None = -_LAST_ID
        while start is not None:
            last = start - 1
            try:
                for row in self._raw.execute(self._from, (start,)):
                    last = row[0]
                    yield from self._new(row)
            except sqlite3.Error:
                # sqlite3 reads one row ahead, and forgets it where the one behind it is damaged.
                row = self._first(last + 1)
                if row is None:
                    start = self._behind(last)
                else:
                    yield from self._new(row)
                    start = row[0] + 1
            else:
                start = None

    def _new(self, row: _Row) -> Iterator[_Row]:
        # A damaged page may lead back to one that was read.
        if row[0] not in self.read:
            self.read.add(row[0])
            yield row

    def _first(self, rowid: int) -> _Row | None:
        """The first row from an id on; None where it cannot be read, or there is none."""
        try:
            row: _Row | None = self._raw.execute(f"{self._from} LIMIT 1", (rowid,)).fetchone()
        except sqlite3.Error:
            return None
        return row

    def _behind(self, last: int) -> int | None:
        """The smallest id from which on rows can be read again; None where there is none."""
        # The first rows may be the damaged ones, and no ids lie far below 0.
        first = max(last, 0) + 1
        self.unreadable.add(first)
        for rowid in range(first + 1, first + _IDS_OF_A_PAGE):
            if self._reads_from(rowid):
                return rowid
            self.unreadable.add(rowid)
        # They lie far apart, or it is the page above many that is damaged.
        low, step = first + _IDS_OF_A_PAGE - 1, 1
        while not self._reads_from(low + step):
            low += step
            step *= 2
            if low + step > _LAST_ID:
                return None
        high = low + step
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._reads_from(middle) else (middle, high)
        return high

    def _reads_from(self, rowid: int) -> bool:
        try:
            self._raw.execute(f"{self._from} LIMIT 1", (rowid,)).fetchone()
        except sqlite3.Error:
            return False
        return True

    def ids_of_indexes(self) -> set[int]:
        """The ids of all rows that any index still names."""
        found: set[int] = set()
        with suppress(sqlite3.Error, UnicodeDecodeError):
            for row in self._raw.execute(f'PRAGMA index_list("{self._table}")').fetchall():
                select = f'SELECT rowid FROM "{self._table}" INDEXED BY "{row[1].decode()}"'  # noqa: S608
                with suppress(sqlite3.Error):
                    found.update(rowid for (rowid,) in self._raw.execute(select))
        return found
