"""Runs batches of requests in transactions, in the thread that owns the SQLite connection."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

from sqlalchemy import Connection, Engine, RootTransaction

from model_catalog.concurrency.retry import backoff_pauses_s
from model_catalog.connection.database_info import driver_connection
from model_catalog.connection.engines import file_guard_of
from model_catalog.connection.error_mapping import (
    is_invalid_text,
    map_errors,
    text_or_bytes,
)
from model_catalog.connection.interruption.interruptible_run import SLOW_STATEMENTS
from model_catalog.connection.interruption.sqlite_forks import close_before_forks
from model_catalog.connection.timeouts import LOCK_WAIT_S, WRITE, busy_timeout
from model_catalog.errors import CatalogBusyError, CatalogClosedError
from model_catalog.execution.executor import OTHER_WRITER, OnCommit
from model_catalog.execution.sqlite_threads.request import Request

Requests: TypeAlias = Sequence[Request[Any]]
RunMany: TypeAlias = Callable[[Connection, Sequence[Any]], Sequence[Any]]

# SQLite's own busy handler has waited for the lock already before each pause.
_LONGEST_PAUSE_S: Final = 0.02

# A timeout rolls back all requests that share its transaction, so a batch is cut at this length.
_LONGEST_BATCH_S: Final = 0.05

# A timeout, or an error, ends all lookups that share a statement, and each of them is run again.
_MOST_ALIKE: Final = 64


class TransactionRunner:
    """
    One SQLite connection, and the methods that run requests on it.

    The connection is its own, made by `engine` on first use; without an engine it is the one that
    `using` lends it for each batch.

    The methods set the result or the error of each request. An error that concerns a whole batch is
    raised. All methods but `interrupt` must be called in the thread of the connection.
    """

    answer: Callable[[Requests], object]
    """
    Called with requests whose outcome is certain before their batch has ended.

    The last ones are left to the end of the batch. Over a host's pool its connection has then been
    returned, and the host may dispose of its engine.
    """

    def __init__(self, engine: Engine | None, name: str, *, writes: bool) -> None:
        self._engine = engine
        self._check_file_unchanged = (
            _do_nothing if engine is None else file_guard_of(engine).check_unchanged
        )
        self._name = name
        self._writes = writes
        self._connection: Connection | None = None
        self._driver: sqlite3.Connection | None = None
        self._transaction: RootTransaction | None = None
        self._index = 0
        """The index of the request of the batch that runs, or ran last."""
        self.waiting_for: str | None = None
        """The reason why the database is locked, while this waits for another program."""
        self.fork_lock = threading.RLock()
        if engine is not None:
            close_before_forks(self)

    @property
    def has_transaction(self) -> bool:
        """Whether a transaction stays open between two requests."""
        return self._transaction is not None

    def interrupt(self) -> None:
        """Interrupt the running statement, if there is one. May be called from any thread."""
        if self._driver is not None:
            with contextlib.suppress(sqlite3.ProgrammingError):
                self._driver.interrupt()

    @contextmanager
    def using(self, connection: Connection) -> Iterator[None]:
        """Use a connection for the batches that are run in the block."""
        self._connection = connection.execution_options(**{WRITE: self._writes})
        self._driver = driver_connection(connection)
        try:
            yield
        finally:
            if self._driver is not None and self._driver.text_factory is text_or_bytes:
                self._driver.text_factory = str
            self._connection = self._driver = None

    def close(self) -> None:
        """Close the connection."""
        with self.fork_lock, contextlib.suppress(Exception):
            if self._connection is not None:
                self._connection.close()

    def close_for_fork(self) -> None:
        """Close the connection, unless a transaction is open; the next batch opens it again."""
        if self._transaction is None:
            self.close()
            self._connection = self._driver = None

    def write(self, requests: Requests) -> None:
        """
        Run requests that write in one transaction (group commit).

        A batch that takes longer than 0.05 s is split into more transactions. If a request
        fails, each request of the batch runs in a transaction of its own. While another program
        holds the lock, the batch is retried.
        """
        pauses_s = None
        while started := [request for request in requests if request.try_start()]:
            try:
                with map_errors(self._name):
                    self._run_transaction(started)
            except CatalogBusyError as error:
                if error.is_interrupted:
                    requests = self._drop_timed_out(started)
                else:
                    pauses_s = pauses_s or backoff_pauses_s(_LONGEST_PAUSE_S)
                    requests = self._wait_for_lock(started, error.reason, next(pauses_s))
            except Exception as error:  # noqa: BLE001 - the request that caused it raises it
                if self._tolerate_invalid_text(error):
                    requests = self._requeue(started, OTHER_WRITER)
                    continue
                if len(started) == 1:
                    started[0].error = error
                    return
                self._write_one_by_one(self._requeue(started, OTHER_WRITER))
                return
            else:
                done_count = self._index + 1
                requests = started[done_count:]
                if requests:
                    self.answer(started[:done_count])
                    requests = self._requeue(requests, OTHER_WRITER)

    def _write_one_by_one(self, requests: Requests) -> None:
        for request in requests:
            self.write((request,))
            if request is not requests[-1]:
                self.answer((request,))

    def _run_transaction(self, requests: Requests) -> None:
        """Run and commit as many requests as 0.05 s allow; `_index` is that of the last of them."""
        self._index = 0
        connection = self._connected()
        transaction = connection.begin()
        end_s = time.monotonic() + _LONGEST_BATCH_S
        try:
            for self._index, request in enumerate(requests):
                operation = request.operation
                request.result = operation.run_one(connection, operation.value)
                if time.monotonic() > end_s:
                    break
            self._check_none_timed_out(requests[: self._index + 1])
            if requests[0].opens_transaction:
                self._transaction = transaction
                return
            transaction.commit()
        except BaseException:
            self._roll_back(transaction)
            raise
        for request in requests[: self._index + 1]:
            if request.operation.on_commit is not None:
                request.operation.on_commit()

    def _check_none_timed_out(self, requests: Requests) -> None:
        # An interrupt does not reach a request that spent its time outside SQLite.
        if any(request.is_timed_out for request in requests):
            raise CatalogBusyError(self._name, SLOW_STATEMENTS, is_interrupted=True)

    def _drop_timed_out(self, requests: Requests) -> Requests:
        """Answer the requests that have timed out; return those that are to be run again."""
        running = requests[self._index]
        # Read once: a request that times out from now on must not be answered here.
        timed_out = [request for request in requests if request.is_timed_out]
        for request in timed_out:
            reason = SLOW_STATEMENTS if request is running else OTHER_WRITER
            request.error = self._busy_error(request, reason)
        # Not by `error`: the task that raises the error removes it from its request.
        remaining = [request for request in requests if request not in timed_out]
        if remaining:
            # Now, so that the event loop does not interrupt them again.
            self.answer(timed_out)
        return remaining

    def _roll_back(self, transaction: RootTransaction) -> None:
        transaction.rollback()
        # If SQLite refuses a COMMIT, its transaction stays open, but SQLAlchemy takes it for ended.
        if self._driver is not None and self._driver.in_transaction:
            self._driver.rollback()

    def read(self, requests: Requests) -> None:
        """
        Run requests that read, each in a snapshot that begins after the last one was submitted.

        Lookups of the same kind share a statement, and the others share a transaction.
        """
        pauses_s = None
        remaining = deque(requests)
        while remaining:
            try:
                with map_errors(self._name):
                    self._run_reads(remaining)
            except CatalogBusyError as error:
                # An interrupt may come a moment too late for its own request. Then the request that
                # it stopped is run again at once.
                if not error.is_interrupted:
                    pauses_s = pauses_s or backoff_pauses_s(_LONGEST_PAUSE_S)
                    remaining = deque(self._wait_for_lock(remaining, error.reason, next(pauses_s)))
            except Exception as error:  # noqa: BLE001 - the requests that have no outcome raise it
                for request in remaining:
                    request.error = error
                return

    def _run_reads(self, remaining: deque[Request[Any]]) -> None:
        connection = self._connected()
        if len(remaining) > 1:
            self._run_alike(remaining, connection)
            if not remaining:
                return
        if len(remaining) == 1 and remaining[0].operation.single_statement:
            # One statement is a snapshot by itself. It is run on the driver, so SQLAlchemy begins
            # no transaction that would have to be ended.
            self._check_file_unchanged()
            snapshot = None
        else:
            snapshot = connection.begin()
        try:
            while remaining:
                request = remaining[0]
                if request.try_start():
                    self._run_read(request, connection)
                    request.is_completed = True
                remaining.popleft()
        finally:
            if snapshot is not None:
                # SQLite refuses to commit after it has met a damaged page.
                self._roll_back(snapshot)

    def _run_alike(self, requests: deque[Request[Any]], connection: Connection) -> None:
        """Run the requests that share a `run_many` together, and remove them if that succeeds."""
        alike: dict[RunMany, list[Request[Any]]] = {}
        for request in requests:
            run_many = request.operation.run_many
            if run_many is not None:
                alike.setdefault(run_many, []).append(request)
        if alike:
            self._check_file_unchanged()
        for run_many, group in alike.items():
            for start in range(0, len(group), _MOST_ALIKE):
                self._run_together(run_many, group[start : start + _MOST_ALIKE], connection)
        left = [request for request in requests if not request.is_completed]
        requests.clear()
        requests.extend(left)

    def _run_together(self, run_many: RunMany, requests: Requests, connection: Connection) -> None:
        started = [request for request in requests if request.try_start()]
        # If they fail, each is run on its own, and raises its own error.
        with contextlib.suppress(Exception):
            results = run_many(connection, [request.operation.value for request in started])
            for request, result in zip(started, results, strict=True):
                request.result = result
                request.is_completed = True

    def _run_read(self, request: Request[Any], connection: Connection) -> None:
        operation = request.operation
        try:
            request.result = operation.run_one(connection, operation.value)
        except Exception as error:  # noqa: BLE001 - the request that caused it raises it
            self._fail_read(request, connection, error)

    def _fail_read(self, request: Request[Any], connection: Connection, raised: Exception) -> None:
        """Set the error of a read, or run it again if it only met text that is not UTF-8."""
        try:
            with map_errors(self._name):
                raise raised  # noqa: TRY301
        except CatalogBusyError as error:
            if not (request.is_timed_out and error.is_interrupted):
                raise
            request.error = self._busy_error(request, SLOW_STATEMENTS)
        except Exception as error:  # noqa: BLE001 - the request that caused it raises it
            if self._tolerate_invalid_text(error):
                self._run_read(request, connection)
            else:
                request.error = error

    def _tolerate_invalid_text(self, error: Exception) -> bool:
        """
        Read texts that are not UTF-8 as bytes from now on, if such a text has caused an error.

        Returns whether the operation can be run again. It takes longer for every text, so a
        connection begins without it.
        """
        driver = self._driver
        if driver is None or driver.text_factory is not str or not is_invalid_text(error):
            return False
        driver.text_factory = text_or_bytes
        return True

    def run_in_transaction(self, requests: Requests) -> None:
        """Run requests in the open transaction, and set their results; one may be its COMMIT."""
        for request in requests:
            if request.try_start():
                operation = request.operation
                try:
                    with map_errors(self._name):
                        request.result = operation.run_one(self._connected(), operation.value)
                except CatalogBusyError as error:
                    slow = error.is_interrupted
                    request.error = self._busy_error(request, SLOW_STATEMENTS) if slow else error

    def commit(self, _connection: Connection, value: tuple[float, OnCommit]) -> None:
        """Commit the open transaction, and call a function; wait for readers some seconds."""
        wait_s, tell = value
        if self._transaction is not None:
            self._set_busy_timeout(wait_s)
            self._transaction.commit()
            self._transaction = None
            self._set_busy_timeout(LOCK_WAIT_S)
            tell()

    def roll_back(self, _connection: Connection, _value: None) -> None:
        """Roll back the transaction, if one is open."""
        transaction, self._transaction = self._transaction, None
        if transaction is not None:
            self._roll_back(transaction)
            self._set_busy_timeout(LOCK_WAIT_S)

    def _set_busy_timeout(self, wait_s: float) -> None:
        # On the driver: SQLAlchemy would begin a transaction for a statement between two of them.
        if self._driver is not None:
            self._driver.execute(busy_timeout(wait_s))

    def _connected(self) -> Connection:
        connection = self._connection
        if connection is None and self._engine is not None:
            connection = self._engine.connect().execution_options(**{WRITE: self._writes})
            self._connection = connection
            self._driver = driver_connection(connection)
        if connection is None:
            raise CatalogClosedError(self._name)
        return connection

    def _wait_for_lock(self, requests: Requests, reason: str, pause_s: float) -> Requests:
        """Pause; return the requests that are to be run again."""
        requeued = self._requeue(requests, reason)
        self.waiting_for = reason
        if requeued:
            time.sleep(pause_s)
        return requeued

    def _requeue(self, requests: Requests, reason: str) -> Requests:
        """Return the requests that are to be run again; answer the others with `reason`."""
        requeued: list[Request[Any]] = []
        dropped: list[Request[Any]] = []
        for request in requests:
            again = request.requeue(self._busy_error(request, reason))
            (requeued if again else dropped).append(request)
        if dropped and requeued:
            self.answer(dropped)
        return requeued

    def _busy_error(self, request: Request[Any], reason: str) -> CatalogBusyError:
        return CatalogBusyError(self._name, reason, time.monotonic() - request.start)


def _do_nothing() -> None:
    pass
