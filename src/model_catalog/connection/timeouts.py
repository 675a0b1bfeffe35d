"""How long a connection waits for a lock, and that it goes back to its pool without one."""

from __future__ import annotations

import sqlite3
from typing import Any, Final

from sqlalchemy import Connection, Engine, event
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.pool import PoolResetState

LOCK_WAIT_S: Final = 0.1
"""
How long a database waits for somebody else's lock.

A statement that waits cannot be called back, so it waits briefly and the caller's task tries again.
"""
# PostgreSQL counts the milliseconds in 31 bits.
_LONGEST_WAIT_S: Final = 2_000_000
# What of a host's connection has to be put back, and whether it waits as long as ours.
_HOSTS_WAIT: Final = "model_catalog_busy_timeout"
_IS_BRIEF: Final = "model_catalog_is_brief"


async def ensure_write_transaction(connection: AsyncConnection) -> None:
    """
    Hold SQLite's write lock from here on; PostgreSQL needs nothing.

    An engine with our habits has sent BEGIN IMMEDIATE already. On a host's own, sqlite3 would begin
    at the first INSERT, and a lock that is wanted after a read is refused at once.
    """
    if not await is_in_transaction(connection):
        await connection.run_sync(use_short_busy_timeout)
        await connection.exec_driver_sql("BEGIN IMMEDIATE")


async def is_in_transaction(connection: AsyncConnection) -> bool:
    """Whether SQLite is in a transaction; on PostgreSQL a connection that has begun always is."""
    if connection.dialect.name != "sqlite":
        return True
    raw = await connection.get_raw_connection()
    return bool(raw.driver_connection.in_transaction)  # type: ignore[union-attr]


async def set_timeouts(
    connection: AsyncConnection, lock_wait_s: float, statement_s: float | None = None
) -> None:
    """
    How long a statement of this transaction waits for somebody else's lock, and how long it runs.

    Without a limit a server waits for ever, and works on for a caller who is long gone. SQLite has
    one lock, which a transaction that writes holds: its connection is only told to be brief.
    """
    if connection.dialect.name == "postgresql":
        limits = f"set_config('lock_timeout', '{_milliseconds(lock_wait_s)}', true)"
        if statement_s is not None:
            limits += f", set_config('statement_timeout', '{_milliseconds(statement_s)}', true)"
        await connection.exec_driver_sql(f"SELECT {limits}")
    else:
        await connection.run_sync(use_short_busy_timeout)


def busy_timeout(wait_s: float) -> str:
    """The statement that tells SQLite how long to try a lock again and again."""
    return f"PRAGMA busy_timeout = {_milliseconds(wait_s)}"


def use_commit_timeout(connection: Connection, wait_s: float) -> None:
    """
    Have SQLite's COMMIT wait for readers, as it has to without a write-ahead log.

    What was done before it cannot be tried again.
    """
    if connection.dialect.name == "sqlite":
        _query_pragma(connection.connection.dbapi_connection, busy_timeout(wait_s))
        connection.info[_IS_BRIEF] = False


def restore_timeout_on_checkin(engine: Engine) -> None:
    """Have a host's SQLite connections go back to its pool as they came; does nothing twice."""
    if engine.dialect.name == "sqlite" and not event.contains(engine, "reset", on_reset):
        event.listen(engine, "reset", on_reset)


def on_reset(connection: Any, record: Any, state: PoolResetState) -> None:
    """Put back what `spare_the_host` changed, and undo a transaction that is open still."""
    if not state.asyncio_safe:
        return
    # SQLAlchemy takes a transaction whose COMMIT was refused for one that is over. In SQLite it is
    # open, with its lock, and whoever has the connection next would commit it.
    if getattr(connection, "driver_connection", connection).in_transaction:
        connection.rollback()
    wait_ms = record.info.pop(_HOSTS_WAIT, None)
    record.info.pop(_IS_BRIEF, None)
    if wait_ms is not None:
        _query_pragma(connection, f"PRAGMA busy_timeout = {wait_ms}")


def _milliseconds(seconds: float) -> int:
    # No time at all is written as 0, and means for ever.
    return max(1, int(min(seconds, _LONGEST_WAIT_S) * 1000))


def use_short_busy_timeout(connection: Connection) -> None:
    """Have a SQLite connection wait briefly, and remember for how long it waited before."""
    # In SQLite's own wait a statement is deaf: it cannot be interrupted.
    info = connection.info
    if info.get(_IS_BRIEF):
        return
    driver = connection.connection.dbapi_connection
    if _HOSTS_WAIT not in info:
        info[_HOSTS_WAIT] = _query_pragma(driver, "PRAGMA busy_timeout")
    _query_pragma(driver, busy_timeout(LOCK_WAIT_S))
    info[_IS_BRIEF] = True


def _query_pragma(connection: Any, statement: str) -> Any:
    """
    What SQLite says to a statement of its own that says one thing.

    Asked of the driver that is one step to its thread and back, and by way of a cursor four.
    """
    if not hasattr(connection, "run_async"):
        ((said,),) = connection.execute(statement).fetchall()
        return said
    try:
        ((said,),) = connection.run_async(lambda driver: driver.execute_fetchall(statement))
    except ValueError as error:
        # So aiosqlite calls a connection that somebody has closed.
        raise sqlite3.OperationalError(f"{error}") from error
    return said
