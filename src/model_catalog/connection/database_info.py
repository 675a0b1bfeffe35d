"""Facts about the database of an engine, and the driver's connection below SQLAlchemy's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncConnection

from model_catalog.connection.database_file import sidecar_paths


@dataclass(frozen=True, slots=True)
class DatabaseInfo:
    """What an executor knows about its database."""

    name: str
    """The name in messages: a quoted path, or a URL without its password."""
    dialect: str
    """`sqlite` or `postgresql`."""
    cascades: bool
    """Whether the database itself deletes rows that refer to a deleted row."""
    files: tuple[Path, ...]
    """The files of a SQLite database; empty for PostgreSQL and for a database in memory."""


def database_files(engine: Engine) -> tuple[Path, ...]:
    """Return a SQLite database's file and its sidecar files; empty for other databases."""
    name = engine.url.database
    if engine.dialect.name != "sqlite" or not name or name == ":memory:":
        return ()
    path = Path(name).absolute()
    return (path, *sidecar_paths(path))


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
