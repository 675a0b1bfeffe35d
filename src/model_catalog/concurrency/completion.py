"""How a call waits: for its own work, to the end; for somebody else's lock, up to a limit."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from model_catalog.concurrency.threads import thread_working
from model_catalog.errors import CatalogBusyError

T = TypeVar("T")

DEFAULT_OPEN_TIMEOUT_S: Final = 60.0
"""The seconds that whoever opens a database or changes its schema waits for others."""

MIN_TIMEOUT_S: Final = 0.09
"""What a call may take where nobody holds it up, also if it is given no time to wait."""

# What stops a statement may fall between two of them, and stop neither.
_INTERRUPT_RETRY_S: Final = 0.02

log = logging.getLogger(__name__)


async def run_to_completion(
    work: Coroutine[Any, Any, T],
    on_cancel: Callable[[], object] | None = None,
    *,
    late_after_s: float | None = None,
    on_late: Callable[[], object] | None = None,
) -> T:
    """
    Run `work`, and do not leave before it has ended: cancelling the caller is delivered after it.

    A write cancelled halfway may or may not have been committed, and its connection is lost; one
    that is waited for has an outcome. `on_cancel` may hurry the work along. `on_late` is to stop
    it after so many seconds, and is called again and again while the work runs on.
    """
    task = asyncio.ensure_future(work)
    if late_after_s is not None and on_late is not None:
        _stop_after_deadline(task, late_after_s, on_late)
    try:
        # Not shield(): what fails after the cancellation it reports, since Python 3.14, as an error
        # that nobody looks at.
        await asyncio.wait([task])
    except asyncio.CancelledError:
        if on_cancel is not None:
            on_cancel()
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError:
                # anyio cancels again at every turn of the loop for as long as its scope is left
                # waiting: the answer is the same each time.
                continue
        if not task.cancelled() and (error := task.exception()) is not None:
            log.debug("failed after its caller was cancelled", exc_info=error)
        raise
    return task.result()


def _stop_after_deadline(
    task: asyncio.Future[Any], after_s: float, stop: Callable[[], object]
) -> None:
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def late() -> None:
        nonlocal timer
        stop()
        timer = loop.call_later(_INTERRUPT_RETRY_S, late)

    timer = loop.call_later(max(0.0, after_s), late)
    task.add_done_callback(lambda _: timer.cancel())


class Backoff:
    """
    How often to try again, and for how long, while somebody else holds a lock.

    Waiting is a sleep of the caller's own task, so that a cancellation ends it at once.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._start = time.monotonic()
        self._pause_s = 0.001

    @property
    def left_s(self) -> float:
        """The seconds that are left."""
        return self._start + self._timeout_s - time.monotonic()

    async def after(self, error: CatalogBusyError) -> None:
        """Wait a moment; raise `error`, with the time that was waited, once there is none left."""
        waited = time.monotonic() - self._start
        if waited >= self._timeout_s:
            raise CatalogBusyError(error.target, error.reason, waited) from error
        # Whoever polls in step with another finds the same lock taken every time.
        pause_s = self._pause_s * random.uniform(0.5, 1.0)  # noqa: S311
        await asyncio.sleep(min(pause_s, self._timeout_s - waited))
        self._pause_s = min(2 * self._pause_s, 0.05)


async def retry_while_busy(step: Callable[[], Coroutine[Any, Any, T]], timeout_s: float) -> T:
    """What `step` returns, each try of it run to its end, and tried again while it is busy."""
    patience = Backoff(timeout_s)
    while True:
        try:
            with thread_working():
                return await run_to_completion(step())
        except CatalogBusyError as error:
            await patience.after(error)
