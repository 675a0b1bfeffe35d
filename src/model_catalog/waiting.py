"""How a call waits: for its own work, to the end; for somebody else's lock, up to a limit."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from model_catalog.errors import CatalogBusyError

T = TypeVar("T")

log = logging.getLogger(__name__)


async def to_its_end(
    work: Coroutine[Any, Any, T], on_cancel: Callable[[], object] | None = None
) -> T:
    """
    Run `work`, and do not leave before it has ended: cancelling the caller is delivered after it.

    A write cancelled halfway may or may not have been committed, and its connection is lost; one
    that is waited for has an outcome. `on_cancel` may hurry the work along.
    """
    task = asyncio.ensure_future(work)
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


class Patience:
    """
    How often to try again, and for how long, while somebody else holds a lock.

    Waiting is a sleep of the caller's own task, so that a cancellation ends it at once.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._start = time.monotonic()
        self._pause_s = 0.001

    async def after(self, error: CatalogBusyError) -> None:
        """Wait a moment; raise `error`, with the time that was waited, once there is none left."""
        waited = time.monotonic() - self._start
        if waited >= self._timeout_s:
            raise CatalogBusyError(error.target, error.reason, waited) from error
        # Whoever polls in step with another finds the same lock taken every time.
        await asyncio.sleep(self._pause_s * random.uniform(0.5, 1.0))  # noqa: S311
        self._pause_s = min(2 * self._pause_s, 0.05)


async def patiently(step: Callable[[], Coroutine[Any, Any, T]], timeout_s: float) -> T:
    """What `step` returns, each try of it run to its end, and tried again while it is busy."""
    patience = Patience(timeout_s)
    while True:
        try:
            return await to_its_end(step())
        except CatalogBusyError as error:
            await patience.after(error)
