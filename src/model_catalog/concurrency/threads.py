"""Short rests of an event loop that has none, without which the threads beside it starve."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

P = ParamSpec("P")
T = TypeVar("T")

_LOOK_S: Final = 0.001
_SELDOM_S: Final = 0.05
# A sleeping processor needs 50 us to wake a thread, and a slow one more; what that has to do then
# takes about as long.
_REST_S: Final = 0.0001
_LONGEST_REST_S: Final = 0.0004
_BUSY: Final = 0.5


class LoopThrottle:
    """
    Of one event loop: it is looked at while threads work for it, and rests where it is busy.

    A loop that always has something to do lets go of Python's lock ten thousand times a second, to
    ask for events, and has it back before a thread on a sleeping processor has woken up: that waits
    for seconds to do what takes microseconds, and again after each system call. So for as long as
    somebody waits for a thread, a loop that has computed for half of a millisecond or more sleeps
    for a tenth of one, and where nothing has come of that a little longer. Of a loop that is idle,
    or that waits, nothing is taken.
    """

    def __init__(self) -> None:
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None
        self._pause_s = _LOOK_S
        self._rest_s = _REST_S
        self._looked_s = self._computed_s = 0.0

    def begin(self) -> None:
        """A thread begins to work for this loop; called in it."""
        self._count += 1
        if self._timer is None:
            self._pause_s = _LOOK_S
            self._watch()

    def end(self) -> None:
        """It has ended."""
        self._count -= 1
        self._rest_s = _REST_S

    def _watch(self) -> None:
        self._looked_s, self._computed_s = time.monotonic(), time.thread_time()
        self._timer = asyncio.get_running_loop().call_later(self._pause_s, self._look)

    def _look(self) -> None:
        self._timer = None
        if not self._count:
            return
        computed_s = time.thread_time() - self._computed_s
        if computed_s > _BUSY * (time.monotonic() - self._looked_s):
            # Of all that the loop does it is this that lets go of the lock for long enough.
            time.sleep(self._rest_s)
            self._rest_s = min(2 * self._rest_s, _LONGEST_REST_S)
            self._pause_s = _LOOK_S
        else:
            # To wake up an idle loop takes Python's lock away from the thread that works.
            self._pause_s = min(2 * self._pause_s, _SELDOM_S)
        self._watch()


_of_loops: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, LoopThrottle]] = WeakKeyDictionary()


def throttle_of_loop() -> LoopThrottle:
    """Those of the loop that runs."""
    loop = asyncio.get_running_loop()
    found = _of_loops.get(loop)
    if found is None:
        found = _of_loops[loop] = LoopThrottle()
    return found


@contextmanager
def thread_working() -> Iterator[None]:
    """A block in which a thread works for the loop that runs."""
    of_this_loop = throttle_of_loop()
    of_this_loop.begin()
    try:
        yield
    finally:
        of_this_loop.end()


async def to_thread(work: Callable[P, T], /, *args: P.args, **options: P.kwargs) -> T:
    """As `asyncio.to_thread`, but beside a busy loop the thread does not starve."""
    with thread_working():
        return await asyncio.to_thread(work, *args, **options)
