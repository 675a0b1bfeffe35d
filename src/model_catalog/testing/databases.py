"""Temporary databases: copies of a template that each process migrates once."""

from __future__ import annotations

import atexit
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy import URL

from model_catalog.concurrency.context_managers import outer_contextmanager
from model_catalog.concurrency.loop_thread import LoopThread
from model_catalog.connection.error_mapping import map_errors
from model_catalog.connection.target import mask_secrets, resolve_target
from model_catalog.errors import InvalidTargetError
from model_catalog.opening import open_catalog
from model_catalog.repository.model_catalog import ModelCatalog
from model_catalog.schema.host_connection import upgrade_connection
from model_catalog.schema.migrate import upgrade

DATABASE_PREFIX: Final = "model_catalog_test_"
"""The beginning of the names of temporary PostgreSQL databases. A killed process leaves its own."""


@contextmanager
def temporary_database(server: str | URL | None = None) -> Iterator[URL]:
    """
    Create a database with an empty catalog, and remove it when the block ends.

    Yields its URL, for `open_catalog` or for an engine of your own. Without `server` it is a SQLite
    file in a temporary folder. Otherwise `server` is the URL of a PostgreSQL database. The new one
    is created on the same server, and its URL has the same driver. The user must be allowed to
    create databases, and psycopg must be installed. Connections that are still open at the end are
    closed by the server.

    The first call of a process migrates a template, which takes about half a second. It is removed
    when the process exits.

    Raises InvalidTargetError, CatalogUnavailableError, and what `upgrade` raises.
    """
    if server is None:
        with TemporaryDirectory(prefix="model-catalog-") as folder:
            path = Path(folder, "catalog.db")
            path.touch(mode=0o600)
            path.write_bytes(_sqlite_template())
            yield URL.create("sqlite+aiosqlite", database=str(path))
        return
    url = _postgresql_url(server)
    template = _postgresql_template(url)
    copy = _new_name()
    _execute(url, f"CREATE DATABASE {copy} TEMPLATE {template}")
    try:
        yield url.set(database=copy)
    finally:
        _drop(url, copy)


@outer_contextmanager
async def temporary_catalog(server: str | URL | None = None) -> AsyncIterator[ModelCatalog]:
    """
    Open a catalog in a temporary database. Close it and remove the database when the block ends.

    `server` is the one of `temporary_database`. Writes do not wait for the disk.
    """
    with temporary_database(server) as url:
        async with open_catalog(url, upgrade=False, durability="normal") as catalog:
            yield catalog


@cache
def _sqlite_template() -> bytes:
    """Return the bytes of a migrated SQLite file."""
    with TemporaryDirectory(prefix="model-catalog-") as folder, LoopThread() as loop_thread:
        path = Path(folder, "catalog.db")
        # In a thread, because the caller may be a test in a running event loop.
        loop_thread.run(upgrade(path))
        return path.read_bytes()


@cache
def _postgresql_template(url: URL) -> str:
    """Create a migrated database on a server, and return its name."""
    name = _new_name()
    _execute(url, f"CREATE DATABASE {name} TEMPLATE template0")
    atexit.register(_drop_at_exit, url, name, os.getpid())
    engine = _sync_engine(url.set(database=name))
    with map_errors(mask_secrets(url)), engine.connect() as connection:
        upgrade_connection(connection)
    return name


def _postgresql_url(server: str | URL) -> URL:
    location = resolve_target(server)
    if location.path is not None:
        raise InvalidTargetError(
            location.name,
            "give the URL of a database on a PostgreSQL server, or nothing for a SQLite file",
        )
    return location.url


def _new_name() -> str:
    return DATABASE_PREFIX + uuid4().hex[:12]


def _drop(url: URL, name: str) -> None:
    _execute(url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def _drop_at_exit(url: URL, name: str, process_id: int) -> None:
    # A forked child that exits must not drop the template of its parent.
    if os.getpid() == process_id:
        _drop(url, name)


def _execute(url: URL, statement: str) -> None:
    with map_errors(mask_secrets(url)), _sync_engine(url).connect() as connection:
        connection.exec_driver_sql(statement)


def _sync_engine(url: URL) -> sa.Engine:
    # Synchronous, so that it also works in a running event loop and when the process exits.
    return sa.create_engine(
        url.set(drivername="postgresql+psycopg"),
        isolation_level="AUTOCOMMIT",
        poolclass=sa.NullPool,
    )
