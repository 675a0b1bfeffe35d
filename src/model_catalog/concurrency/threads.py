"""Runs functions in threads, and keeps a busy event loop from starving those threads of the GIL."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from typing import Final, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

from model_catalog.concurrency.forks import fork_count
from model_catalog.concurrency.ownership import running_loop
from model_catalog.errors import CatalogError

P = ParamSpec("P")
T = TypeVar("T")

REPORT_INTERVAL_S: Final = 0.1
"""How often progress is reported at most."""

_STARVED_AFTER_S: Final = 0.005
_HELP_S: Final = 0.1
_HELP_CHECK_S: Final = 0.001
_LONGEST_CHECK_S: Final = 0.05
# A sleeping processor core needs 50 us to wake a thread, a slow one longer. The thread's own work
# then takes about as long.
_FIRST_SLEEP_S: Final = 0.0001
_LONGEST_SLEEP_S: Final = 0.0004
_BUSY_SHARE: Final = 0.5
_LATE: Final = 1.5


class LoopThrottle:
    """
    Makes one event loop sleep briefly while it is busy and threads work for it.

    A busy event loop starves worker threads. It releases the GIL ten thousand times a second, each
    time it polls for events, but takes it back before a thread on a sleeping core has woken up. A
    thread then needs seconds for microseconds of work, and again after each system call.

    While threads work, the loop's load is checked every 5 ms. A thread has starved if none has
    finished between two checks in a row, and the loop has computed for more than half of the time
    before each. A check that comes late does not count: the loop was in one long callback, such as
    compiling a statement, and in that Python itself hands the GIL over every 5 ms. If a thread has
    starved the loop sleeps for 0.1 ms, and for up to 0.4 ms if no thread has finished by the next
    check. For 0.1 s after that the load is checked every millisecond, so that the next thread need
    not starve as well. A loop that is idle, or that waits, or whose threads finish in time, never
    sleeps. It is checked less and less often, down to every 50 ms.
    """

    def __init__(self) -> None:
        self._forks = fork_count()
        self._working_thread_count = 0
        self._timer: asyncio.TimerHandle | None = None
        self._check_after_s = _STARVED_AFTER_S
        self._sleep_s = _FIRST_SLEEP_S
        self._checked_s = self._computed_s = 0.0
        self._progress_s = 0.0
        """When a thread finished last, or the first of those that work now was started."""
        self._suspected_s = 0.0
        """When a check last found that a thread may have starved; 0.0 if the last one did not."""
        self._helps_until_s = 0.0

    def thread_started(self) -> None:
        """Count a thread that starts to work, and check the load of the loop while any works."""
        if not self._working_thread_count:
            self._progress_s = time.monotonic()
        self._working_thread_count += 1
        if self._timer is None:
            self._check_after_s = self._first_check_s
            self._schedule_check()

    def thread_finished(self) -> None:
        """Record that a thread has finished its work. Call it in the loop."""
        self._working_thread_count -= 1
        self._progress_s = time.monotonic()
        self._sleep_s = _FIRST_SLEEP_S

    @property
    def _first_check_s(self) -> float:
        return _HELP_CHECK_S if time.monotonic() < self._helps_until_s else _STARVED_AFTER_S

    def _schedule_check(self) -> None:
        self._checked_s, self._computed_s = time.monotonic(), time.thread_time()
        self._timer = asyncio.get_running_loop().call_later(self._check_after_s, self._check_load)

    def _check_load(self) -> None:
        self._timer = None
        # A forked child has no thread of its parent.
        if not self._working_thread_count or self._forks != fork_count():
            return
        now_s = time.monotonic()
        computed_s = time.thread_time() - self._computed_s
        passed_s = now_s - self._checked_s
        is_busy = computed_s > _BUSY_SHARE * passed_s
        may_starve = (
            is_busy
            and passed_s < _LATE * self._check_after_s
            and now_s - self._progress_s >= _STARVED_AFTER_S
        )
        if may_starve and self._progress_s < self._suspected_s:
            self._helps_until_s = now_s + _HELP_S
        self._suspected_s = now_s if may_starve else 0.0
        if is_busy and now_s < self._helps_until_s:
            # Of all that the loop does, only this releases the GIL for long enough.
            time.sleep(self._sleep_s)
            self._sleep_s = min(2 * self._sleep_s, _LONGEST_SLEEP_S)
            self._check_after_s = _HELP_CHECK_S
        elif is_busy:
            self._check_after_s = _STARVED_AFTER_S
        else:
            # Waking an idle loop takes the GIL away from the thread that works.
            self._check_after_s = min(2 * self._check_after_s, _LONGEST_CHECK_S)
        self._schedule_check()


_throttles: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, LoopThrottle]] = WeakKeyDictionary()


def throttle_of_loop() -> LoopThrottle:
    """Return the throttle of the running event loop."""
    loop = running_loop()
    throttle = _throttles.get(loop)
    if throttle is None:
        throttle = _throttles[loop] = LoopThrottle()
    return throttle


@contextmanager
def thread_working() -> Iterator[None]:
    """
    Let the event loop, if it is busy, sleep briefly during the block.

    So a worker thread gets the GIL. An idle loop is not slowed down; see LoopThrottle.
    """
    throttle = throttle_of_loop()
    throttle.thread_started()
    try:
        yield
    finally:
        throttle.thread_finished()


def no_thread_error(error: RuntimeError) -> CatalogError:
    """Return the error to raise when Python could not start a thread."""
    return CatalogError(
        f"a call of the catalog needs a thread, which could not be started: {error}. Raise the "
        f"limit of processes and threads of this user, or run fewer of them"
    )


async def to_thread(work: Callable[P, T], /, *args: P.args, **options: P.kwargs) -> T:
    """
    Run a function in a thread of its own; a busy event loop lets it get the GIL.

    The default executor of the loop may be full of the host's own work, so it is not used. Raises
    CatalogError if this process cannot start a thread.
    """
    executor = ThreadPoolExecutor(1, thread_name_prefix="model-catalog-work")
    run = partial(copy_context().run, work, *args, **options)
    try:
        with thread_working():
            try:
                future = asyncio.get_running_loop().run_in_executor(executor, run)
            except RuntimeError as error:
                raise no_thread_error(error) from error
            return await future
    finally:
        executor.shutdown(wait=False)


class CountReporter:
    """
    Reports counts from any thread to the event loop, at most ten times a second.

    Calls `on_progress` in the loop with the arguments that the reporter was called with.
    """

    def __init__(self, on_progress: Callable[..., object]) -> None:
        self._on_progress = on_progress
        self._loop = running_loop()
        self._reported_at = 0.0

    def __call__(self, *counts: int) -> None:
        now = time.monotonic()
        if now - self._reported_at >= REPORT_INTERVAL_S:
            self._reported_at = now
            # RuntimeError: the event loop is closed, so no task is waiting for the report.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._on_progress, *counts)
