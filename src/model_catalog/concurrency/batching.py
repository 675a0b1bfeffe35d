"""Runs calls that are made at the same time as one batch (request coalescing)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextvars import Context, ContextVar
from copy import copy
from functools import partial
from typing import Any, Final, Generic, TypeVar

from model_catalog.concurrency.completion import (
    run_to_completion,
    start_timeout,
    wait_until_done,
)
from model_catalog.concurrency.forks import fork_count, start_task
from model_catalog.errors import CatalogBusyError

I = TypeVar("I")  # noqa: E741 - an item
R = TypeVar("R")
T = TypeVar("T")

log = logging.getLogger("model_catalog.concurrency")


class Coalescer(Generic[I, R]):
    """
    Runs calls that arrive in the same loop iteration, or while batches are running, as one batch.

    A batch of writes gets the remaining time of the call in it that has the least. If it times out,
    calls with time left join the next batch. A batch of reads (`reads`) gets the remaining time of
    the call that has the most, because a caller can leave it early.

    A call that is cancelled before its batch has started is removed from the batch. Later the
    cancellation is delivered at once for a read, and after the end of the batch for a write. A
    batch whose calls were all cancelled is cancelled too.
    """

    def __init__(
        self,
        run: Callable[[Sequence[I], float], Awaitable[Sequence[R]]],
        *,
        max_concurrent: int = 1,
        reads: bool = False,
        timeout_error: Callable[[], CatalogBusyError] | None = None,
        grace_s: float = 0.0,
    ) -> None:
        """
        Create a coalescer that runs each batch with `run(items, remaining_s)`.

        At most `max_concurrent` batches run at once.

        `timeout_error` makes the error of a call that has no result `grace_s` seconds after its
        deadline. Without it a call waits until its batch has ended. So does a write, once its batch
        has started.
        """
        self._run: Final = run
        self._max_concurrent: Final = max_concurrent
        self._reads: Final = reads
        self._timeout_error: Final = timeout_error
        self._grace_s: Final = grace_s
        self._running_count = 0
        self._next: _Batch[I, R] = _Batch()

    async def submit(self, item: I, timeout_s: float) -> R:
        """Add an item to the next batch; return its result, or raise the error of its batch."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        call: _PendingCall[I, R] = _PendingCall(item, start + timeout_s, loop.create_future())
        self._enqueue(call)
        timer = None
        if self._timeout_error is not None:
            # The batch's own deadline comes first: its error says why the batch was slow.
            timer = loop.call_at(
                call.deadline + self._grace_s, self._on_timeout, call, self._timeout_error
            )
        try:
            return await call.done
        except asyncio.CancelledError:
            if not call.done.cancelled():
                # The result came a moment before the cancellation. Without this, asyncio would
                # report an error in it as never retrieved.
                call.done.exception()
            await self._leave_batch(call)
            raise
        except CatalogBusyError as error:
            if call.has_timed_out:
                await self._leave_batch(call)
            # The call may have waited for an earlier batch first.
            raise CatalogBusyError(error.target, error.reason, loop.time() - start) from error
        finally:
            if timer is not None:
                timer.cancel()

    def _enqueue(self, call: _PendingCall[I, R]) -> None:
        batch = call.batch = self._next
        batch.calls[call] = None
        if batch.task is None and self._running_count < self._max_concurrent:
            self._start_batch(batch)

    def _start_batch(self, batch: _Batch[I, R]) -> None:
        self._running_count += 1
        batch.forks = fork_count()
        # An empty context: the context variables of the first caller are not those of the others.
        context = Context()
        context.run(_current_batch.set, batch)
        batch.task = start_task(self._run_batch(batch), context=context)
        # A callback also runs for a task that is cancelled before its first step.
        batch.task.add_done_callback(partial(self._on_batch_done, batch))

    async def _run_batch(self, batch: _Batch[I, R]) -> None:
        self._next = _Batch()
        batch.has_started = True
        if not batch.calls:
            return
        choose = max if self._reads else min
        batch.deadline = choose(call.deadline for call in batch.calls)
        remaining_s = batch.deadline - asyncio.get_running_loop().time()
        results = await self._run([call.item for call in batch.calls], remaining_s)
        # Not when the task has ended, which is an iteration of the loop later.
        for call, result in zip(batch.calls, results, strict=True):
            if not call.done.done():
                call.done.set_result(result)

    def _on_batch_done(self, batch: _Batch[I, R], task: asyncio.Task[None]) -> None:
        self._running_count -= 1
        if self._next is batch:
            self._next = _Batch()
        pending = [call for call in batch.calls if not call.done.done()]
        if task.cancelled():
            for call in pending:
                call.done.cancel()
        elif (error := task.exception()) is not None:
            # The next batch would give calls whose time is up another moment, one after another.
            due_at = max(batch.deadline, asyncio.get_running_loop().time())
            for call in pending:
                if isinstance(error, CatalogBusyError) and call.deadline > due_at:
                    self._enqueue(call)
                else:
                    call.done.set_exception(_own_copy(error))
        if self._next.calls and self._next.task is None:
            self._start_batch(self._next)

    def _on_timeout(
        self, call: _PendingCall[I, R], timeout_error: Callable[[], CatalogBusyError]
    ) -> None:
        if not call.done.done() and (self._reads or not call.batch.has_started):
            call.has_timed_out = True
            call.done.set_exception(timeout_error())

    async def _leave_batch(self, call: _PendingCall[I, R]) -> None:
        batch = call.batch
        if not batch.has_started:
            batch.calls.pop(call, None)
            return
        task = batch.task
        if task is None or task.done():
            return
        if all(other.done.done() for other in batch.calls):
            batch.cancel(task)
        elif self._reads:
            return
        await wait_until_done(task, batch.forks)


async def run_in_batch_task(
    work: Coroutine[Any, Any, T],
    on_cancel: Callable[[], object],
    *,
    timeout_s: float,
    on_timeout: Callable[[], object],
) -> T:
    """
    Run `work` as `run_to_completion` does, but in the task of the batch that calls this.

    A task of its own would cost four more iterations of the event loop, of the eleven of a lookup.
    When the batch is cancelled, `on_cancel` is called instead of `Task.cancel`. It has to make the
    work end. `on_timeout` has to do so too.
    """
    batch = _current_batch.get(None)
    if batch is None:
        return await run_to_completion(work, on_cancel, timeout_s=timeout_s, on_timeout=on_timeout)
    stop_timeout = start_timeout(timeout_s, on_timeout)
    batch.on_cancel = on_cancel
    try:
        result = await work
    except Exception as error:
        if not batch.is_cancelled:
            raise
        log.debug("failed after its callers were cancelled", exc_info=error)
    else:
        if not batch.is_cancelled:
            return result
    finally:
        batch.on_cancel = None
        stop_timeout()
    raise asyncio.CancelledError


def _own_copy(error: BaseException) -> BaseException:
    """Return a copy of an error: each task that raises it adds to its traceback and its notes."""
    own = copy(error)
    own.__cause__ = error.__cause__
    return own.with_traceback(error.__traceback__)


class _PendingCall(Generic[I, R]):
    """An item, its deadline by the loop's clock, and the future of its result."""

    __slots__ = ("batch", "deadline", "done", "has_timed_out", "item")

    batch: _Batch[I, R]

    def __init__(self, item: I, deadline: float, done: asyncio.Future[R]) -> None:
        self.item = item
        self.deadline = deadline
        self.done = done
        self.has_timed_out = False


class _Batch(Generic[I, R]):
    """Calls in the order of their arrival, and the task that runs them."""

    __slots__ = ("calls", "deadline", "forks", "has_started", "is_cancelled", "on_cancel", "task")

    def __init__(self) -> None:
        self.is_cancelled = False
        self.on_cancel: Callable[[], object] | None = None
        self.calls: dict[_PendingCall[I, R], Any] = {}
        self.task: asyncio.Task[None] | None = None
        self.has_started = False
        self.forks = 0
        self.deadline = 0.0

    def cancel(self, task: asyncio.Task[Any]) -> None:
        """Cancel the batch, whose calls were all cancelled."""
        self.is_cancelled = True
        if self.on_cancel is None:
            task.cancel()
        else:
            self.on_cancel()


_current_batch: ContextVar[_Batch[Any, Any]] = ContextVar("model_catalog_current_batch")
