"""Runs coroutines in an event loop of its own thread, for callers without an event loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, suppress
from contextvars import Context
from typing import Any, Final, Generic, Self, TypeVar

from model_catalog.errors import CatalogClosedError, CatalogError, WrongLoopError

R = TypeVar("R")
T = TypeVar("T")

# The seconds after which Ctrl-C is noticed at the latest.
_SIGNAL_CHECK_S: Final = 0.5


class LoopThread:
    """
    An event loop in a thread of its own. Other threads run coroutines there, and wait for them.

    The calls of one thread share a context, as the calls of one task do. So a catalog recognizes a
    call that would wait for a transaction of the same thread. `name` is the catalog's in messages.
    """

    def __init__(self, name: str = "") -> None:
        self.name = name
        self._process_id = os.getpid()
        # With a factory of its own, the runner does not set the event loop of the calling thread.
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop = self._runner.get_loop()
        self._stopping = asyncio.Event()
        self._lock = threading.Lock()
        self._is_closed = False
        self._contexts = threading.local()
        self._entered: list[AbstractAsyncContextManager[Any]] = []
        # A daemon, so that a program that does not close the catalog can exit.
        self._thread = threading.Thread(target=self._serve, name="model-catalog loop", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Cancel the coroutines that are running, and end the thread; not in a forked child."""
        if not self._is_in_owner_process:
            return
        for manager in reversed(self._entered):
            # Its block has not ended, and may be in another thread.
            with suppress(CatalogError):
                error = asyncio.CancelledError()
                self.run(manager.__aexit__(type(error), error, None))
        with self._lock:
            self._is_closed = True
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    @property
    def _is_in_owner_process(self) -> bool:
        return os.getpid() == self._process_id

    def _serve(self) -> None:
        with self._runner:
            self._runner.run(self._stopping.wait())

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """
        Run a coroutine in the loop, and return its result.

        KeyboardInterrupt, or another exception of a signal handler, cancels the coroutine, and is
        raised when it has ended. A second one is raised at once. Raises CatalogClosedError after
        the end, WrongLoopError in a forked child, and CatalogError in the loop's own thread.
        """
        call = _Call(self._loop, coroutine, self._context())
        try:
            self._submit(call)
            call.wait()
            return call.outcome.result()
        except asyncio.CancelledError:
            if self._is_closed:
                raise CatalogClosedError(self.name) from None
            raise
        finally:
            if not call.outcome.done() and not self._is_closed:
                self._loop.call_soon_threadsafe(call.cancel)
                call.wait()

    def _submit(self, call: _Call[Any]) -> None:
        if not self._is_in_owner_process:
            parent = f"process {self._process_id}, the parent of this process ({os.getpid()})"
            call.refuse(WrongLoopError(self.name, parent, "process"))
            return
        if threading.current_thread() is self._thread:
            text = (
                f"the catalog at {self.name} was called in the thread of its own event loop, which "
                "would wait for itself: in a callback or a generator that the catalog runs, do not "
                "call it; collect the values first"
            )
            call.refuse(CatalogError(text))
            return
        # Under the lock, so that each call that was submitted starts before the loop ends.
        with self._lock:
            if self._is_closed:
                call.refuse(CatalogClosedError(self.name))
            else:
                self._loop.call_soon_threadsafe(call.start)

    def _context(self) -> Context:
        context: Context | None = getattr(self._contexts, "context", None)
        if context is None:
            context = self._contexts.context = Context()
        return context

    def iterate(self, iterator: AsyncIterator[T]) -> Iterator[T]:
        """Yield the values of an async iterator. The loop closes it when it is no longer used."""

        async def advance() -> T:
            return await anext(iterator)

        while True:
            try:
                value = self.run(advance())
            except StopAsyncIteration:
                return
            yield value

    def enter(
        self, manager: AbstractAsyncContextManager[T], convert: Callable[[T], R]
    ) -> AbstractContextManager[R]:
        """
        Return a block that enters an async context manager, and leaves it at its end.

        The block yields the converted value. Entering and leaving run in different tasks with the
        same context. In a forked child the manager is not left.
        """
        return _Block(self, manager, convert)

    async def enter_in_loop(self, manager: AbstractAsyncContextManager[T]) -> T:
        """Enter a manager, which `leave` leaves, or else the end of the thread."""
        value = await manager.__aenter__()
        self._entered.append(manager)
        return value

    def leave(self, manager: AbstractAsyncContextManager[Any], *exc_info: Any) -> bool | None:
        """Leave a manager if it was entered, and return whether it suppresses the exception."""
        if not self._is_in_owner_process or manager not in self._entered:
            return None
        self._entered.remove(manager)
        return self.run(manager.__aexit__(*exc_info))


class _Block(AbstractContextManager[R], Generic[T, R]):
    # Not a generator: Python ends a generator when it is collected, also when the process exits.
    # That would wait for the loop, whose thread does not run any more.

    def __init__(
        self,
        loop_thread: LoopThread,
        manager: AbstractAsyncContextManager[T],
        convert: Callable[[T], R],
    ) -> None:
        self._loop_thread = loop_thread
        self._manager = manager
        self._convert = convert

    def __enter__(self) -> R:
        try:
            return self._convert(
                self._loop_thread.run(self._loop_thread.enter_in_loop(self._manager))
            )
        except BaseException:
            # Ctrl-C may come when it has been entered, and `run` has not returned.
            self._loop_thread.leave(self._manager, *sys.exc_info())
            raise

    def __exit__(self, *exc_info: object) -> bool | None:
        return self._loop_thread.leave(self._manager, *exc_info)


class _Call(Generic[T]):
    """A coroutine that runs in the loop. `outcome` is done when it has really ended."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T], context: Context
    ) -> None:
        self._loop = loop
        self._coroutine = coroutine
        self._context = context
        self._task: asyncio.Task[None] | None = None
        self.outcome: concurrent.futures.Future[T] = concurrent.futures.Future()

    def wait(self) -> None:
        """Wait in the caller's thread until the outcome is known, or a signal handler raises."""
        # A signal that arrives just before the system call that waits does not wake it. Python then
        # calls the signal handler after the next of these waits.
        while not self.outcome.done():
            concurrent.futures.wait([self.outcome], timeout=_SIGNAL_CHECK_S)

    def start(self) -> None:
        self._task = self._loop.create_task(self._run(), context=self._context)
        self._task.add_done_callback(self._finish)

    def cancel(self) -> None:
        if self._task is None:
            self.refuse(asyncio.CancelledError())
        else:
            self._task.cancel()

    def refuse(self, error: BaseException) -> None:
        """End the call with an error before its coroutine has begun."""
        self._coroutine.close()
        self.outcome.set_exception(error)

    async def _run(self) -> None:
        try:
            self.outcome.set_result(await self._coroutine)
        except BaseException as error:  # noqa: BLE001 - SystemExit would end the loop
            self.outcome.set_exception(error)

    def _finish(self, task: asyncio.Task[None]) -> None:
        # A task that is cancelled before its first step runs nothing.
        if task.cancelled():
            self.refuse(asyncio.CancelledError())
