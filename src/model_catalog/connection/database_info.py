"""Facts about the database of an engine, and the driver's connection below SQLAlchemy's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncConnection

from model_catalog.connection.database_file import sidecar_paths
from model_catalog.connection.target import display_name, sqlite_path, validate_schema

# SQLAlchemy's execution option. Its entry for None is the schema of tables that name none, as ours.
_SCHEMAS: Final = "schema_translate_map"

HOST: Final = "model_catalog_host"
"""The execution option with the host whose models a catalog works on; see `host_of`."""


@dataclass(slots=True)
class DatabaseInfo:
    """What an executor knows about its database. Executors of one engine share it."""

    name: str
    """The name in messages: a quoted path, or a URL without its password."""
    dialect: str
    """`sqlite` or `postgresql`."""
    cascades: bool
    """Whether the database itself deletes rows that refer to a deleted row."""
    files: tuple[Path, ...]
    """The files of a SQLite database; empty for PostgreSQL and for a database in memory."""
    knows_files: bool
    """Whether `files` is what the database says. A host's engine tells when it is first used."""
    host: str = ""
    """The host whose models the executor works on; see `host_of`."""

    def set_path(self, path: str) -> None:
        """Record the path that SQLite tells; empty for a database in memory."""
        self.knows_files = True
        self.files = _with_sidecars(Path(path)) if path else ()
        self.name = repr(path or ":memory:")


def database_files(engine: Engine) -> tuple[Path, ...]:
    """Return the files that the URL of a SQLite engine names; empty for other databases."""
    path = sqlite_path(engine.url) if engine.dialect.name == "sqlite" else None
    return () if path is None else _with_sidecars(path)


def _with_sidecars(path: Path) -> tuple[Path, ...]:
    path = path.absolute()
    return (path, *sidecar_paths(path))


def main_path(dbapi_connection: Any) -> str:
    """Return the path that a SQLite connection has opened; empty for a database in memory."""
    cursor = dbapi_connection.cursor()
    # The first row is the main database.
    cursor.execute("PRAGMA database_list")
    path = cursor.fetchone()[2]
    cursor.close()
    return str(path or "")


def catalog_schema(source: Connection | Engine) -> str | None:
    """
    Return the schema with the catalog's tables; None is the default schema of the connection.

    It is in SQLAlchemy's option `schema_translate_map` of a connection or an engine. The option is
    the only way in which a schema reaches a statement. A host may have set it itself.
    """
    schemas = source.get_execution_options().get(_SCHEMAS) or {}
    schema: str | None = schemas.get(None)
    return schema


def database_name(source: Connection | Engine) -> str:
    """
    Return the name of a host's database for messages, with the schema of the catalog's tables.

    Raises InvalidTargetError if the schema cannot contain a catalog.
    """
    url, schema = source.engine.url, catalog_schema(source)
    validate_schema(schema, source.dialect.name, display_name(url))
    return display_name(url, schema)


def schema_option(source: Connection | Engine, schema: str | None) -> dict[str, Any]:
    """Return the execution option for a catalog in this schema, with the host's other entries."""
    return {_SCHEMAS: {**(source.get_execution_options().get(_SCHEMAS) or {}), None: schema}}


def host_of(source: Connection | Engine) -> str:
    """
    Return the host whose models a catalog works on; `""` for a catalog without a host.

    It is an execution option of the engine or of the connection. The option is the only way in
    which it reaches a statement: every statement of a table with a column `host` compares it.
    """
    host: str = source.get_execution_options().get(HOST) or ""
    return host


def scope_options(
    source: Connection | Engine, schema: str | None, host: str | None
) -> dict[str, Any]:
    """Return the execution options that set a schema and a host; None leaves one unset."""
    options = {} if schema is None else schema_option(source, schema)
    return options if host is None else {**options, HOST: host}


@contextmanager
def use_scope(
    connection: Connection, schema: str | None, host: str | None = None
) -> Iterator[None]:
    """
    Use a schema for the catalog's tables, and a host, in a block, on another program's connection.

    With None the connection's own option stays.
    """
    options = scope_options(connection, schema, host)
    if not options:
        yield
        return
    known = connection.get_execution_options()
    before = {name: known.get(name) for name in options}
    connection.execution_options(**options)
    try:
        yield
    finally:
        connection.execution_options(**before)


def is_autocommit(connection: Connection) -> bool:
    """Return whether the driver commits each statement, or leaves transactions to the catalog."""
    dbapi_connection: Any = connection.connection.dbapi_connection
    return connection.dialect.detect_autocommit_setting(dbapi_connection)


def driver_connection(connection: Connection | AsyncConnection | Any) -> Any:
    """
    Return the driver's own connection: a `sqlite3.Connection`, an `aiosqlite.Connection`, ...

    Accepts a connection of SQLAlchemy, or the DBAPI connection that its events pass. It is for
    steps that SQLAlchemy has no method for, such as `interrupt()`. Call the methods of an async
    driver's connection with `await`, outside SQLAlchemy's greenlet.
    """
    if isinstance(connection, AsyncConnection):
        connection = connection.sync_connection
    if isinstance(connection, Connection):
        connection = connection.connection
    # The DBAPI connection of a synchronous driver is the driver's own.
    return getattr(connection, "driver_connection", connection)
