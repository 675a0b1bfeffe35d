"""A transaction that changes a schema, which no other migrator has at the same time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from model_catalog.concurrency.completion import DEFAULT_OPEN_TIMEOUT_S, MIN_TIMEOUT_S, Backoff
from model_catalog.concurrency.threads import thread_working
from model_catalog.connection.engines import WRITE
from model_catalog.connection.error_mapping import map_errors
from model_catalog.connection.timeouts import (
    ensure_write_transaction,
    restore_timeout_on_checkin,
    set_timeouts,
)
from model_catalog.errors import CatalogBusyError, UpgradeFailedError

# Any number will do that nobody else takes for a lock: `MCatalog`.
_ADVISORY_LOCK: Final = 0x4D436174616C6F67


@asynccontextmanager
async def migration_transaction(
    engine: AsyncEngine,
    name: str,
    cancelled: threading.Event | None = None,
    *,
    wait_s: float = DEFAULT_OPEN_TIMEOUT_S,
) -> AsyncIterator[AsyncConnection]:
    """
    A connection in a transaction that is committed when the block ends well.

    The lock comes before anything is read: who decides by what he read before it may find it
    changed. Raises CatalogBusyError after `wait_s`, and CancelledError once `cancelled` is set.
    """
    async with _connected(engine, name) as connection:
        patience = Backoff(wait_s)
        while True:
            if cancelled is not None and cancelled.is_set():
                raise asyncio.CancelledError
            try:
                with map_errors(name):
                    await connection.begin()
                    await _lock(connection, name)
                    # A change of a table that waits for a reader holds up everybody behind it.
                    await set_timeouts(connection, max(patience.left_s, MIN_TIMEOUT_S))
                break
            except CatalogBusyError as error:
                await connection.rollback()
                await patience.after(error)
        try:
            broken = await _broken_references(connection)
            yield connection
            if more := await _broken_references(connection) - broken:
                tables = ", ".join(sorted({table for table, *_ in more}))
                raise UpgradeFailedError(
                    name,
                    "that revision",
                    f"{len(more)} rows of {tables} would refer to rows that are not there",
                )
            await connection.commit()
        finally:
            # Does nothing after the commit.
            await connection.rollback()


async def _lock(connection: AsyncConnection, name: str) -> None:
    if connection.dialect.name == "sqlite":
        await ensure_write_transaction(connection)
        return
    # Trying, because a wait for the lock in the server could be neither cancelled nor limited.
    locked = await connection.scalar(
        sa.text("SELECT pg_try_advisory_xact_lock(:lock)"), {"lock": _ADVISORY_LOCK}
    )
    if not locked:
        raise CatalogBusyError(name, "another process is migrating it")


@asynccontextmanager
async def _connected(engine: AsyncEngine, name: str) -> AsyncIterator[AsyncConnection]:
    """A connection of the engine; a host's own SQLite connection goes back as it was."""
    with thread_working():
        restore_timeout_on_checkin(engine.sync_engine)
        connection = engine.connect()
        with map_errors(name):
            await connection.start()
        try:
            if engine.dialect.name != "sqlite":
                # Above it the statement that takes the lock would see the tables as they were
                # before the lock was given back; AUTOCOMMIT, which a host may have set, would keep
                # none.
                yield await connection.execution_options(isolation_level="READ COMMITTED")
                return
            driver = (await connection.get_raw_connection()).driver_connection
            assert driver is not None  # noqa: S101 - a connection that was just opened has one
            with map_errors(name):
                async with driver.execute("PRAGMA foreign_keys") as cursor:
                    (foreign_keys,) = await cursor.fetchone()
                # Writing a table anew drops the old one, and with foreign keys on that empties the
                # tables that refer to it. In a transaction the pragma does nothing: it comes
                # before.
                await driver.execute("PRAGMA foreign_keys = OFF")
            try:
                yield await connection.execution_options(**{WRITE: True})
            finally:
                if not connection.invalidated:
                    await driver.execute(f"PRAGMA foreign_keys = {foreign_keys}")
        finally:
            await connection.close()


async def _broken_references(connection: AsyncConnection) -> set[tuple[Any, ...]]:
    """The rows that refer to nothing; a host may have some of its own. PostgreSQL lets none be."""
    if connection.dialect.name != "sqlite":
        return set()
    return {tuple(row) for row in await connection.exec_driver_sql("PRAGMA foreign_key_check")}
