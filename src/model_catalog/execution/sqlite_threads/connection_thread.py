"""A queue of calls, and the thread that does them with a SQLite connection of its own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Final, TypeVar, cast

from sqlalchemy import Engine

from model_catalog.concurrency.completion import MIN_TIMEOUT_S
from model_catalog.concurrency.threads import thread_working, throttle_of_loop
from model_catalog.errors import CatalogBusyError, CatalogClosedError, CatalogUnavailableError
from model_catalog.execution.executor import Unit
from model_catalog.execution.sqlite_threads.deadline_timer import DeadlineTimer
from model_catalog.execution.sqlite_threads.request import Request
from model_catalog.execution.sqlite_threads.transaction_runner import Requests, TransactionRunner

T = TypeVar("T")

# An interrupt that falls between two statements stops neither.
_INTERRUPT_RETRY_S: Final = 0.01


class TransactionHandle:
    """That a lane's transaction is open, and whose it is."""

    is_ending = False


class ConnectionThread:
    """
    Does one thing after the other; short calls that wait for it share a transaction.

    A call that has to end, for its deadline or because its task was cancelled, is left out if it
    has not begun; one that has is interrupted at its deadline, and otherwise waited for. Belongs
    to the event loop it was made in. The first call makes the connection.
    """

    def __init__(self, engine: Engine, name: str, *, writes: bool) -> None:
        self._name = name
        self._writes = writes
        self._loop = asyncio.get_running_loop()
        self._rests = throttle_of_loop()
        self._deadlines = DeadlineTimer(self._expire)
        self._worker = TransactionRunner(engine, name, writes=writes, tell=self._tell_from_thread)
        self._waiting: deque[Request[Any]] = deque()
        self._waiting_alone_count = 0
        self._orders: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._is_kicked = False
        self._is_working = False
        self._free: asyncio.Future[None] | None = None
        self._hold: TransactionHandle | None = None

    def takes(self, *, alone: bool) -> bool:
        """Whether a call that is made in this turn of the loop would begin with the next."""
        return not self._is_working and not (self._waiting if alone else self._waiting_alone_count)

    @property
    def waiting_count(self) -> int:
        """How many calls have not been begun."""
        return len(self._waiting)

    async def call(self, unit: Unit[T], timeout_s: float, *, alone: bool = False) -> T:
        """
        What a unit returns, once its transaction is committed. Raises CatalogBusyError.

        One that may take long is to be done `alone`: others would wait for it to be told.
        """
        call = Request(unit, self._loop.time())
        call.alone = alone
        self._line_up(call)
        return await self._wait(call, timeout_s)

    async def look_up(self, unit: Unit[T], timeout_s: float) -> T:
        """As `call`, for a unit that is one Prepared statement, and reads."""
        call = Request(unit, self._loop.time())
        call.is_one_statement = True
        self._line_up(call)
        return await self._wait(call, timeout_s)

    async def hold(self, timeout_s: float) -> TransactionHandle:
        """Begin a transaction that stays open until it is released; other calls wait for that."""
        call = Request(lambda _: TransactionHandle(), self._loop.time())
        call.alone = call.holds = True
        self._line_up(call)
        try:
            return await self._wait(call, timeout_s)
        except asyncio.CancelledError:
            if call.result is not None:
                await self.roll_back(call.result)
            raise

    async def call_held(self, hold: TransactionHandle, unit: Unit[T], timeout_s: float) -> T:
        """What a unit returns, in the transaction that is open. Raises CatalogBusyError."""
        self._require(hold)
        call = Request(unit, self._loop.time())
        self._order((call,), self._worker.do_held)
        return await self._wait(call, timeout_s)

    async def commit(self, hold: TransactionHandle, wait_s: float) -> None:
        """Keep the transaction; without a write-ahead log that may have to wait for readers."""
        self._require(hold)
        await self._release(hold, lambda _: self._worker.keep(wait_s))

    async def roll_back(self, hold: TransactionHandle) -> None:
        """Undo the transaction, if it is open still."""
        if self._hold is hold and not hold.is_ending:
            await self._release(hold, lambda _: self._worker.undo())

    async def _release(self, hold: TransactionHandle, end: Unit[None]) -> None:
        # A call that is made from here on would begin a transaction of its own.
        hold.is_ending = True
        call = Request(end, self._loop.time())
        # It is not to be withdrawn: a transaction that nobody ends would hold up everybody.
        call.begin()
        call.releases = True
        self._order((call,), self._worker.do_held)
        try:
            await self._wait(call, None)
        finally:
            hold.is_ending = False

    def _require(self, hold: TransactionHandle) -> None:
        if self._hold is not hold or hold.is_ending:
            raise CatalogClosedError(self._name)

    def _line_up(self, call: Request[Any]) -> None:
        if self._is_closed:
            raise CatalogClosedError(self._name)
        self._require_thread()
        self._waiting.append(call)
        self._waiting_alone_count += call.alone
        if not self._is_kicked and not self._is_working:
            # At the end of this turn, so that all who call in it are done together.
            self._is_kicked = True
            self._loop.call_soon(self._kick)

    def _kick(self) -> None:
        self._is_kicked = False
        calls: list[Request[Any]] = []
        while self._waiting:
            call = self._waiting[0]
            if call.alone and calls and not call.is_withdrawn:
                break
            self._waiting.popleft()
            self._waiting_alone_count -= call.alone
            if not call.is_withdrawn:
                calls.append(call)
                if call.alone:
                    break
        if calls:
            self._is_working = True
            self._order(calls, self._worker.write if self._writes else self._worker.read)
        elif self._is_closed:
            self._tell_the_closer()

    def _require_thread(self) -> None:
        if self._thread is None:
            thread = threading.Thread(
                target=self._serve, name=f"model-catalog {self._name}", daemon=True
            )
            try:
                thread.start()
            except RuntimeError as error:
                raise CatalogUnavailableError(self._name, f"{error}") from error
            self._thread = thread

    def _order(self, calls: Requests, work: Callable[[Requests], None]) -> None:
        self._rests.begin()
        self._orders.put(lambda: self._do(calls, work))

    async def _wait(self, call: Request[T], timeout_s: float | None) -> T:
        call.told = self._loop.create_future()
        if timeout_s is not None:
            self._deadlines.set(call, call.start + max(timeout_s, MIN_TIMEOUT_S))
        try:
            await call.told
        except asyncio.CancelledError:
            await self._wait_for_nothing(call)
            raise
        finally:
            self._deadlines.drop(call)
        if call.error is not None:
            try:
                raise call.error
            finally:
                # The error knows this frame, and the frame would know the error.
                call.error = None
        return cast("T", call.result)

    async def _wait_for_nothing(self, call: Request[Any]) -> None:
        """Until a call that nobody wants any more has ended, if it has begun."""
        if call.withdraw():
            return
        call.is_unwanted = True
        if not self._writes:
            # Nothing is lost with what it would have read.
            self._interrupt(call)
        while not call.has_ended:
            call.told = self._loop.create_future()
            # anyio cancels again at every turn of the loop.
            with contextlib.suppress(asyncio.CancelledError):
                await call.told

    def _expire(self, call: Request[Any]) -> None:
        if call.has_ended:
            return
        if call.withdraw():
            is_doing = "writing" if self._writes else "reading"
            obstacle = self._worker.obstacle or f"another task of this process is {is_doing}"
            waited_s = self._loop.time() - call.start
            call.error = CatalogBusyError(self._name, obstacle, waited_s)
            self._tell((call,))
        else:
            self._interrupt(call)

    def _interrupt(self, call: Request[Any]) -> None:
        if call.is_done:
            # Others of its batch are still being done.
            self._tell((call,))
        elif not call.has_ended:
            call.is_late = True
            self._worker.interrupt()
            self._loop.call_later(_INTERRUPT_RETRY_S, self._interrupt, call)

    def _tell(self, calls: Requests) -> None:
        for call in calls:
            call.has_ended = True
            _settle(call.told)

    def _finish(self, calls: Requests) -> None:
        self._rests.end()
        call = calls[0]
        if call.holds and self._worker.holds:
            self._hold = call.result
        elif call.releases and not self._worker.holds:
            self._hold = None
        self._tell(calls)
        self._worker.obstacle = None
        if self._hold is None:
            self._is_working = False
            self._kick()
        elif self._is_closed:
            self._tell_the_closer()

    def _tell_the_closer(self) -> None:
        if self._free is not None:
            _settle(self._free)

    async def close(self) -> None:
        """Let what was asked for come to its end; then close the connection, and end the thread."""
        self._is_closed = True
        for call in self._waiting:
            if call.holds and call.withdraw():
                call.error = CatalogClosedError(self._name)
                self._tell((call,))
        while self._is_working or self._waiting:
            if self._hold is not None and not self._hold.is_ending:
                await self.roll_back(self._hold)
            else:
                self._free = self._loop.create_future()
                await self._free
        if self._thread is not None:
            gone = self._loop.create_future()
            self._orders.put(lambda: self._leave(gone))
            self._orders.put(None)
            with thread_working():
                await gone
            self._thread.join()
        self._deadlines.close()

    # What follows runs in the thread.

    def _serve(self) -> None:
        while (order := self._orders.get()) is not None:
            order()
            # What it has read is not to be kept until the next one comes.
            del order

    def _do(self, calls: Requests, work: Callable[[Requests], None]) -> None:
        try:
            work(calls)
        except BaseException as error:  # noqa: BLE001 - it belongs to those who wait
            for call in calls:
                call.error = call.error or error
        try:
            self._loop.call_soon_threadsafe(self._finish, calls)
        except RuntimeError:
            # The loop was closed with calls on their way: nobody waits, and nobody will close this.
            self._worker.close()
            self._orders.put(None)

    def _tell_from_thread(self, calls: Requests) -> None:
        self._loop.call_soon_threadsafe(self._tell, calls)

    def _leave(self, gone: asyncio.Future[None]) -> None:
        self._worker.close()
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(_settle, gone)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
