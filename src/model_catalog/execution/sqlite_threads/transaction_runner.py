"""What is done with a SQLite connection in the thread that has it to itself."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, TypeAlias

from sqlalchemy import Connection, Engine, RootTransaction

from model_catalog.connection.database_info import driver_connection
from model_catalog.connection.engines import WRITE, file_guard_of
from model_catalog.connection.error_mapping import map_errors
from model_catalog.connection.timeouts import LOCK_WAIT_S, busy_timeout
from model_catalog.errors import CatalogBusyError
from model_catalog.execution.sqlite_threads.request import Request

Requests: TypeAlias = Sequence[Request[Any]]

_FIRST_PAUSE_S: Final = 0.001
_LONGEST_PAUSE_S: Final = 0.02
# A deadline undoes all that shares its transaction: it is not to be many calls' work.
_LONGEST_BATCH_S: Final = 0.05
_OTHERS: Final = "another task of this process is writing"
_SLOW: Final = "its statements took longer than they were given"


class TransactionRunner:
    """
    The connection, and the ways to do calls with it, each of which tells a call its result.

    What concerns all calls of a batch is raised. Only `interrupt` may be called from elsewhere.
    `tell` is called with those that have ended before the rest of their batch.
    """

    def __init__(
        self, engine: Engine, name: str, *, writes: bool, tell: Callable[[Requests], object]
    ) -> None:
        self._engine = engine
        self._check_file_unchanged = file_guard_of(engine).check_unchanged
        self._name = name
        self._writes = writes
        self._tell = tell
        self._connection: Connection | None = None
        self._driver: sqlite3.Connection | None = None
        self._transaction: RootTransaction | None = None
        self._at = 0
        self.obstacle: str | None = None
        """What it waits for, while it waits for another program."""

    @property
    def holds(self) -> bool:
        """Whether it has a transaction open between two calls."""
        return self._transaction is not None

    def interrupt(self) -> None:
        """Stop the statement that runs, if one does."""
        if self._driver is not None:
            with contextlib.suppress(sqlite3.ProgrammingError):
                self._driver.interrupt()

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            with contextlib.suppress(Exception):
                self._connection.close()

    def write(self, calls: Requests) -> None:
        """What is quickly done in one transaction; where one fails, each in one of its own."""
        pause_s = _FIRST_PAUSE_S
        while begun := [call for call in calls if call.begin()]:
            try:
                with map_errors(self._name):
                    self._transact(begun)
            except CatalogBusyError as error:
                if error.is_interrupted:
                    calls = self._without_late(begun)
                else:
                    calls = self._wait_for_lock(begun, error, pause_s)
                    pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            except Exception as error:  # noqa: BLE001 - it belongs to the one who caused it
                if len(begun) == 1:
                    begun[0].error = error
                    return
                for call in self._step_back(begun, _OTHERS):
                    self.write((call,))
                    self._tell((call,))
                return
            else:
                done_count = self._at + 1
                calls = begun[done_count:]
                if calls:
                    self._tell(begun[:done_count])
                    calls = self._step_back(calls, _OTHERS)

    def _transact(self, calls: Requests) -> None:
        """Do the first of them; `_at` is the number of the last that was."""
        self._at = 0
        connection = self._connected()
        transaction = connection.begin()
        end_s = time.monotonic() + _LONGEST_BATCH_S
        try:
            for self._at, call in enumerate(calls):
                call.result = call.unit(connection)
                if time.monotonic() > end_s:
                    break
            self._require_in_time(calls[: self._at + 1])
            if calls[0].holds:
                self._transaction = transaction
            else:
                transaction.commit()
        except BaseException:
            self._undo(transaction)
            raise

    def _require_in_time(self, calls: Requests) -> None:
        if any(call.is_late for call in calls):
            raise CatalogBusyError(self._name, _SLOW, is_interrupted=True)

    def _without_late(self, calls: Requests) -> Requests:
        """Those that are to be begun again. The others are told: not to be stopped once more."""
        at_work = calls[self._at]
        # Looked at once: one that is late from now on is not to be told that it was done.
        late = [call for call in calls if call.is_late]
        for call in late:
            call.error = self._busy(call, _SLOW if call is at_work else _OTHERS)
        self._tell(late)
        # Not by their errors: whoever raises one takes it away from its call.
        return [call for call in calls if call not in late]

    def _undo(self, transaction: RootTransaction) -> None:
        transaction.rollback()
        # SQLAlchemy takes one whose COMMIT was refused for one that is over.
        if self._driver is not None and self._driver.in_transaction:
            self._driver.rollback()

    def read(self, calls: Requests) -> None:
        """All of them in one snapshot, which is taken after the last of them has called."""
        pause_s = _FIRST_PAUSE_S
        left = deque(calls)
        while left:
            try:
                with map_errors(self._name):
                    self._look(left)
            except CatalogBusyError as error:
                # One that is over may be stopped a moment too late.
                if not error.is_interrupted:
                    left = deque(self._wait_for_lock(left, error, pause_s))
                    pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _look(self, left: deque[Request[Any]]) -> None:
        connection = self._connected()
        if len(left) == 1 and left[0].is_one_statement:
            # To SQLite it is a snapshot by itself. To SQLAlchemy nothing has begun: what the driver
            # is given directly does not pass by there.
            self._check_file_unchanged()
            snapshot: AbstractContextManager[object] = contextlib.nullcontext()
        else:
            snapshot = connection.begin()
        with snapshot:
            while left:
                call = left[0]
                if call.begin():
                    self._look_for(call, connection)
                    call.is_done = True
                left.popleft()

    def _look_for(self, call: Request[Any], connection: Connection) -> None:
        try:
            with map_errors(self._name):
                call.result = call.unit(connection)
        except CatalogBusyError as error:
            if not call.is_late or not error.is_interrupted:
                raise
            call.error = self._busy(call, _SLOW)
        except Exception as error:  # noqa: BLE001 - it belongs to the one who caused it
            call.error = error

    def do_held(self, calls: Requests) -> None:
        """In the transaction that is open, or to end it."""
        for call in calls:
            if call.begin():
                try:
                    with map_errors(self._name):
                        call.result = call.unit(self._connected())
                except CatalogBusyError as error:
                    is_slow = error.is_interrupted
                    call.error = self._busy(call, _SLOW) if is_slow else error

    def keep(self, wait_s: float) -> None:
        """Commit the transaction that is open."""
        if self._transaction is not None:
            self._be_patient(wait_s)
            self._transaction.commit()
            self._transaction = None
            self._be_patient(LOCK_WAIT_S)

    def undo(self) -> None:
        """Roll the transaction back that is open, if one is."""
        transaction, self._transaction = self._transaction, None
        if transaction is not None:
            self._undo(transaction)
            self._be_patient(LOCK_WAIT_S)

    def _be_patient(self, wait_s: float) -> None:
        # To SQLAlchemy's connection a statement between two transactions begins one.
        if self._driver is not None:
            self._driver.execute(busy_timeout(wait_s))

    def _connected(self) -> Connection:
        connection = self._connection
        if connection is None:
            connection = self._engine.connect().execution_options(**{WRITE: self._writes})
            self._connection = connection
            self._driver = driver_connection(connection)
        return connection

    def _wait_for_lock(self, calls: Requests, error: CatalogBusyError, pause_s: float) -> Requests:
        """Pause; return those that are to be begun again."""
        later = self._step_back(calls, error.reason)
        self.obstacle = error.reason
        # Whoever polls in step with another finds the same lock taken every time.
        time.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311
        return later

    def _step_back(self, calls: Requests, reason: str) -> Requests:
        """Those that are to be begun again; the others are told what for they waited."""
        later: list[Request[Any]] = []
        gone: list[Request[Any]] = []
        for call in calls:
            (later if call.step_back(self._busy(call, reason)) else gone).append(call)
        if gone:
            self._tell(gone)
        return later

    def _busy(self, call: Request[Any], reason: str) -> CatalogBusyError:
        return CatalogBusyError(self._name, reason, time.monotonic() - call.start)
