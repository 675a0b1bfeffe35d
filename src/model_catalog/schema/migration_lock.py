"""The transaction of a migration: its lock, which one migration can hold at a time, and its end."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from model_catalog.concurrency.retry import DEFAULT_OPEN_TIMEOUT_S, MIN_TIMEOUT_S, Backoff
from model_catalog.concurrency.threads import thread_working
from model_catalog.connection.backup_files import is_unresolved
from model_catalog.connection.error_mapping import map_errors
from model_catalog.connection.interruption.interruptible_run import InterruptibleRun
from model_catalog.connection.interruption.running import SERVER_GRACE_S
from model_catalog.connection.open_database import OpenDatabase
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


class MigrationCancelledError(Exception):
    """The caller of the migration was cancelled."""


class MigrationWatch:
    """
    Ends a migration that was cancelled, or whose server has stopped answering.

    Until its first statement a migration has the time of its caller, `wait_s`. Then each statement
    has it anew, because a large table takes long.
    """

    def __init__(self, database: OpenDatabase) -> None:
        self.run = InterruptibleRun(database.name)
        self.cancelled = threading.Event()
        self._wait_s = database.wait_s + SERVER_GRACE_S
        self._statement_at = time.monotonic()

    def cancel(self) -> None:
        """Stop before the next statement. A server that does not answer is left a second later."""
        self.cancelled.set()
        self.run.cancel_write()

    def raise_if_cancelled(self) -> None:
        """Raise MigrationCancelledError if `cancelled` is set."""
        # After a CancelledError SQLAlchemy would invalidate a host's connection.
        if self.cancelled.is_set():
            raise MigrationCancelledError

    def interrupt_if_silent(self) -> None:
        """Interrupt the statement if it has had its time."""
        if time.monotonic() - self._statement_at >= self._wait_s:
            self.run.interrupt()

    @contextmanager
    def watching_statements(self, connection: sa.Connection) -> Iterator[None]:
        """Raise before the next statement if `cancelled` is set: the rollback is then orderly."""

        def check(*_: Any) -> None:
            self._statement_at = time.monotonic()
            self.raise_if_cancelled()

        sa.event.listen(connection, "before_cursor_execute", check)
        try:
            yield
        finally:
            sa.event.remove(connection, "before_cursor_execute", check)


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


@contextmanager
def file_transaction(connection: sa.Connection, name: str) -> Iterator[None]:
    """
    Open a transaction with SQLite's write lock on a new connection of an engine of our own.

    It is for a block that drops no table, so the foreign keys stay enforced. It commits when the
    block ends without an error, and rolls back otherwise.

    Raises the driver's error if the lock is not free in 0.1 s, and UpgradeFailedError if rows would
    refer to missing rows.
    """
    # An execution option of the connection stays when it has been released.
    with connection.execution_options(**{WRITE: True}).begin():
        broken_before = broken_references(connection)
        yield
        require_references_kept(connection, name, broken_before)


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
