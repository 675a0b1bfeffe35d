"""Runs operations on the connections of a host's pool, in the threads of `aiosqlite`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sqlalchemy import AsyncAdaptedQueuePool, Engine
from sqlalchemy.engine.base import OptionEngine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.pool import reset_commit, reset_rollback

from model_catalog.concurrency.forks import start_task
from model_catalog.concurrency.ownership import HostOwner, LoopOwner
from model_catalog.concurrency.retry import backoff_pauses_s
from model_catalog.concurrency.threads import thread_working
from model_catalog.connection.database_info import HOST, driver_connection
from model_catalog.connection.error_mapping import map_errors
from model_catalog.connection.interruption.interruptible_run import NO_CONNECTION
from model_catalog.errors import CatalogBusyError, CatalogUnavailableError
from model_catalog.execution.executor import OTHER_WRITER, Operation, forbid_nested_write
from model_catalog.execution.sqlite_threads.borrowed_connection import borrow
from model_catalog.execution.sqlite_threads.request_queue import (
    Batch,
    ReaderQueues,
    RequestQueue,
    run_batch,
)
from model_catalog.execution.sqlite_threads.transaction_runner import Requests, TransactionRunner

if TYPE_CHECKING:
    import aiosqlite

T = TypeVar("T")

_LOOP_ENDED: Final = "the event loop ended during the call, so its outcome is not known"

_is_returning: Final = ContextVar("model_catalog_is_returning", default=False)
_POOL_LOGGER: Final = logging.getLogger("sqlalchemy.pool.impl.AsyncAdaptedQueuePool")


def _is_kept(record: logging.LogRecord) -> bool:
    """Drop what SQLAlchemy logs if the end of the loop cancels one of our tasks in its wait."""
    error = record.exc_info[1] if record.exc_info else None
    return not (_is_returning.get() and isinstance(error, asyncio.CancelledError))


class PooledExecutor:
    """
    Runs operations on an engine of a host, for sessions that do nothing but connect to it.

    It exists because it is faster than sessions: an operation with its BEGIN and COMMIT is one
    hand-over to the thread of `aiosqlite`, and operations that come at the same time share it. It
    takes at most five connections of the pool at once: four to read, one to write.

    It belongs to one event loop. An operation for which the host's connection is not suitable is
    passed to `run_in_session`.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        name: str,
        timeout_s: float,
        owner: LoopOwner | HostOwner,
        *,
        write_lock: asyncio.Lock,
        run_in_session: Callable[[Operation[Any, Any]], Coroutine[Any, Any, Any]],
    ) -> None:
        self._engine = engine
        self._name = name
        self._timeout_s = timeout_s
        self._owner = owner
        self._run_in_session = run_in_session
        self.is_suitable = True
        """Whether the connections of the engine have been suitable so far."""
        _POOL_LOGGER.addFilter(_is_kept)
        self._readers = ReaderQueues(partial(self._new_queue, None))
        self._writer = self._new_queue(write_lock)

    def _new_queue(self, write_lock: asyncio.Lock | None) -> RequestQueue:
        runner = TransactionRunner(None, self._name, writes=write_lock is not None)
        return RequestQueue(
            runner,
            self._name,
            lambda queue: _PoolWorker(queue, runner, self._engine, self._name, write_lock),
            writes=write_lock is not None,
        )

    async def run(self, operation: Operation[Any, T]) -> T:
        """Run an operation on a connection of the pool."""
        if operation.writes:
            forbid_nested_write(self._engine.sync_engine)
        queue = (
            self._writer if operation.writes else self._readers.pick(exclusive=operation.exclusive)
        )
        timeout_s = operation.timeout_s
        with self._owner.active_call():
            try:
                return await queue.submit(
                    operation, self._timeout_s if timeout_s is None else timeout_s
                )
            except _UnsuitableConnectionError:
                self.is_suitable = False
        return await self._run_in_session(operation)  # type: ignore[no-any-return]

    async def close(self) -> None:
        """Wait for the batches in progress."""
        for queue in (self._writer, *self._readers.queues):
            await queue.close()


class _PoolWorker:
    """
    Runs batches in the thread of a connection that it takes from the pool for each; a `Worker`.

    A batch that writes waits for its turn among the engine's writers, and then for a connection.
    `transaction()` does the same. Otherwise the writer whose turn it is might wait for a
    connection that another one keeps while it waits for its turn.
    """

    def __init__(
        self,
        queue: RequestQueue,
        runner: TransactionRunner,
        engine: AsyncEngine,
        name: str,
        write_lock: asyncio.Lock | None,
    ) -> None:
        self._queue = queue
        self._runner = runner
        self._engine = engine
        self._name = name
        self._turn = contextlib.nullcontext() if write_lock is None else write_lock
        self._task: asyncio.Task[None] | None = None

    def put(self, batch: Batch) -> None:
        """Run a batch in a task of its own."""
        # An empty context: the context variables of the first caller are not those of the others.
        self._task = start_task(self._serve(*batch), context=Context())

    async def close(self) -> None:
        """Do nothing: the connections belong to the pool."""

    async def _serve(self, run: Callable[[Requests], None], requests: Requests) -> None:
        try:
            with map_errors(self._name):
                await self._run_on_connection(run, requests)
        except asyncio.CancelledError:
            self._fail(requests, CatalogUnavailableError(self._name, _LOOP_ENDED))
            raise
        except Exception as error:  # noqa: BLE001 - the waiting tasks raise it
            self._fail(requests, error)
        finally:
            # The connection is in its pool again: a host may dispose of its engine after a call.
            self._queue.on_batch_done(requests)

    def _fail(self, requests: Requests, error: Exception) -> None:
        for request in requests:
            request.error = request.error or error

    async def _run_on_connection(self, run: Callable[[Requests], None], requests: Requests) -> None:
        self._runner.waiting_for = OTHER_WRITER
        async with self._turn:
            self._runner.waiting_for = NO_CONNECTION
            connection = await self._connect(requests)
            try:
                driver = driver_connection(connection)
                if not _is_suitable(driver):
                    raise _UnsuitableConnectionError
                self._runner.waiting_for = None
                with thread_working():
                    done = _start_in_thread(
                        driver, partial(self._run_in_thread, driver, run, requests)
                    )
                    # The thread runs what it gets in order. The rollback with which the connection
                    # returns to the pool is queued behind the batch, so both are one wait.
                    _is_returning.set(True)
                    await connection.close()
                    await done
            finally:
                if not connection.closed:
                    await connection.close()

    async def _connect(self, requests: Requests) -> AsyncConnection:
        pauses_s = None
        while True:
            try:
                with map_errors(self._name):
                    return await self._engine.connect()
            except CatalogBusyError:
                if all(request.is_dropped for request in requests):
                    raise
                pauses_s = pauses_s or backoff_pauses_s()
                await asyncio.sleep(next(pauses_s))

    def _run_in_thread(
        self, driver: aiosqlite.Connection, run: Callable[[Requests], None], requests: Requests
    ) -> None:
        options = self._engine.sync_engine.get_execution_options()
        with (
            borrow(_sqlite_connection(driver), options) as connection,
            self._runner.using(connection),
        ):
            run_batch(run, requests)


def is_suitable_engine(engine: AsyncEngine) -> bool:
    """
    Return whether a PooledExecutor can use an engine of SQLite.

    Each call must have a connection of its own, from a pool that keeps it, and that rolls back or
    commits when it takes it back. A database in memory has one connection for all. Options of the
    engine may translate schemas or set an isolation level; only the catalog's host is known here.
    """
    sync_engine = engine.sync_engine
    pool, dialect = sync_engine.pool, sync_engine.dialect
    return (
        type(sync_engine) in (Engine, OptionEngine)
        and type(pool) is AsyncAdaptedQueuePool
        and dialect.driver == "aiosqlite"
        and sync_engine.get_execution_options().keys() <= {HOST}
        # Otherwise nothing would wait for the batch before the pool lends the connection again.
        # SQLAlchemy has no public name for the setting.
        and pool._reset_on_return in (reset_rollback, reset_commit)  # noqa: SLF001
        and not dialect.skip_autocommit_rollback
    )


class _UnsuitableConnectionError(Exception):
    """The host has configured the connection in a way that needs SQLAlchemy between."""


def _is_suitable(driver: object) -> bool:
    # A host that uses the driver has imported it. No other process needs it.
    import aiosqlite  # noqa: PLC0415

    if not isinstance(driver, aiosqlite.Connection):
        return False
    connection: object = _sqlite_connection(driver)
    # From Python 3.12 on, `autocommit=False` keeps a transaction open at all times, and with True
    # commit() does nothing. The value of the older mode is negative.
    return (
        isinstance(connection, sqlite3.Connection)
        and not connection.in_transaction
        and getattr(connection, "autocommit", -1) not in (True, False)
    )


# aiosqlite has no public method that runs a function in its thread. Its methods run one statement
# each, and a find of SQLAlchemy takes five hops. SQLAlchemy's dialect uses `_conn` and `_tx` in the
# same way. These are the only two functions that use private names of aiosqlite.


def _sqlite_connection(driver: aiosqlite.Connection) -> sqlite3.Connection:
    try:
        return driver._conn  # noqa: SLF001
    except ValueError as error:
        raise sqlite3.OperationalError(f"{error}") from error


def _start_in_thread(
    driver: aiosqlite.Connection, function: Callable[[], None]
) -> asyncio.Future[None]:
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    driver._tx.put_nowait((done, function))  # noqa: SLF001
    return done
