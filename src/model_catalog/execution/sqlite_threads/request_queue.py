"""A queue of requests for one SQLite connection, and the thread that runs them on our own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Final, Protocol, TypeAlias, TypeVar, cast

from sqlalchemy import Connection

from model_catalog.concurrency.completion import INTERRUPT_RETRY_S, wait_until_done
from model_catalog.concurrency.forks import fork_count
from model_catalog.concurrency.retry import MIN_TIMEOUT_S
from model_catalog.concurrency.threads import thread_working, throttle_of_loop
from model_catalog.errors import CatalogBusyError, CatalogClosedError, CatalogUnavailableError
from model_catalog.execution.executor import OTHER_READER, OTHER_WRITER, OnCommit, Operation
from model_catalog.execution.sqlite_threads.request import (
    DeadlineTimer,
    Request,
    TransactionHandle,
)
from model_catalog.execution.sqlite_threads.transaction_runner import Requests, TransactionRunner

T = TypeVar("T")

# More threads than these only compete for the GIL.
_MAX_READERS: Final = 4

Batch: TypeAlias = tuple[Callable[[Requests], None], Requests]
"""Requests, and the method of the runner that runs them in the thread of the connection."""


class Worker(Protocol):
    """Runs batches one at a time in the thread of a connection."""

    def put(self, batch: Batch) -> None:
        """Run a batch, and then call `on_batch_done` of the queue in the event loop."""

    async def close(self) -> None:
        """Release what the worker holds. No batch is running then."""


class RequestQueue:
    """
    Runs queued requests one at a time on one connection, in batches.

    Requests that are not `exclusive`, and that are queued at the same time, run in one transaction.
    A request that times out or is cancelled before it starts is removed from the queue. A running
    request is interrupted when it times out. After a cancellation a running read is interrupted,
    and a running write is waited for.

    It belongs to the event loop that it was created in.
    """

    def __init__(
        self,
        runner: TransactionRunner,
        name: str,
        make_worker: Callable[[RequestQueue], Worker],
        *,
        writes: bool,
    ) -> None:
        self._name: Final = name
        self._writes: Final = writes
        self._loop = asyncio.get_running_loop()
        self._forks = fork_count()
        self._deadlines = DeadlineTimer(self._on_timeout)
        self._runner = runner
        self._run_batch = self._runner.write if writes else self._runner.read
        self._queue: deque[Request[Any]] = deque()
        self._queued_exclusive_count = 0
        self._worker = make_worker(self)
        self._is_closed = False
        self._is_start_scheduled = False
        self._is_working = False
        self._idle: asyncio.Future[None] | None = None
        self._transaction: TransactionHandle | None = None
        runner.answer = self._answer_from_thread

    def is_idle(self, *, exclusive: bool) -> bool:
        """Return whether a request that is submitted now would start in the next iteration."""
        return not self._is_working and not (
            self._queue if exclusive else self._queued_exclusive_count
        )

    @property
    def queue_length(self) -> int:
        """The number of requests that have not started."""
        return len(self._queue)

    async def submit(
        self,
        operation: Operation[Any, T],
        timeout_s: float | None,
        transaction: TransactionHandle | None = None,
    ) -> T:
        """
        Run an operation, and return its result once its transaction is committed.

        With a `transaction` it runs in that one, which stays open. Raises CatalogBusyError after
        `timeout_s` seconds.
        """
        request = Request(operation, self._loop.time())
        if transaction is None:
            self._enqueue(request)
        else:
            self._check_open(transaction)
            self._dispatch((self._runner.run_in_transaction, (request,)))
        return await self._wait(request, timeout_s)

    async def begin(self, timeout_s: float) -> TransactionHandle:
        """Begin a transaction that stays open until it is ended; other requests wait for that."""
        operation = Operation(_new_handle, None, exclusive=True)
        request = Request(operation, self._loop.time())
        request.opens_transaction = True
        self._enqueue(request)
        try:
            return await self._wait(request, timeout_s)
        except asyncio.CancelledError:
            if request.result is not None:
                await self.roll_back(request.result)
            raise

    async def commit(self, transaction: TransactionHandle, wait_s: float, tell: OnCommit) -> None:
        """Commit; without a write-ahead log SQLite waits for readers, at most `wait_s` seconds."""
        self._check_open(transaction)
        await self._end(transaction, self._runner.commit, (wait_s, tell))

    async def roll_back(self, transaction: TransactionHandle) -> None:
        """Roll back the transaction, if it is still open; not in a forked child."""
        is_open = self._transaction is transaction and not transaction.is_ending
        if is_open and self._forks == fork_count():
            await self._end(transaction, self._runner.roll_back, None)

    async def _end(
        self, transaction: TransactionHandle, end: Callable[[Connection, Any], None], value: Any
    ) -> None:
        # A request that is submitted from here on would begin a transaction of its own.
        transaction.is_ending = True
        request = Request(Operation(end, value), self._loop.time())
        # A started request cannot be dropped. All others wait for the end of the transaction.
        request.try_start()
        request.ends_transaction = True
        self._dispatch((self._runner.run_in_transaction, (request,)))
        try:
            await self._wait(request, None)
        finally:
            transaction.is_ending = False

    def _check_open(self, transaction: TransactionHandle) -> None:
        if self._transaction is not transaction or transaction.is_ending:
            raise CatalogClosedError(self._name)

    def _enqueue(self, request: Request[Any]) -> None:
        if self._is_closed:
            raise CatalogClosedError(self._name)
        self._queue.append(request)
        self._queued_exclusive_count += request.operation.exclusive
        if not self._is_start_scheduled and not self._is_working:
            # In the next iteration of the loop: all requests of this one share a transaction.
            self._is_start_scheduled = True
            self._loop.call_soon(self._start_next_batch)

    def _start_next_batch(self) -> None:
        self._is_start_scheduled = False
        requests: list[Request[Any]] = []
        while self._queue:
            request = self._queue[0]
            exclusive = request.operation.exclusive
            if exclusive and requests and not request.is_dropped:
                break
            self._queue.popleft()
            self._queued_exclusive_count -= exclusive
            if not request.is_dropped:
                requests.append(request)
                if exclusive:
                    break
        if requests:
            self._is_working = True
            self._dispatch((self._run_batch, requests))
        elif self._is_closed:
            self._wake_closer()

    def _dispatch(self, batch: Batch) -> None:
        self._worker.put(batch)

    async def _wait(self, request: Request[T], timeout_s: float | None) -> T:
        request.done = self._loop.create_future()
        if timeout_s is not None:
            self._deadlines.set(request, request.start + max(timeout_s, MIN_TIMEOUT_S))
        try:
            await request.done
        except asyncio.CancelledError:
            await self._wait_after_cancel(request)
            raise
        finally:
            self._deadlines.discard(request)
        if request.error is not None:
            try:
                raise request.error
            finally:
                # The error's traceback refers to this frame, and the frame to the request.
                request.error = None
        return cast("T", request.result)

    async def _wait_after_cancel(self, request: Request[Any]) -> None:
        """Drop a request whose task was cancelled; if it has started, wait for its end."""
        if request.cancel_if_queued():
            return
        request.is_cancelled = True
        if not self._writes:
            # An interrupted read loses nothing.
            self._interrupt(request)
        if not request.is_answered:
            request.done = self._loop.create_future()
            await wait_until_done(request.done, self._forks)

    def _on_timeout(self, request: Request[Any]) -> None:
        if request.is_answered:
            return
        if request.cancel_if_queued():
            other = OTHER_WRITER if self._writes else OTHER_READER
            waited_s = self._loop.time() - request.start
            request.error = CatalogBusyError(
                self._name, self._runner.waiting_for or other, waited_s
            )
            self._answer((request,))
        else:
            self._interrupt(request)

    def _interrupt(self, request: Request[Any]) -> None:
        if request.is_completed:
            # Other requests of its batch are still running.
            self._answer((request,))
        elif not request.is_answered:
            request.is_timed_out = True
            self._runner.interrupt()
            self._loop.call_later(INTERRUPT_RETRY_S, self._interrupt, request)

    def _answer(self, requests: Requests) -> None:
        for request in requests:
            request.is_answered = True
            _set_done(request.done)

    def on_batch_done(self, requests: Requests) -> None:
        """Answer the requests of a batch, and start the next one. Call it in the event loop."""
        request = requests[0]
        if request.opens_transaction and self._runner.has_transaction:
            self._transaction = request.result
        elif request.ends_transaction and not self._runner.has_transaction:
            self._transaction = None
        self._answer(requests)
        self._runner.waiting_for = None
        if self._transaction is None:
            self._is_working = False
            self._start_next_batch()
        elif self._is_closed:
            self._wake_closer()

    def _wake_closer(self) -> None:
        if self._idle is not None:
            _set_done(self._idle)

    async def close(self) -> None:
        """Run the requests in the queue; then close the connection, and end the thread."""
        self._is_closed = True
        for request in self._queue:
            if request.opens_transaction and request.cancel_if_queued():
                request.error = CatalogClosedError(self._name)
                self._answer((request,))
        while self._is_working or self._queue:
            if self._transaction is not None and not self._transaction.is_ending:
                await self.roll_back(self._transaction)
            else:
                self._idle = self._loop.create_future()
                await self._idle
        await self._worker.close()
        self._deadlines.close()

    def _answer_from_thread(self, requests: Requests) -> None:
        self._loop.call_soon_threadsafe(self._answer, requests)


class ReaderQueues:
    """Up to four queues for reads: a long read must not delay another one."""

    def __init__(self, make_queue: Callable[[], RequestQueue]) -> None:
        self._make_queue = make_queue
        self.queues = [make_queue()]

    def pick(self, *, exclusive: bool) -> RequestQueue:
        """Return an idle queue, a new one, or the shortest one."""
        for queue in self.queues:
            if queue.is_idle(exclusive=exclusive):
                return queue
        if len(self.queues) < _MAX_READERS:
            self.queues.append(self._make_queue())
            return self.queues[-1]
        return min(self.queues, key=lambda queue: queue.queue_length)


class ConnectionThread:
    """
    The thread that owns the connection of a queue; a `Worker`.

    The first batch starts the thread and opens the connection.
    """

    def __init__(self, queue: RequestQueue, runner: TransactionRunner, name: str) -> None:
        self._queue = queue
        self._runner = runner
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._throttle = throttle_of_loop()
        self._batches: SimpleQueue[Batch | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._ended: asyncio.Future[None] | None = None

    def put(self, batch: Batch) -> None:
        """Run a batch in the thread."""
        if self._thread is None and not self._start_thread(batch[1]):
            return
        self._throttle.thread_started()
        self._batches.put(batch)

    def _start_thread(self, requests: Requests) -> bool:
        name = f"model-catalog {self._name}"
        thread = threading.Thread(target=self._serve, name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            for request in requests:
                request.error = CatalogUnavailableError(self._name, f"{error}")
            self._loop.call_soon(self._queue.on_batch_done, requests)
            return False
        self._thread = thread
        return True

    def _on_batch_done(self, requests: Requests) -> None:
        self._throttle.thread_finished()
        self._queue.on_batch_done(requests)

    async def close(self) -> None:
        """Close the connection, and end the thread."""
        if self._thread is not None:
            self._ended = self._loop.create_future()
            self._batches.put(None)
            with thread_working():
                await self._ended
            self._thread.join()

    # The methods below run in the thread.

    def _serve(self) -> None:
        try:
            while (batch := self._batches.get()) is not None:
                self._run(*batch)
                # Its results must not be kept in memory until the next batch comes.
                del batch
        except _LoopClosedError:
            # The loop was closed while requests ran: no task will close this thread.
            pass
        self._runner.close()
        if self._ended is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(_set_done, self._ended)

    def _run(self, run: Callable[[Requests], None], requests: Requests) -> None:
        with self._runner.fork_lock:
            run_batch(run, requests)
        try:
            self._loop.call_soon_threadsafe(self._on_batch_done, requests)
        except RuntimeError as error:
            raise _LoopClosedError from error


def run_batch(run: Callable[[Requests], None], requests: Requests) -> None:
    """Run a batch in this thread. An error of the whole batch becomes the error of each request."""
    try:
        run(requests)
    except BaseException as error:  # noqa: BLE001 - the waiting tasks raise it
        for request in requests:
            request.error = request.error or error


class _LoopClosedError(Exception):
    """The event loop of a connection thread was closed while the thread ran requests."""


def _new_handle(_connection: Connection, _value: None) -> TransactionHandle:
    return TransactionHandle()


def _set_done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
