"""Keeps what other programs have added to a SQLite file while the tables of a catalog change."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from model_catalog.connection.backup_files import is_unresolved
from model_catalog.connection.error_mapping import to_catalog_error
from model_catalog.errors import UpgradeFailedError, shown
from model_catalog.mapping.added_objects import added_names
from model_catalog.mapping.base import Base
from model_catalog.schema.postgres_schema import quote_name

# With `legacy_alter_table` a renamed table is not renamed in views and triggers: a rebuilt table
# gets the name that they use. With `writable_schema` ALTER TABLE ignores what it cannot resolve,
# such as a view of a missing table, or an index with a collation that only its program registers.
_PRAGMAS: Final = ("legacy_alter_table", "writable_schema")

log = logging.getLogger("model_catalog.schema")


@dataclass(frozen=True, slots=True)
class _HostObject:
    """A trigger or an index of another program on a table of the catalog."""

    kind: str
    name: str
    table: str
    sql: str

    def __str__(self) -> str:
        return f"the {self.kind} {shown(self.name)} on {self.table}"


@contextmanager
def keep_host_objects(connection: sa.Connection, name: str, goal: str) -> Iterator[None]:
    """
    Keep the views, triggers and indexes of other programs while revisions run in the block.

    SQLite drops the triggers and indexes of a table that is rebuilt. So those of other programs are
    dropped before, and created again afterwards. Triggers do not run for the changes of a revision.
    PostgreSQL changes tables in place: there this does nothing.

    Raises UpgradeFailedError with the object that cannot be created again.
    """
    if connection.dialect.name != "sqlite":
        yield
        return
    objects = _list_host_objects(connection)
    for each in objects:
        connection.exec_driver_sql(f"DROP {each.kind.upper()} {quote_name(each.name)}")
    with _tolerant_alter_table(connection):
        yield
    for each in objects:
        _create_again(connection, each, name, goal)
    if objects:
        log.info(
            "kept in the catalog at %s: %s",
            name,
            ", ".join(map(str, objects)),
            extra={"model_catalog_url": name},
        )


def refused_changes(connection: sa.Connection) -> list[str]:
    """
    Return which changes of the catalog's tables SQLite refuses, one sentence each. Changes nothing.

    A trigger, an index or a foreign key of another program may refer to what does not exist, or to
    a function or a collation that only that program registers.
    """
    objects = _list_host_objects(connection)
    problems = []
    for table in Base.metadata.tables.values():
        columns = ", ".join(f'"{column.name}" = "{column.name}"' for column in table.columns)
        changes = {
            "INSERT": f'INSERT INTO "{table.name}" DEFAULT VALUES',
            "UPDATE": f'UPDATE "{table.name}" SET {columns}',  # noqa: S608 - our own names
            "DELETE": f'DELETE FROM "{table.name}"',  # noqa: S608
        }
        for kind, change in changes.items():
            try:
                # EXPLAIN only compiles the statement, with the triggers and indexes of the table.
                connection.exec_driver_sql(f"EXPLAIN {change}").all()
            except sa.exc.OperationalError as error:
                if not is_unresolved(error):
                    raise
                added = ", ".join(str(each) for each in objects if each.table == table.name)
                cause = f"; other programs have created {added}" if added else ""
                problems.append(f"{kind} in {table.name}: {error.driver_exception}{cause}")
    return problems


def _list_host_objects(connection: sa.Connection) -> list[_HostObject]:
    indexes = {index.name for table in Base.metadata.tables.values() for index in table.indexes}
    ours = indexes | added_names()
    # Without the indexes of constraints, which have no SQL.
    rows = connection.exec_driver_sql(
        "SELECT type, name, lower(tbl_name), sql FROM sqlite_master"
        " WHERE type IN ('trigger', 'index') AND sql IS NOT NULL ORDER BY rowid"
    ).all()
    return [
        _HostObject(*row) for row in rows if row[2] in Base.metadata.tables and row[1] not in ours
    ]


def _create_again(connection: sa.Connection, each: _HostObject, name: str, goal: str) -> None:
    if not sa.inspect(connection).has_table(each.table):
        log.warning(
            "%s was dropped with its table, at %s: %s",
            each,
            name,
            each.sql,
            extra={"model_catalog_url": name},
        )
        return
    try:
        connection.exec_driver_sql(each.sql)
    except sa.exc.DBAPIError as error:
        reason = to_catalog_error(error, name)
        raise UpgradeFailedError(
            name,
            goal,
            f"{each} cannot be created again on this connection ({error.driver_exception}). "
            "Another program has created it: upgrade over that program's own engine, or drop it "
            f"before and create it afterwards: {each.sql}",
        ) from reason


@contextmanager
def _tolerant_alter_table(connection: sa.Connection) -> Iterator[None]:
    before = [_pragma(connection, name) for name in _PRAGMAS]
    for name in _PRAGMAS:
        _pragma(connection, f"{name} = 1")
    try:
        yield
    finally:
        if not connection.invalidated:
            for name, value in zip(_PRAGMAS, before, strict=True):
                _pragma(connection, f"{name} = {value}")


def _pragma(connection: sa.Connection, setting: str) -> Any:
    # Not through SQLAlchemy, whose listeners stop each statement of a cancelled migration.
    cursor = connection.connection.cursor()
    try:
        cursor.execute(f"PRAGMA {setting}")
        return (cursor.fetchone() or (None,))[0]
    finally:
        cursor.close()
