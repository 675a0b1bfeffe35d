"""Runs a step on an async connection so that a deadline or a cancellation can interrupt it."""

from __future__ import annotations

import asyncio
import contextlib
import time
import traceback as tracebacks
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, Final, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from model_catalog.concurrency.completion import run_to_completion
from model_catalog.concurrency.retry import MIN_TIMEOUT_S, Backoff
from model_catalog.concurrency.threads import thread_working
from model_catalog.connection.database_info import driver_connection
from model_catalog.connection.error_mapping import map_errors
from model_catalog.connection.timeouts import LOCK_WAIT_S
from model_catalog.errors import CatalogBusyError, CatalogUnavailableError
from model_catalog.execution.executor import SLOW_STATEMENTS

T = TypeVar("T")

SERVER_GRACE_S: Final = 0.08
"""The seconds that a server gets to end a late statement itself, before its driver is cancelled."""

TIMEOUT_TOLERANCE_S: Final = 0.05
"""The statement timeout is set again before COMMIT if the operation took longer than this."""

# A call that was cancelled waits at most this long for a lock inside the server.
_MAX_LOCK_WAIT_S: Final = 2.0

_NO_CONNECTION: Final = "no connection was free, or could be made, within the timeout"


class InterruptibleRun:
    """
    One attempt at a step on a connection, as a context manager around the step.

    Use it in the task that runs the step: `with run: ...; return result`, then `return run.result`.
    `interrupt` may be called from anywhere in the loop. It interrupts a statement of SQLite in the
    driver's thread. For PostgreSQL, and while the step waits for a connection, it cancels the task:
    the driver then cancels the statement on the server.

    Errors of SQLAlchemy and of drivers are raised as the catalog's own. An interrupted step raises
    CatalogBusyError. If it was interrupted while a server was committing, it raises
    CatalogUnavailableError, because the outcome is unknown. If it was interrupted after the commit,
    the block ends without an error, and `result` is the result.
    """

    __slots__ = (
        "_connection",
        "_has_read",
        "_interrupt_task",
        "_is_committed",
        "_is_interrupted",
        "_target",
        "_task",
        "is_committing",
        "result",
    )

    def __init__(self, target: str) -> None:
        self._target = target
        self._task: asyncio.Task[Any] | None = None
        self._connection: AsyncConnection | None = None
        self._interrupt_task: asyncio.Future[Any] | None = None
        self._is_interrupted = False
        self._is_committed = False
        self._has_read = False
        self.is_committing = False
        """Whether COMMIT was sent to the server, or is about to be."""
        self.result: Any = None
        """The result of a write, from `mark_committing` on."""

    def __enter__(self) -> None:
        self._task = asyncio.current_task()

    def __exit__(
        self, kind: object, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if error is None:
            return False
        if isinstance(error, asyncio.CancelledError):
            if not self._is_interrupted:
                return False
            if self._is_committed:
                return True
            raise self._error_of_cancelled_task(traceback) from error
        try:
            map_errors(self._target).__exit__(kind, error, traceback)
        except CatalogBusyError as busy:
            error = busy
            if not self._is_interrupted:
                raise
        if self._is_interrupted and isinstance(error, CatalogBusyError):
            raise CatalogBusyError(self._target, SLOW_STATEMENTS) from error
        return False

    def _error_of_cancelled_task(self, traceback: TracebackType | None) -> Exception:
        if self.is_committing:
            return CatalogUnavailableError(
                self._target,
                "the server did not answer COMMIT in time, so it is not known whether the changes "
                "were committed: read them before you repeat the call",
            )
        if self._connection is not None:
            return CatalogBusyError(self._target, SLOW_STATEMENTS)
        # psycopg closes a connection that was being made when its last reference goes. This error
        # holds one: without this, the server would keep the connection for as long as the error.
        tracebacks.clear_frames(traceback)
        return CatalogBusyError(self._target, _NO_CONNECTION)

    def set_connection(self, connection: AsyncConnection | None) -> None:
        """Set the connection that the step uses; from here on its statements can be stopped."""
        self._connection = connection

    def mark_read_done(self) -> None:
        """Record that a step that reads has its rows, and is about to return its connection."""
        self._has_read = True

    def mark_committing(self, result: object = None) -> None:
        """Record that the step is about to commit, and its result if that succeeds."""
        self.is_committing = True
        self.result = result

    def mark_committed(self, *_: object) -> None:
        """Record that the commit succeeded. Returning the connection may still take a while."""
        self._is_committed = True

    def interrupt(self) -> None:
        """Make the step end soon. It may be called again while the step still runs."""
        connection = self._connection
        if connection is not None and connection.dialect.name == "sqlite":
            self._interrupt_task = asyncio.ensure_future(_interrupt(connection))
        elif self._task is not None and not self._is_interrupted:
            # Only once: the driver's own clean-up after it must not be cancelled as well.
            self._task.cancel()
        self._is_interrupted = True

    def interrupt_read(self) -> None:
        """
        Make a step that only reads end soon, because its caller was cancelled.

        Does nothing while the step connects: a driver that is cancelled there leaks a connection.
        Does nothing when the step has its rows: if the pool is full, the connection is being
        closed, and SQLAlchemy would report the cancellation of that as an error.
        """
        if self._connection is not None and not self._has_read:
            self.interrupt()


async def _interrupt(connection: AsyncConnection) -> None:
    # The connection may be closed by now. No statement runs on it then.
    with contextlib.suppress(Exception):
        await driver_connection(connection).interrupt()


async def run_with_retries(
    attempt: Callable[[InterruptibleRun, float], Coroutine[Any, Any, T]],
    backoff: Backoff,
    target: str,
    grace_s: float,
    *,
    writes: bool,
) -> T:
    """
    Run `attempt(run, lock_wait_s)` to completion; repeat it while it raises CatalogBusyError.

    `lock_wait_s` is the lock timeout of the attempt on PostgreSQL: 0.1 s at first, and doubled up
    to 2 s. On SQLite it is always 0.1 s. An attempt is interrupted `grace_s` seconds after the time
    of `backoff` is up. If the caller is cancelled, a read is interrupted and a write is waited for.
    """
    lock_wait_s = LOCK_WAIT_S
    while True:
        run = InterruptibleRun(target)
        try:
            return await run_to_completion(
                attempt(run, lock_wait_s),
                None if writes else run.interrupt_read,
                timeout_s=max(backoff.remaining_s, MIN_TIMEOUT_S) + grace_s,
                on_timeout=run.interrupt,
            )
        except CatalogBusyError as error:
            await backoff.wait_or_raise(error)
            # A transaction that locks rows one by one, and always gives up first, would never have
            # all of them.
            lock_wait_s = min(2 * lock_wait_s, _MAX_LOCK_WAIT_S)


async def run_in_open_transaction(
    step: Coroutine[Any, Any, T], run: InterruptibleRun, timeout_s: float, grace_s: float
) -> T:
    """
    Run one step of an open transaction to completion. It cannot be repeated.

    It is interrupted after `timeout_s` plus `grace_s` seconds, but not by a cancellation. Then
    CatalogBusyError tells how long it took.
    """
    start = time.monotonic()
    try:
        return await run_to_completion(
            step, timeout_s=max(timeout_s, MIN_TIMEOUT_S) + grace_s, on_timeout=run.interrupt
        )
    except CatalogBusyError as error:
        waited_s = time.monotonic() - start
        raise CatalogBusyError(error.target, error.reason, waited_s) from error


def driver_working(dialect: str) -> AbstractContextManager[None]:
    """Return a block that waits for the driver: aiosqlite works in a thread, others do not."""
    return thread_working() if dialect == "sqlite" else nullcontext()
