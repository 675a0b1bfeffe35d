"""Runs operations on a SQLite file of our own: one writer thread, and up to four reader threads."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, Final, Literal, TypeAlias, TypeVar

from sqlalchemy import Connection, Engine

from model_catalog.concurrency.context_managers import inner_contextmanager
from model_catalog.concurrency.ownership import LoopOwner
from model_catalog.connection.database_info import DatabaseInfo, driver_connection
from model_catalog.connection.engines import database_info, file_guard_of
from model_catalog.connection.error_mapping import is_invalid_text, map_errors
from model_catalog.connection.interruption.sqlite_forks import close_before_forks
from model_catalog.domain import validation
from model_catalog.errors import (
    CatalogBusyError,
    CatalogCorruptError,
    CatalogReadOnlyError,
    InvalidModelError,
)
from model_catalog.execution.executor import (
    Executor,
    Operation,
    forbid_nested_write,
    transaction_context,
)
from model_catalog.execution.sqlite_threads.request import TransactionHandle
from model_catalog.execution.sqlite_threads.request_queue import (
    ConnectionThread,
    ReaderQueues,
    RequestQueue,
)
from model_catalog.execution.sqlite_threads.transaction_runner import TransactionRunner
from model_catalog.execution.transaction import Savepoint, TransactionExecutor

I = TypeVar("I")  # noqa: E741 - an item
T = TypeVar("T")

ReadMode: TypeAlias = Literal["threads", "inline"]
"""Where single models are read from a SQLite file: in threads, or in the event loop's own."""


def validate_read_mode(value: str) -> None:
    """Raise InvalidModelError if a value is neither `threads` nor `inline`."""
    if value not in ("threads", "inline"):
        raise InvalidModelError("reads", value, "is not one of threads, inline")


class ThreadExecutor:
    """
    Runs operations on a SQLite file that is ours alone, in threads that own a connection each.

    It exists because it is faster than `aiosqlite`: an operation is one hand-over to a thread and
    back, and operations that come at the same time share a hand-over and a transaction. One thread
    writes, up to four threads read. With `reads="inline"` lookups run in the event loop's thread.
    """

    def __init__(
        self, engine: Engine, timeout_s: float, owner: LoopOwner, reads: ReadMode = "threads"
    ) -> None:
        self.timeout_s = validation.seconds("timeout_s", timeout_s)
        self._owner = owner
        self._engine = engine
        self.database = database_info(engine)
        self._writer = self._connection_thread(writes=True)
        self._readers = ReaderQueues(lambda: self._connection_thread(writes=False))
        self._inline_reader = (
            _InlineReader(engine, self.database.name) if reads == "inline" else None
        )
        self._open_transactions: dict[TransactionExecutor, TransactionHandle] = {}

    def _connection_thread(self, *, writes: bool) -> RequestQueue:
        name = self.database.name
        runner = TransactionRunner(self._engine, name, writes=writes)
        return RequestQueue(
            runner, name, lambda queue: ConnectionThread(queue, runner, name), writes=writes
        )

    async def open(self, first_read: Callable[[Connection], T]) -> T:
        """Open the file, which is in use from here on, and read one statement in it."""
        read = Operation(lambda connection, _: first_read(connection), None, single_statement=True)
        return await self._readers.queues[0].submit(read, self.timeout_s)

    async def open_writer(self) -> None:
        """
        Open the connection of the writer, before those of the readers.

        Only a connection that is alone can switch the file from a write-ahead log to a rollback
        journal, which a network file system needs.
        """
        with contextlib.suppress(CatalogReadOnlyError):
            await self._writer.submit(Operation(_do_nothing, None), self.timeout_s)

    @property
    def is_in_transaction(self) -> bool:
        """Each operation has a transaction of its own, or shares one with others."""
        return False

    def forbid_nested_write(self) -> None:
        """Raise TransactionError in a task that has a transaction of this executor open."""
        forbid_nested_write(self)

    async def run(self, operation: Operation[Any, T]) -> T:
        """Run an operation in the writer thread or in a reader thread."""
        self._owner.check_usable()
        if operation.writes:
            self.forbid_nested_write()
            thread = self._writer
        else:
            if operation.single_statement and self._inline_reader is not None:
                found = self._inline_reader.try_run(operation)
                if found is not None:
                    return found[0]
            thread = self._readers.pick(exclusive=operation.exclusive)
        timeout_s = operation.timeout_s
        return await thread.submit(operation, self.timeout_s if timeout_s is None else timeout_s)

    @inner_contextmanager
    async def transaction(self) -> AsyncIterator[Executor]:
        """Open a transaction in the writer thread; other writes wait until it ends."""
        self._owner.check_usable()
        self.forbid_nested_write()
        writer, timeout_s = self._writer, self.timeout_s
        transaction = await writer.begin(timeout_s)
        executor = TransactionExecutor(
            _ThreadTransaction(writer, transaction, self.database, timeout_s),
            LoopOwner(self.database.name),
            owns_transaction=True,
        )
        self._open_transactions[executor] = transaction
        try:
            with transaction_context(self):
                yield executor
                await executor.commit(partial(writer.commit, transaction, timeout_s))
        finally:
            self._open_transactions.pop(executor, None)
            # Does nothing after the commit.
            await executor.end(lambda: writer.roll_back(transaction))

    async def close(self) -> None:
        """Roll back open transactions, run the requests in the queues, and end the threads."""
        for executor, transaction in list(self._open_transactions.items()):
            await executor.end_early(partial(self._writer.roll_back, transaction))
        for thread in (self._writer, *self._readers.queues):
            await thread.close()
        if self._inline_reader is not None:
            self._inline_reader.close()


class _ThreadTransaction:
    """The open transaction of the writer thread; a `TransactionBackend`."""

    def __init__(
        self,
        writer: RequestQueue,
        transaction: TransactionHandle,
        database: DatabaseInfo,
        timeout_s: float,
    ) -> None:
        self._writer = writer
        self._transaction = transaction
        self.database = database
        self.timeout_s = timeout_s

    async def run(self, operation: Operation[I, T]) -> T:
        """Return what the function of an operation returns."""
        return await self._writer.submit(operation, self.timeout_s, self._transaction)

    async def _call(self, function: Callable[[Connection], T]) -> T:
        return await self.run(Operation(lambda connection, _: function(connection), None))

    async def savepoint(self) -> Savepoint:
        """Begin a savepoint."""
        nested = await self._call(Connection.begin_nested)
        return Savepoint(
            commit=lambda: self._call(lambda _: nested.commit()),
            rollback=lambda: self._call(lambda _: nested.rollback()),
        )

    async def is_open(self) -> bool:
        """Return whether SQLite still has the transaction open."""
        return await self._call(_is_in_transaction)


class _InlineReader:
    """
    Runs lookups on a connection of the event loop's thread, and never waits for a lock.

    The first lookup opens the connection. Each lookup is one statement, and so a snapshot of its
    own: it finds what was committed before it, by any program.
    """

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine: Final = engine
        self._name: Final = name
        self._check_file_unchanged = file_guard_of(engine).check_unchanged
        self._connection: Connection | None = None
        self.fork_lock = threading.RLock()
        close_before_forks(self)

    def try_run(self, operation: Operation[Any, T]) -> tuple[T] | None:
        """Return the result of a lookup in a tuple, or None if it would have to wait for a lock."""
        try:
            with self.fork_lock, map_errors(self._name):
                connection = self._connection or self._connect()
                self._check_file_unchanged()
                return (operation.run_one(connection, operation.value),)
        except CatalogBusyError:
            return None
        except CatalogCorruptError as error:
            if is_invalid_text(error):
                # A reader thread runs it again, and reads such text as bytes.
                return None
            raise

    def _connect(self) -> Connection:
        connection = self._engine.connect()
        driver_connection(connection).execute("PRAGMA busy_timeout = 0")
        self._connection = connection
        return connection

    def close_for_fork(self) -> None:
        """Close the connection; the next lookup opens it again."""
        self.close()
        self._connection = None

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            with contextlib.suppress(Exception):
                self._connection.close()


def _do_nothing(_connection: Connection, _value: None) -> None:
    pass


def _is_in_transaction(connection: Connection) -> bool:
    return bool(driver_connection(connection).in_transaction)
