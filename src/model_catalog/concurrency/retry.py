"""Retries with exponential backoff and a time limit, for a database that is locked."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final, TypeVar

from model_catalog.concurrency.completion import run_to_completion
from model_catalog.concurrency.threads import thread_working
from model_catalog.errors import CatalogBusyError

T = TypeVar("T")

DEFAULT_OPEN_TIMEOUT_S: Final = 60.0
"""The seconds that opening a database, or changing its schema, waits for other users of it."""

MIN_TIMEOUT_S: Final = 0.09
"""The seconds that a call gets for its own work, even if its timeout is 0."""

_FIRST_PAUSE_S: Final = 0.001


def backoff_pauses_s(longest_s: float = 0.05) -> Iterator[float]:
    """
    Yield the seconds to pause before each retry, without end.

    The pauses double from 1 ms to `longest_s`. Each is shortened at random by up to a half: two
    programs that retry in step would find the same lock taken every time.
    """
    pause_s = _FIRST_PAUSE_S
    while True:
        yield pause_s * random.uniform(0.5, 1.0)  # noqa: S311 - not for cryptography
        pause_s = min(2 * pause_s, longest_s)


class Backoff:
    """
    The remaining time of a call, and the pauses between its retries.

    It pauses by a sleep of the caller's own task, so that a cancellation ends the pause at once.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._start = time.monotonic()
        self._pauses_s: Iterator[float] | None = None

    @property
    def remaining_s(self) -> float:
        """The seconds that are left; negative when the time is up."""
        return self._start + self._timeout_s - time.monotonic()

    async def wait_or_raise(self, error: CatalogBusyError) -> None:
        """
        Pause before a retry.

        When the time is up, raise a new CatalogBusyError with the reason of `error` and the seconds
        waited.
        """
        waited_s = time.monotonic() - self._start
        if waited_s >= self._timeout_s:
            raise CatalogBusyError(error.target, error.reason, waited_s) from error
        if self._pauses_s is None:
            self._pauses_s = backoff_pauses_s()
        await asyncio.sleep(min(next(self._pauses_s), self._timeout_s - waited_s))


async def retry_while_busy(step: Callable[[], Coroutine[Any, Any, T]], timeout_s: float) -> T:
    """
    Return the result of `step()`; run it again while it raises CatalogBusyError.

    Each attempt is run to completion. After `timeout_s` seconds the CatalogBusyError is raised.
    """
    backoff = Backoff(timeout_s)
    while True:
        try:
            with thread_working():
                return await run_to_completion(step())
        except CatalogBusyError as error:
            busy = error
        # Not in the block above: the traceback of a cancellation would contain that of the error.
        try:
            await backoff.wait_or_raise(busy)
        finally:
            # Its traceback refers to this frame.
            del busy
