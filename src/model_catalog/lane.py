"""A thread that holds one SQLite connection, and does there what the tasks of a loop ask of it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, Final, Generic, TypeVar, cast

from sqlalchemy import Connection, Engine, RootTransaction

from model_catalog.engine import LOCK_WAIT_S, WRITE, busy_timeout
from model_catalog.errors import CatalogBusyError, CatalogClosedError
from model_catalog.faults import translated
from model_catalog.waiting import LEAST_S
from model_catalog.work import Unit

T = TypeVar("T")

_FIRST_PAUSE_S: Final = 0.001
_LONGEST_PAUSE_S: Final = 0.02
# An interrupt that falls between two statements stops neither.
_AGAIN_S: Final = 0.01
_INTERRUPTED: Final = "interrupted"


class Call(Generic[T]):
    """A unit, and the task that waits for it."""

    __slots__ = (
        "alone",
        "began",
        "ended",
        "error",
        "holds",
        "late",
        "releases",
        "result",
        "start",
        "told",
        "unit",
        "unwanted",
        "withdrawn",
    )

    def __init__(
        self, unit: Unit[T], start: float, *, alone: bool = False, holds: bool = False
    ) -> None:
        self.unit = unit
        self.start = start
        self.alone = alone
        self.holds = holds
        self.releases = False
        self.result: T | None = None
        self.error: BaseException | None = None
        self.told: asyncio.Future[None]
        self.began = self.withdrawn = self.unwanted = self.late = self.ended = False


class Hold:
    """That a lane's transaction is open, and whose it is."""

    is_ending = False


class Lane:
    """
    One connection in a thread of its own; short calls that wait for it share a transaction.

    A call that has to end, for its deadline or because its task was cancelled, is left out if it
    has not begun; one that has is interrupted at its deadline, and otherwise waited for. Belongs
    to the event loop it was made in. The first call makes the connection.
    """

    def __init__(self, engine: Engine, name: str, *, writes: bool) -> None:
        self._engine = engine
        self._name = name
        self._writes = writes
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Call[Any]] = deque()
        self._orders: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._connection: Connection | None = None
        self._driver: sqlite3.Connection | None = None
        self._transaction: RootTransaction | None = None
        # Between "may I begin?" in the thread, and "do not begin" in the loop.
        self._beginning = threading.Lock()
        self._obstacle: str | None = None
        self._is_closed = False
        self._is_kicked = False
        self._is_working = False
        self._free: asyncio.Future[None] | None = None
        self._hold: Hold | None = None

    def takes(self, *, alone: bool) -> bool:
        """Whether a call that is made in this turn of the loop would begin with the next."""
        return not self._is_working and not (
            self._waiting if alone else any(call.alone for call in self._waiting)
        )

    @property
    def waiting_count(self) -> int:
        """How many calls have not been begun."""
        return len(self._waiting)

    async def call(self, unit: Unit[T], timeout_s: float, *, alone: bool = False) -> T:
        """
        What a unit returns, once its transaction is committed. Raises CatalogBusyError.

        One that may take long is to be done `alone`: others would wait for it to be told.
        """
        call = self._line_up(Call(unit, self._loop.time(), alone=alone))
        return await self._wait(call, timeout_s)

    async def hold(self, timeout_s: float) -> Hold:
        """Begin a transaction that stays open until it is released; other calls wait for that."""
        begin = Call(lambda _: Hold(), self._loop.time(), alone=True, holds=True)
        call = self._line_up(begin)
        try:
            return await self._wait(call, timeout_s)
        except asyncio.CancelledError:
            if call.result is not None:
                await self.roll_back(call.result)
            raise

    async def call_held(self, hold: Hold, unit: Unit[T], timeout_s: float) -> T:
        """What a unit returns, in the transaction that is open. Raises CatalogBusyError."""
        self._require(hold)
        call = Call(unit, self._loop.time())
        self._order((call,), self._continue)
        return await self._wait(call, timeout_s)

    async def commit(self, hold: Hold, wait_s: float) -> None:
        """Keep the transaction; without a write-ahead log that may have to wait for readers."""
        self._require(hold)
        await self._release(hold, lambda _: self._keep(wait_s))

    async def roll_back(self, hold: Hold) -> None:
        """Undo the transaction, if it is open still."""
        if self._hold is hold and not hold.is_ending:
            await self._release(hold, self._undo)

    async def _release(self, hold: Hold, end: Unit[None]) -> None:
        # A call that is made from here on would begin a transaction of its own.
        hold.is_ending = True
        call = Call(end, self._loop.time())
        # It is no longer to be withdrawn: a transaction that nobody ends would hold up everybody.
        call.began = call.releases = True
        self._order((call,), self._continue)
        try:
            await self._wait(call, None)
        finally:
            hold.is_ending = False

    def _require(self, hold: Hold) -> None:
        if self._hold is not hold or hold.is_ending:
            raise CatalogClosedError(self._name)

    def _line_up(self, call: Call[T]) -> Call[T]:
        if self._is_closed:
            raise CatalogClosedError(self._name)
        self._waiting.append(call)
        if not self._is_kicked and not self._is_working:
            # At the end of this turn, so that all who call in it are done together.
            self._is_kicked = True
            self._loop.call_soon(self._kick)
        return call

    def _kick(self) -> None:
        self._is_kicked = False
        calls: list[Call[Any]] = []
        while self._waiting:
            call = self._waiting[0]
            if call.alone and calls and not call.withdrawn:
                break
            self._waiting.popleft()
            if not call.withdrawn:
                calls.append(call)
                if call.alone:
                    break
        if calls:
            self._is_working = True
            self._order(calls, self._write if self._writes else self._read)
        elif self._is_closed:
            self._tell_the_closer()

    def _tell_the_closer(self) -> None:
        if self._free is not None and not self._free.done():
            self._free.set_result(None)

    def _order(
        self, calls: Sequence[Call[Any]], work: Callable[[Sequence[Call[Any]]], None]
    ) -> None:
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._serve, name=f"model-catalog {self._name}", daemon=True
            )
            self._thread.start()
        self._orders.put(lambda: self._do(calls, work))

    async def _wait(self, call: Call[T], timeout_s: float | None) -> T:
        loop = self._loop
        call.told = loop.create_future()
        timer = (
            None
            if timeout_s is None
            else loop.call_at(call.start + max(timeout_s, LEAST_S), self._expire, call)
        )
        try:
            await call.told
        except asyncio.CancelledError:
            if not self._withdraw(call):
                call.unwanted = True
                if not self._writes:
                    # Nothing is lost with what it would have read.
                    self._interrupt(call)
                while not call.ended:
                    call.told = loop.create_future()
                    # anyio cancels again at every turn of the loop.
                    with contextlib.suppress(asyncio.CancelledError):
                        await call.told
            raise
        finally:
            if timer is not None:
                timer.cancel()
        if call.error is not None:
            try:
                raise call.error
            finally:
                # The error knows this frame, and the frame would know the error.
                call.error = None
        return cast("T", call.result)

    def _withdraw(self, call: Call[Any]) -> bool:
        with self._beginning:
            if call.began or call.ended:
                return False
            call.withdrawn = True
            return True

    def _expire(self, call: Call[Any]) -> None:
        if call.ended:
            return
        if self._withdraw(call):
            is_doing = "writing" if self._writes else "reading"
            obstacle = self._obstacle or f"another task of this process is {is_doing}"
            call.error = self._busy(call, obstacle)
            self._tell((call,))
        else:
            self._interrupt(call)

    def _interrupt(self, call: Call[Any]) -> None:
        if not call.ended:
            call.late = True
            if self._driver is not None:
                with contextlib.suppress(sqlite3.ProgrammingError):
                    self._driver.interrupt()
            self._loop.call_later(_AGAIN_S, self._interrupt, call)

    def _busy(self, call: Call[Any], reason: str) -> CatalogBusyError:
        return CatalogBusyError(self._name, reason, self._loop.time() - call.start)

    def _tell(self, calls: Sequence[Call[Any]]) -> None:
        for call in calls:
            call.ended = True
            if not call.told.done():
                call.told.set_result(None)

    def _finish(self, calls: Sequence[Call[Any]]) -> None:
        call = calls[0]
        if call.holds and call.error is None:
            self._hold = call.result
        elif call.releases and self._transaction is None:
            self._hold = None
        self._tell(calls)
        self._obstacle = None
        if self._hold is None:
            self._is_working = False
            self._kick()
        elif self._is_closed:
            self._tell_the_closer()

    async def close(self) -> None:
        """Let what was asked for come to its end; then close the connection, and end the thread."""
        self._is_closed = True
        for call in self._waiting:
            if call.holds and self._withdraw(call):
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
            await gone
            self._thread.join()

    # From here on: in the thread.

    def _serve(self) -> None:
        while (order := self._orders.get()) is not None:
            order()
            del order

    def _leave(self, gone: asyncio.Future[None]) -> None:
        try:
            if self._connection is not None:
                with contextlib.suppress(Exception):
                    self._connection.close()
                self._engine.dispose()
        finally:
            self._loop.call_soon_threadsafe(gone.set_result, None)

    def _do(self, calls: Sequence[Call[Any]], work: Callable[[Sequence[Call[Any]]], None]) -> None:
        try:
            work(calls)
        except BaseException as error:  # noqa: BLE001 - it belongs to those who wait
            for call in calls:
                call.error = call.error or error
        # Nobody waits any more in a loop that was closed with calls on their way.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._finish, calls)

    def _connected(self) -> Connection:
        connection = self._connection
        if connection is None:
            connection = self._engine.connect().execution_options(**{WRITE: self._writes})
            self._connection = connection
            self._driver = cast("sqlite3.Connection", connection.connection.driver_connection)
        return connection

    def _begin(self, calls: Sequence[Call[Any]]) -> list[Call[Any]]:
        with self._beginning:
            begun = [call for call in calls if not call.withdrawn]
            for call in begun:
                call.began = True
        return begun

    def _wait_for_lock(
        self, calls: Sequence[Call[Any]], error: CatalogBusyError, pause_s: float
    ) -> float:
        """Pause, so that these may be begun again; return how long the next pause is to be."""
        with self._beginning:
            for call in calls:
                call.began = False
                if call.unwanted or call.late:
                    call.withdrawn = True
                    call.error = self._busy(call, error.reason)
        if gone := [call for call in calls if call.withdrawn]:
            self._loop.call_soon_threadsafe(self._tell, gone)
        self._obstacle = error.reason
        # Whoever polls in step with another finds the same lock taken every time.
        time.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311
        return min(2 * pause_s, _LONGEST_PAUSE_S)

    def _write(self, calls: Sequence[Call[Any]]) -> None:
        """All of them in one transaction; where one fails, each in one of its own."""
        pause_s = _FIRST_PAUSE_S
        while begun := self._begin(calls):
            try:
                with translated(self._name):
                    self._transact(begun)
            except CatalogBusyError as error:
                if error.reason != _INTERRUPTED:
                    pause_s = self._wait_for_lock(begun, error, pause_s)
                    continue
                for call in begun:
                    if call.late:
                        call.error = self._slow(call)
                calls = [call for call in begun if not call.late]
            except Exception as error:  # noqa: BLE001 - it belongs to the one who caused it
                if len(begun) == 1:
                    begun[0].error = error
                else:
                    for call in begun:
                        self._write((call,))
                return
            else:
                return

    def _transact(self, calls: Sequence[Call[Any]]) -> None:
        connection = self._connected()
        transaction = connection.begin()
        try:
            for call in calls:
                call.result = call.unit(connection)
            self._require_in_time(calls)
            if calls[0].holds:
                self._transaction = transaction
            else:
                transaction.commit()
        except BaseException:
            self._roll_back(transaction)
            raise

    def _roll_back(self, transaction: RootTransaction) -> None:
        transaction.rollback()
        # SQLAlchemy takes one whose COMMIT was refused for one that is over.
        if self._driver is not None and self._driver.in_transaction:
            self._driver.rollback()

    def _require_in_time(self, calls: Sequence[Call[Any]]) -> None:
        if any(call.late for call in calls):
            raise CatalogBusyError(self._name, _INTERRUPTED)

    def _read(self, calls: Sequence[Call[Any]]) -> None:
        """All of them in one snapshot, which is taken after the last of them has called."""
        pause_s = _FIRST_PAUSE_S
        left = deque(calls)
        while left:
            try:
                with translated(self._name):
                    self._look(left)
            except CatalogBusyError as error:
                pause_s = self._wait_for_lock(left, error, pause_s)

    def _look(self, left: deque[Call[Any]]) -> None:
        connection = self._connected()
        with connection.begin():
            while left:
                call = left[0]
                if self._begin((call,)):
                    try:
                        with translated(self._name):
                            call.result = call.unit(connection)
                    except CatalogBusyError as error:
                        if not call.late or error.reason != _INTERRUPTED:
                            raise
                        call.error = self._slow(call)
                    except Exception as error:  # noqa: BLE001 - it belongs to the caller
                        call.error = error
                left.popleft()

    def _slow(self, call: Call[Any]) -> CatalogBusyError:
        return self._busy(call, "its statements took longer than they were given")

    def _continue(self, calls: Sequence[Call[Any]]) -> None:
        for call in self._begin(calls):
            try:
                with translated(self._name):
                    call.result = call.unit(self._connected())
            except CatalogBusyError as error:
                call.error = self._slow(call) if error.reason == _INTERRUPTED else error

    def _keep(self, wait_s: float) -> None:
        if self._transaction is not None:
            self._be_patient(wait_s)
            self._transaction.commit()
            self._transaction = None
            self._be_patient(LOCK_WAIT_S)

    def _undo(self, _connection: Connection) -> None:
        transaction, self._transaction = self._transaction, None
        if transaction is not None:
            self._roll_back(transaction)
            self._be_patient(LOCK_WAIT_S)

    def _be_patient(self, wait_s: float) -> None:
        # To SQLAlchemy's connection a statement between two transactions begins one.
        if self._driver is not None:
            self._driver.execute(busy_timeout(wait_s))
