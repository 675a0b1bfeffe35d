"""Runs attempts to completion: their deadline, their repetition, and the caller's cancellation."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from model_catalog.concurrency.completion import hold_cancellation, run_to_completion
from model_catalog.concurrency.retry import MIN_TIMEOUT_S, Backoff
from model_catalog.concurrency.threads import thread_working
from model_catalog.connection.interruption.interruptible_run import InterruptibleRun
from model_catalog.connection.timeouts import LOCK_WAIT_S
from model_catalog.errors import CatalogBusyError, CatalogUnavailableError

T = TypeVar("T")

log = logging.getLogger("model_catalog.connection")

SERVER_GRACE_S: Final = 0.08
"""The seconds that a server gets to end a late statement itself, before its driver is cancelled."""

TIMEOUT_TOLERANCE_S: Final = 0.05
"""The statement timeout is set again before COMMIT if the operation took longer than this."""

# A call that was cancelled waits at most this long for a lock inside the server.
_MAX_LOCK_WAIT_S: Final = 2.0

# A server rolls back at once, however much was written. Waiting longer would tell nothing.
_ROLLBACK_S: Final = 0.5


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
    of `backoff` is up. If the caller is cancelled, a read is interrupted, and a write on a server
    gets another second.
    """
    lock_wait_s = LOCK_WAIT_S
    while True:
        run = InterruptibleRun(target, backoff.remaining_s)
        try:
            return await run_to_completion(
                attempt(run, lock_wait_s),
                run.cancel_write if writes else run.cancel_read,
                timeout_s=max(backoff.remaining_s, MIN_TIMEOUT_S) + grace_s,
                on_timeout=run.interrupt,
            )
        except CatalogBusyError as error:
            busy = error
        # Not in the block above: the traceback of a cancellation would contain that of the error.
        try:
            await backoff.wait_or_raise(busy)
        finally:
            # Its traceback refers to this frame.
            del busy
        # A transaction that locks rows one by one, and always gives up first, would never have all
        # of them.
        lock_wait_s = min(2 * lock_wait_s, _MAX_LOCK_WAIT_S)


async def run_in_open_transaction(
    step: Coroutine[Any, Any, T], run: InterruptibleRun, timeout_s: float, grace_s: float
) -> T:
    """
    Run one step of an open transaction to completion. It cannot be repeated.

    It is interrupted after `timeout_s` plus `grace_s` seconds, and on a server a second after a
    cancellation. Then CatalogBusyError tells how long it took.
    """
    start = time.monotonic()
    try:
        return await run_to_completion(
            step,
            run.cancel_write,
            timeout_s=max(timeout_s, MIN_TIMEOUT_S) + grace_s,
            on_timeout=run.interrupt,
        )
    except CatalogBusyError as error:
        waited_s = time.monotonic() - start
        raise CatalogBusyError(error.target, error.reason, waited_s) from error


async def close_in_time(
    close: Callable[[], Coroutine[Any, Any, None]], connection: AsyncConnection | None, target: str
) -> None:
    """
    Call `close`, which rolls back and returns a connection to its pool, and run it to completion.

    A server gets half a second to answer. Then the connection is dropped, which rolls back too. A
    lost connection is not reported, because nothing was to be kept.
    """
    run = InterruptibleRun(target)

    async def step() -> None:
        with run:
            run.set_connection(connection)
            await hold_cancellation(close())

    is_server = connection is not None and connection.dialect.name != "sqlite"
    try:
        await run_to_completion(
            step(), timeout_s=_ROLLBACK_S if is_server else None, on_timeout=run.drop
        )
    except (CatalogBusyError, CatalogUnavailableError):
        log.debug(
            "the connection to %s was lost before the rollback",
            target,
            exc_info=True,
            extra={"model_catalog_url": target},
        )


def driver_working(dialect: str) -> AbstractContextManager[None]:
    """Return a block that waits for the driver: aiosqlite works in a thread, others do not."""
    return thread_working() if dialect == "sqlite" else nullcontext()
