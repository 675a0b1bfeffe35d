"""Transactions on a connection of our own PostgreSQL engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from model_catalog.concurrency.completion import hold_cancellation, wait_until_done
from model_catalog.concurrency.forks import fork_count, start_task
from model_catalog.concurrency.retry import MIN_TIMEOUT_S
from model_catalog.connection.database_info import DatabaseInfo, driver_connection
from model_catalog.connection.interruption.interruptible_run import InterruptibleRun
from model_catalog.connection.interruption.running import (
    SERVER_GRACE_S,
    close_in_time,
    run_in_open_transaction,
)
from model_catalog.connection.postgresql.commit_warnings import (
    forget_warnings,
    require_replicated,
)
from model_catalog.connection.postgresql.dropping import drop_connection, is_closed
from model_catalog.connection.timeouts import IDLE_LIMIT_S, begin_with_timeouts, set_timeouts
from model_catalog.errors import CatalogClosedError, CatalogUnavailableError
from model_catalog.execution.executor import Operation
from model_catalog.execution.transaction import Savepoint

I = TypeVar("I")  # noqa: E741 - an item
T = TypeVar("T")


_IDLE_TOLERANCE: Final = 0.8
_LOST: Final = "the connection was lost before the commit. Nothing of the transaction was kept"


class ConnectionTransaction:
    """The open transaction of a connection; a `TransactionBackend`."""

    def __init__(self, database: DatabaseInfo, timeout_s: float) -> None:
        self.database = database
        self.timeout_s = timeout_s
        self._connection: AsyncConnection | None = None
        self._idle_limit_s = 0.0
        self._idle_since = 0.0

    async def begin(self, engine: AsyncEngine, run: InterruptibleRun) -> None:
        """Connect, and begin the transaction."""
        with run:
            # Later statements cannot be repeated, so each waits for the whole timeout.
            self._connection = await begin_transaction(engine, run, self.timeout_s, self.timeout_s)
            self._idle_limit_s = self._connection.info[IDLE_LIMIT_S]
            self._idle_since = time.monotonic()

    async def run(self, operation: Operation[I, T]) -> T:
        """Return what the function of an operation returns."""
        return await self._run_step(
            lambda connection: connection.run_sync(operation.run_one, operation.value)
        )

    async def savepoint(self) -> Savepoint:
        """Begin a savepoint."""
        nested = await self._run_step(lambda connection: connection.begin_nested())
        return Savepoint(
            commit=lambda: self._run_step(lambda _: nested.commit()),
            rollback=lambda: self._run_step(lambda _: nested.rollback()),
        )

    async def is_open(self) -> bool:
        """Return True: PostgreSQL does not end a transaction by itself."""
        return True

    async def commit(self, on_commit: Callable[[], None]) -> None:
        """Commit the transaction, and call `on_commit` when it is committed."""

        async def step(connection: AsyncConnection) -> None:
            driver = driver_connection(connection)
            forget_warnings(driver)
            await connection.commit()
            require_replicated(driver, self.database.name)
            on_commit()

        await self._run_step(step, commits=True)

    async def close(self) -> None:
        """Roll back uncommitted changes, and return the connection to its pool."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await close_in_time(connection.close, connection, self.database.name)

    async def _run_step(
        self, step: Callable[[AsyncConnection], Awaitable[T]], *, commits: bool = False
    ) -> T:
        run = InterruptibleRun(self.database.name)

        async def attempt(connection: AsyncConnection) -> T:
            with run:
                run.set_connection(connection)
                if commits:
                    run.mark_committing()
                return await step(connection)
            return run.result  # type: ignore[no-any-return]

        connection = self._connection
        if connection is None:
            raise CatalogClosedError(self.database.name)
        idle_s = time.monotonic() - self._idle_since
        if commits and (0 < self._idle_limit_s <= idle_s or _is_lost(connection)):
            # COMMIT is not sent, so the outcome is known.
            raise CatalogUnavailableError(self.database.name, self._reason_of_end(idle_s) or _LOST)
        try:
            return await run_in_open_transaction(
                attempt(connection), run, self.timeout_s, SERVER_GRACE_S
            )
        except CatalogUnavailableError as error:
            reason = self._reason_of_end(idle_s)
            if reason is None or error.outcome_unknown:
                raise
            raise CatalogUnavailableError(self.database.name, reason) from error
        finally:
            self._idle_since = time.monotonic()

    def _reason_of_end(self, idle_s: float) -> str | None:
        """Say that the server may have ended the transaction, which asyncpg does not tell."""
        # The server measures from an earlier moment.
        if not 0 < self._idle_limit_s <= idle_s / _IDLE_TOLERANCE:
            return None
        return (
            f"the server ended the transaction, because no call used it for {idle_s:.1f} s. It or "
            f"the role sets idle_in_transaction_session_timeout to {self._idle_limit_s:g} s"
        )


def _is_lost(connection: AsyncConnection) -> bool:
    return connection.invalidated or is_closed(driver_connection(connection))


async def begin_transaction(
    engine: AsyncEngine, run: InterruptibleRun, lock_wait_s: float, statement_timeout_s: float
) -> AsyncConnection:
    """
    Connect, begin a transaction, and limit its lock waits and statements in time.

    If the pooled connection is dead, the first statement finds that out, and a new connection takes
    its place. Nothing was done in the transaction by then. A test of the connection beforehand
    would cost one more round trip.
    """
    timeouts_s = (lock_wait_s, max(statement_timeout_s, MIN_TIMEOUT_S))
    try:
        return await _begin_once(engine, run, *timeouts_s)
    except BaseException as error:
        if not run.reconnects_after(error):
            raise
    return await _begin_once(engine, run, *timeouts_s)


async def _connect(engine: AsyncEngine) -> AsyncConnection:
    return await hold_cancellation(engine.connect().start(), AsyncConnection.close)


async def _begin_once(
    engine: AsyncEngine, run: InterruptibleRun, lock_wait_s: float, statement_timeout_s: float
) -> AsyncConnection:
    connection = await _connect(engine)
    run.set_connection(connection)
    try:
        await set_timeouts(connection, lock_wait_s, statement_timeout_s)
        run.mark_answered()
    except BaseException:
        await close_connection(connection)
        raise
    return connection


async def begin_write(
    engine: AsyncEngine, run: InterruptibleRun, lock_wait_s: float, statement_timeout_s: float
) -> AsyncConnection:
    """
    Connect, and begin a transaction with its limits in one round trip, for one write.

    The engine must be in the mode AUTOCOMMIT, so that SQLAlchemy sends neither BEGIN nor COMMIT.
    End the transaction with `commit_write`, or with `close_connection(..., rolls_back=True)`.
    A connection that is dead is replaced as in `begin_transaction`.
    """
    begin = begin_with_timeouts(lock_wait_s, max(statement_timeout_s, MIN_TIMEOUT_S))
    try:
        return await _send_begin(engine, run, begin)
    except BaseException as error:
        if not run.reconnects_after(error):
            raise
    return await _send_begin(engine, run, begin)


async def _send_begin(engine: AsyncEngine, run: InterruptibleRun, begin: str) -> AsyncConnection:
    connection = await _connect(engine)
    run.set_connection(connection)
    try:
        await _execute_unprepared(connection, begin)
    except BaseException:
        await close_connection(connection)
        raise
    run.mark_answered()
    return connection


async def commit_write(connection: AsyncConnection, target: str) -> None:
    """Commit a transaction of `begin_write`, in one round trip."""
    driver = driver_connection(connection)
    forget_warnings(driver)
    await _execute_unprepared(connection, "COMMIT")
    require_replicated(driver, target)


async def _execute_unprepared(connection: AsyncConnection, statements: str) -> None:
    """
    Execute statements without parameters on the driver's connection, in one message.

    SQLAlchemy and asyncpg prepare every statement, and only one can be prepared at a time. That
    would cost the round trip in which asyncpg begins: with the tags of a new model, a registration
    takes three instead of five.
    """
    driver = driver_connection(connection)
    is_psycopg = connection.dialect.driver == "psycopg"
    try:
        await (
            driver.execute(statements, prepare=False) if is_psycopg else driver.execute(statements)
        )
    except BaseException as error:
        is_refused = getattr(error, "sqlstate", None) and not is_closed(driver)
        if not is_refused:
            # SQLAlchemy does not know what became of the connection. After a cancellation, asyncpg
            # asks the server to cancel the statement, and `invalidate` waits for that.
            if isinstance(error, Exception):
                drop_connection(driver)
            await asyncio.shield(start_task(connection.invalidate()))
        if isinstance(error, Exception):
            raise DBAPIError(
                statements, None, error, connection_invalidated=not is_refused
            ) from error
        raise


async def close_connection(connection: AsyncConnection, *, rolls_back: bool = False) -> None:
    """
    Return a connection to its pool.

    The pool rolls back first. With `rolls_back` a transaction of `begin_write` is rolled back. If
    this task is interrupted meanwhile, the server has not answered, and the connection is dropped.
    """
    driver = None if connection.invalidated else driver_connection(connection)
    forks = fork_count()
    closing = start_task(_roll_back_and_close(connection, rolls_back=rolls_back))
    try:
        await asyncio.shield(closing)
    except asyncio.CancelledError:
        if driver is not None:
            drop_connection(driver)
        await wait_until_done(closing, forks)
        raise


async def _roll_back_and_close(connection: AsyncConnection, *, rolls_back: bool) -> None:
    if rolls_back and not connection.invalidated:
        try:
            await _execute_unprepared(connection, "ROLLBACK")
        except SQLAlchemyError:
            # The error that made the rollback necessary is raised. This connection is not reused.
            await connection.invalidate()
    await hold_cancellation(connection.close())
