"""The transaction of a migration, with a lock that only one migration can hold at a time."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from model_catalog.concurrency.retry import DEFAULT_OPEN_TIMEOUT_S, MIN_TIMEOUT_S, Backoff
from model_catalog.concurrency.threads import thread_working
from model_catalog.connection.backup_files import is_unresolved
from model_catalog.connection.error_mapping import map_errors
from model_catalog.connection.interruption.interruptible_run import InterruptibleRun
from model_catalog.connection.sqlite_pragmas import set_foreign_keys
from model_catalog.connection.timeouts import (
    WRITE,
    begin_immediate,
    restore_timeout_on_checkin,
    set_timeouts,
    use_short_busy_timeout,
)
from model_catalog.errors import CatalogBusyError, UpgradeFailedError, shown
from model_catalog.mapping.base import Base
from model_catalog.schema.postgres_schema import enter_schema, quote_name, take_advisory_lock
from model_catalog.schema.table_locks import lock_tables

# The length of (table, reason) in broken_references().
_UNRESOLVED: Final = 2


@asynccontextmanager
async def migration_transaction(
    engine: AsyncEngine,
    name: str,
    cancelled: threading.Event | None = None,
    *,
    create: bool = True,
    wait_s: float = DEFAULT_OPEN_TIMEOUT_S,
    run: InterruptibleRun | None = None,
    locks_tables: bool = True,
) -> AsyncIterator[AsyncConnection]:
    """
    Open a transaction with the migration lock: SQLite's write lock or an advisory lock.

    In it, the catalog's schema is the default schema. `create` says whether it may be created. With
    `locks_tables` the catalog's tables on PostgreSQL are locked too, see `lock_tables`.

    It commits when the block ends without an error, and rolls back otherwise. The caller reads the
    revision only inside the block, because another migration may change it before. `run` is told
    of the connection and of the commit.

    Raises CatalogBusyError if the lock is not free within `wait_s` seconds, CancelledError once
    `cancelled` is set, and UpgradeFailedError if rows would refer to missing rows.
    """
    run = run or InterruptibleRun(name)
    backoff = Backoff(wait_s)
    async with _connected(engine, name, run, backoff, cancelled) as connection:
        while True:
            _raise_if_cancelled(cancelled)
            try:
                with map_errors(name):
                    await connection.begin()
                    await _lock(connection, name)
                    # The role may have a statement timeout that is too short for a migration.
                    await set_timeouts(
                        connection, max(backoff.remaining_s, MIN_TIMEOUT_S), math.inf
                    )
                    await connection.run_sync(partial(enter_schema, name=name, create=create))
                    if locks_tables:
                        await connection.run_sync(
                            lock_tables, lambda: backoff.remaining_s, cancelled
                        )
                _raise_if_cancelled(cancelled)
                break
            except CatalogBusyError as error:
                await connection.rollback()
                await backoff.wait_or_raise(error)
        try:
            broken_before = await connection.run_sync(broken_references)
            yield connection
            await connection.run_sync(require_references_kept, name, broken_before)
            run.mark_committing()
            await connection.commit()
            run.mark_committed()
        finally:
            # Has no effect after the commit.
            await connection.rollback()


async def _lock(connection: AsyncConnection, name: str) -> None:
    if connection.dialect.name == "sqlite":
        await connection.run_sync(use_short_busy_timeout)
        await connection.run_sync(begin_immediate)
        return
    # The "try" function, because a wait in the server could be neither cancelled nor limited.
    if not await connection.run_sync(take_advisory_lock, "pg_try_advisory_xact_lock"):
        raise CatalogBusyError(name, "another process is migrating it")


def _raise_if_cancelled(cancelled: threading.Event | None) -> None:
    if cancelled is not None and cancelled.is_set():
        raise asyncio.CancelledError


@asynccontextmanager
async def _connected(
    engine: AsyncEngine,
    name: str,
    run: InterruptibleRun,
    backoff: Backoff,
    cancelled: threading.Event | None,
) -> AsyncIterator[AsyncConnection]:
    """Open a connection for a migration, and restore its settings before it is released."""
    with thread_working():
        restore_timeout_on_checkin(engine.sync_engine)
        connection = await _connect(engine, name, backoff, cancelled)
        run.set_connection(connection)
        try:
            if engine.dialect.name != "sqlite":
                # In a stricter isolation level the transaction would keep the snapshot from before
                # it got the lock, without the changes of the previous migration. In AUTOCOMMIT,
                # which a host may have set, nothing could be rolled back.
                yield await connection.execution_options(isolation_level="READ COMMITTED")
                return
            # Rebuilding a table drops the old table. With foreign keys on, that would delete the
            # rows that refer to it.
            with map_errors(name):
                enforced = await connection.run_sync(set_foreign_keys, 0)
            try:
                yield await connection.execution_options(**{WRITE: True})
            finally:
                if not connection.invalidated:
                    await connection.run_sync(set_foreign_keys, enforced)
        finally:
            await connection.close()


async def _connect(
    engine: AsyncEngine, name: str, backoff: Backoff, cancelled: threading.Event | None
) -> AsyncConnection:
    """Connect; repeat it while the database is busy."""
    while True:
        _raise_if_cancelled(cancelled)
        try:
            with map_errors(name):
                return await engine.connect()
        except CatalogBusyError as error:
            # `PRAGMA synchronous` and `PRAGMA journal_mode` wait for SQLite's locks.
            await backoff.wait_or_raise(error)


def broken_references(connection: sa.Connection) -> set[tuple[Any, ...]]:
    """
    Return the rows of SQLite whose reference to a row of the catalog is broken.

    Each is (table, row id, referenced table, number of the foreign key). A table that cannot be
    checked is (table, reason): for example if no unique columns match its foreign key. References
    between other tables are not checked: no migration changes them.
    """
    # PostgreSQL always enforces foreign keys.
    if connection.dialect.name != "sqlite":
        return set()
    ours = Base.metadata.tables
    references = connection.exec_driver_sql(
        'SELECT DISTINCT tables.name, lower(keys."table")'
        " FROM sqlite_master AS tables, pragma_foreign_key_list(tables.name) AS keys"
        " WHERE tables.type = 'table'"
    ).all()
    broken: set[tuple[Any, ...]] = set()
    for table in sorted({name for name, referenced in references if referenced in ours}):
        try:
            rows = connection.exec_driver_sql(f"PRAGMA foreign_key_check({quote_name(table)})")
            broken.update(tuple(row) for row in rows if row[2].lower() in ours)
        except sa.exc.OperationalError as error:
            if not is_unresolved(error):
                raise
            broken.add((table, str(error.driver_exception)))
    return broken


def require_references_kept(
    connection: sa.Connection, name: str, broken_before: set[tuple[Any, ...]]
) -> None:
    """Raise UpgradeFailedError if more rows refer to missing rows than before."""
    broken = broken_references(connection) - broken_before
    if unresolved := sorted(each for each in broken if len(each) == _UNRESOLVED):
        raise UpgradeFailedError(
            name,
            "that revision",
            "; ".join(
                f"the foreign key of the table {shown(table)} would not match any more ({reason}): "
                "drop it, or let it refer to models.id after the migration"
                for table, reason in unresolved
            ),
        )
    if broken:
        tables = ", ".join(sorted({table for table, *_ in broken}))
        raise UpgradeFailedError(
            name,
            "that revision",
            f"{len(broken)} rows of {tables} would refer to rows that do not exist",
        )
