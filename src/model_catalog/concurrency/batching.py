"""Calls that come together, done as one: the queue in which they meet."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from functools import partial
from typing import Any, Final, Generic, TypeVar

from model_catalog.errors import CatalogBusyError

I = TypeVar("I")  # noqa: E741 - an item
R = TypeVar("R")


class Coalescer(Generic[I, R]):
    """
    One run for all calls of an event loop that arrive in one turn of it, or while others run.

    Each waits for the run it is part of, which is given the time that is left to the first of its
    calls: those that have more are part of another. Of a run that `reads` everybody may take leave,
    so it is given the time of the last. One that is cancelled before its run began is left out of
    it; one that is cancelled during it learns of it afterwards, or if it only reads at once. A run
    that nobody waits for any more is cancelled.
    """

    def __init__(
        self,
        run: Callable[[Sequence[I], float], Awaitable[Sequence[R]]],
        *,
        most: int = 1,
        reads: bool = False,
        late: Callable[[], CatalogBusyError] | None = None,
    ) -> None:
        """At `most` so many run at once; `late` makes what a call is told that gives up waiting."""
        self._run: Final = run
        self._most: Final = most
        self._reads: Final = reads
        self._late: Final = late
        self._running = 0
        self._next: _Batch[I, R] = _Batch()

    async def submit(self, item: I, timeout_s: float) -> R:
        """Have an item done; return what the run says of it, or raise what it raised."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        call: _PendingCall[I, R] = _PendingCall(item, start + timeout_s, loop.create_future())
        self._join(call)
        timer = None
        if self._late is not None:
            timer = loop.call_at(call.end + _GRACE_S, self._give_up, call, self._late)
        try:
            return await call.done
        except asyncio.CancelledError:
            if not call.done.cancelled():
                # It was told a moment before: that nobody looks at it is no fault.
                call.done.exception()
            await self._leave(call)
            raise
        except CatalogBusyError as error:
            if call.has_given_up:
                await self._leave(call)
            # It may have waited for another run first.
            raise CatalogBusyError(error.target, error.reason, loop.time() - start) from error
        finally:
            if timer is not None:
                timer.cancel()

    def _join(self, call: _PendingCall[I, R]) -> None:
        batch = call.batch = self._next
        batch.calls[call] = None
        if batch.task is None and self._running < self._most:
            self._start(batch)

    def _start(self, batch: _Batch[I, R]) -> None:
        self._running += 1
        # In a context of its own: what is true of the first caller is not true of the others.
        batch.task = asyncio.create_task(self._go(batch), context=Context())
        # Also where it is cancelled before its first step.
        batch.task.add_done_callback(partial(self._settle, batch))

    async def _go(self, batch: _Batch[I, R]) -> Sequence[R]:
        self._next = _Batch()
        batch.has_begun = True
        if not batch.calls:
            return ()
        of_all = max if self._reads else min
        batch.end = of_all(call.end for call in batch.calls)
        left_s = batch.end - asyncio.get_running_loop().time()
        return await self._run([call.item for call in batch.calls], left_s)

    def _settle(self, batch: _Batch[I, R], task: asyncio.Task[Sequence[R]]) -> None:
        self._running -= 1
        if self._next is batch:
            self._next = _Batch()
        waiting = [call for call in batch.calls if not call.done.done()]
        if task.cancelled():
            for call in waiting:
                call.done.cancel()
        elif (error := task.exception()) is not None:
            for call in waiting:
                if isinstance(error, CatalogBusyError) and call.end > batch.end:
                    self._join(call)
                else:
                    call.done.set_exception(error)
        else:
            for call, result in zip(batch.calls, task.result(), strict=True):
                if not call.done.done():
                    call.done.set_result(result)
        if self._next.calls and self._next.task is None:
            self._start(self._next)

    def _give_up(self, call: _PendingCall[I, R], late: Callable[[], CatalogBusyError]) -> None:
        if not call.done.done() and (self._reads or not call.batch.has_begun):
            call.has_given_up = True
            call.done.set_exception(late())

    async def _leave(self, call: _PendingCall[I, R]) -> None:
        batch = call.batch
        if not batch.has_begun:
            batch.calls.pop(call, None)
            return
        task = batch.task
        if task is None or task.done():
            return
        if all(other.done.done() for other in batch.calls):
            task.cancel()
        elif self._reads:
            return
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError:
                # Again and again, where anyio cancels: the answer is the same each time.
                continue


# What runs is to end by itself first: how that came to be it can say.
_GRACE_S: Final = 0.08


class _PendingCall(Generic[I, R]):
    """An item, when its time is up, and what becomes of it."""

    __slots__ = ("batch", "done", "end", "has_given_up", "item")

    batch: _Batch[I, R]

    def __init__(self, item: I, end: float, done: asyncio.Future[R]) -> None:
        self.item = item
        self.end = end
        self.done = done
        self.has_given_up = False


class _Batch(Generic[I, R]):
    """Calls in the order in which they came, and what does them once it has begun."""

    __slots__ = ("calls", "end", "has_begun", "task")

    def __init__(self) -> None:
        self.calls: dict[_PendingCall[I, R], Any] = {}
        self.task: asyncio.Task[Sequence[R]] | None = None
        self.has_begun = False
        self.end = 0.0
