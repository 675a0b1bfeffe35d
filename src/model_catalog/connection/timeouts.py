"""Lock and statement timeouts of a connection, and restoring a host's timeout at check-in."""

from __future__ import annotations

import sqlite3
from typing import Any, Final

from sqlalchemy import Connection, Engine, event
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.pool import PoolResetState

from model_catalog.connection.database_info import driver_connection

LOCK_WAIT_S: Final = 0.1
"""
How long the database waits for a lock before it raises, in seconds.

A statement that waits for a lock cannot be interrupted, so it waits briefly and the caller retries.
"""
WRITE: Final = "model_catalog_write"
"""Execution option of a transaction that will write: on SQLite it begins with BEGIN IMMEDIATE."""
LOOKUP: Final = "model_catalog_lookup"
"""Execution option of a session that executes one SELECT: on SQLite it needs no BEGIN."""

HAS_WRITE_LOCK: Final = "model_catalog_has_write_lock"
"""Key of Connection.info: whether a prepared engine has begun the transaction for a write."""

IDLE_LIMIT_S: Final = "model_catalog_idle_limit_s"
"""Key of Connection.info: after how long the server ends an idle transaction; 0 for never."""

_IDLE_LIMIT: Final = (
    "extract(epoch FROM current_setting('idle_in_transaction_session_timeout')::interval)"
)

# PostgreSQL stores the milliseconds in a 32-bit signed integer.
_MAX_WAIT_S: Final = 2_000_000
# Keys of Connection.info: the host's busy_timeout, the journal mode, and whether our short
# busy_timeout is set.
_HOST_TIMEOUT: Final = "model_catalog_host_busy_timeout"
_JOURNAL_MODE: Final = "model_catalog_journal_mode"
_IS_SHORT: Final = "model_catalog_short_busy_timeout"


def begin_immediate(connection: Connection) -> None:
    """
    Begin a SQLite transaction with the write lock, on a connection that has done nothing yet.

    A listener of a host may have sent BEGIN, and sqlite3 sends it with `autocommit=False`. That
    transaction has no lock, and is ended first. If the lock is not free, it is begun again.
    """
    has_begun = driver_connection(connection).in_transaction
    if has_begun:
        connection.exec_driver_sql("ROLLBACK")
    try:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    except BaseException:
        if has_begun:
            # Without a transaction, rollback() of sqlite3 raises an error with autocommit=False.
            connection.exec_driver_sql("BEGIN")
        raise


def on_host_begin(connection: Connection) -> None:
    """Begin a transaction of a prepared engine; the listener of `prepare_engine`."""
    options = connection.get_execution_options()
    writes = bool(options.get(WRITE))
    if writes:
        use_short_busy_timeout(connection)
        begin_immediate(connection)
    elif not (options.get(LOOKUP) or driver_connection(connection).in_transaction):
        connection.exec_driver_sql("BEGIN")
    connection.info[HAS_WRITE_LOCK] = writes


async def begin_if_needed(connection: AsyncConnection) -> None:
    """Begin a SQLite transaction with the write lock if none is open; for PostgreSQL do nothing."""
    if not await is_in_transaction(connection):
        await connection.run_sync(use_short_busy_timeout)
        await connection.exec_driver_sql("BEGIN IMMEDIATE")


async def ensure_write_transaction(connection: AsyncConnection) -> None:
    """
    Take SQLite's write lock at the beginning of a transaction; does nothing on PostgreSQL.

    A prepared engine has sent BEGIN IMMEDIATE already. On other engines of a host, sqlite3 would
    begin at the first INSERT; SQLite refuses a write lock at once if the transaction began to read.
    """
    if connection.dialect.name != "sqlite":
        return
    if not await is_in_transaction(connection):
        await begin_if_needed(connection)
    elif not connection.info.get(HAS_WRITE_LOCK):
        # A listener of the host, or sqlite3 with autocommit=False, has sent BEGIN. Listeners may
        # have written since, so the transaction cannot be begun again. Any UPDATE takes the lock.
        await connection.run_sync(use_short_busy_timeout)
        await connection.exec_driver_sql("UPDATE models SET id = id WHERE 0")


async def restore_driver_transaction(connection: AsyncConnection) -> bool:
    """
    Return whether SQLite has no transaction open after an error, because it rolled it back.

    With `autocommit=False` sqlite3 believes that a transaction is always open, so that rollback()
    would raise an error. Then an empty one is begun.
    """
    if connection.invalidated or await is_in_transaction(connection):
        return False
    driver = driver_connection(connection)
    try:
        await driver.rollback()
    except sqlite3.OperationalError:
        await driver.execute("BEGIN")
    return True


async def is_in_transaction(connection: AsyncConnection) -> bool:
    """Return whether SQLite has a transaction open; always True for PostgreSQL."""
    if connection.dialect.name != "sqlite":
        return True
    return bool(driver_connection(connection).in_transaction)


async def set_timeouts(
    connection: AsyncConnection, lock_wait_s: float, statement_s: float | None = None
) -> None:
    """
    Set the lock timeout and the statement timeout of the current transaction, in seconds.

    Without a limit PostgreSQL waits for locks forever, and keeps running a statement after its
    caller has given up. It also reads IDLE_LIMIT_S. On SQLite both arguments are ignored, and the
    lock timeout is LOCK_WAIT_S: a transaction that writes already has the only lock.
    """
    if connection.dialect.name == "postgresql":
        timeouts = f"{_select_timeouts(lock_wait_s, statement_s)}, {_IDLE_LIMIT}"
        row = (await connection.exec_driver_sql(timeouts)).one()
        connection.info[IDLE_LIMIT_S] = float(row[-1])
    else:
        await connection.run_sync(use_short_busy_timeout)


async def reads_without_locks(connection: AsyncConnection) -> bool:
    """
    Return whether a SELECT on SQLite waits for no lock, because it reads a write-ahead log.

    Asks each connection once. A program that changes the mode later needs the file for itself.
    """
    if connection.dialect.name != "sqlite":
        return False
    mode = connection.info.get(_JOURNAL_MODE)
    if mode is None:
        mode = await connection.run_sync(
            lambda sync: _query_pragma(sync.connection.dbapi_connection, "PRAGMA journal_mode")
        )
        connection.info[_JOURNAL_MODE] = mode
    return bool(mode == "wal")


def begin_with_timeouts(lock_wait_s: float, statement_s: float) -> str:
    """Return the statements that begin a transaction of PostgreSQL with the same timeouts."""
    return f"BEGIN ISOLATION LEVEL READ COMMITTED; {_select_timeouts(lock_wait_s, statement_s)}"


def lock_timeout(lock_wait_s: float) -> str:
    """Return the statement that sets PostgreSQL's lock timeout until the transaction ends."""
    return f"SET LOCAL lock_timeout = {_milliseconds(lock_wait_s)}"


def _select_timeouts(lock_wait_s: float, statement_s: float | None) -> str:
    limits = f"set_config('lock_timeout', '{_milliseconds(lock_wait_s)}', true)"
    if statement_s is not None:
        limits += f", set_config('statement_timeout', '{_milliseconds(statement_s)}', true)"
    return f"SELECT {limits}"


def busy_timeout(wait_s: float) -> str:
    """Return the PRAGMA that sets how long SQLite retries to get a lock."""
    return f"PRAGMA busy_timeout = {_milliseconds(wait_s)}"


def use_commit_timeout(connection: Connection, wait_s: float) -> None:
    """
    Let SQLite's COMMIT wait up to `wait_s` seconds for readers; does nothing on PostgreSQL.

    With a rollback journal COMMIT waits for all readers. The transaction of a caller cannot be
    retried from its start.
    """
    if connection.dialect.name == "sqlite":
        _query_pragma(connection.connection.dbapi_connection, busy_timeout(wait_s))
        connection.info[_IS_SHORT] = False


def restore_timeout_on_checkin(engine: Engine) -> None:
    """Restore a host's SQLite connections when they return to the pool. Safe to call twice."""
    if engine.dialect.name == "sqlite" and not event.contains(engine, "reset", on_reset):
        event.listen(engine, "reset", on_reset)


def on_reset(connection: Any, record: Any, state: PoolResetState) -> None:
    """Restore the host's busy_timeout, and roll back a transaction that is still open."""
    if not state.asyncio_safe:
        return
    # After a refused COMMIT SQLAlchemy considers the transaction ended. SQLite still has it open,
    # with its lock, and the next user of the connection would commit it.
    if driver_connection(connection).in_transaction:
        connection.rollback()
    wait_ms = record.info.pop(_HOST_TIMEOUT, None)
    record.info.pop(_IS_SHORT, None)
    if wait_ms is not None:
        _query_pragma(connection, f"PRAGMA busy_timeout = {wait_ms}")


def _milliseconds(seconds: float) -> int:
    # To PostgreSQL 0 means no limit.
    return max(1, int(min(seconds, _MAX_WAIT_S) * 1000))


def use_short_busy_timeout(connection: Connection) -> None:
    """Set a short busy_timeout on a SQLite connection, and remember the previous one."""
    # While SQLite waits for a lock, its statement cannot be interrupted.
    info = connection.info
    if info.get(_IS_SHORT):
        return
    dbapi_connection = connection.connection.dbapi_connection
    if _HOST_TIMEOUT not in info:
        info[_HOST_TIMEOUT] = _query_pragma(dbapi_connection, "PRAGMA busy_timeout")
    _query_pragma(dbapi_connection, busy_timeout(LOCK_WAIT_S))
    info[_IS_SHORT] = True


def _query_pragma(dbapi_connection: Any, pragma: str) -> Any:
    """
    Execute a PRAGMA that returns one value, and return the value.

    `execute_fetchall` of aiosqlite takes one trip to its thread; a cursor takes four.
    """
    if not hasattr(dbapi_connection, "run_async"):
        ((value,),) = dbapi_connection.execute(pragma).fetchall()
        return value
    try:
        ((value,),) = dbapi_connection.run_async(lambda driver: driver.execute_fetchall(pragma))
    except ValueError as error:
        # aiosqlite raises ValueError if the connection was closed.
        raise sqlite3.OperationalError(f"{error}") from error
    return value
