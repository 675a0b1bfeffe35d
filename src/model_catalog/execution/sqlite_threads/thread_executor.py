"""Units of work on a SQLite file of our own: one connection that writes, and a few that read."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Engine, NestedTransaction

from model_catalog.concurrency.ownership import LoopOwner
from model_catalog.concurrency.threads import to_thread
from model_catalog.connection.database_file import network_file_system
from model_catalog.connection.database_info import driver_connection
from model_catalog.connection.engines import database_info
from model_catalog.connection.target import display_name
from model_catalog.domain import validation
from model_catalog.errors import CatalogReadOnlyError
from model_catalog.execution.executor import (
    Executor,
    Joint,
    Operation,
    Unit,
    forbid_nested_write,
    transaction_context,
)
from model_catalog.execution.prepared_statement import PreparedStatement, Row
from model_catalog.execution.sqlite_threads.connection_thread import (
    ConnectionThread,
    TransactionHandle,
)
from model_catalog.execution.sqlite_threads.inline_reader import InlineReader, ReadMode
from model_catalog.execution.transaction import Savepoint, TransactionExecutor

T = TypeVar("T")

# A long list is not to hold up another; more than these would only contend for Python's own lock.
_MAX_READERS: Final = 4


class ThreadExecutor:
    """
    Every unit is a transaction of its own, in the thread that has the connection.

    That is one step out of the event loop and one back, and those who call together share it.
    """

    def __init__(
        self, engine: Engine, timeout_s: float, home: LoopOwner, reads: ReadMode = "threads"
    ) -> None:
        self.timeout_s = validation.seconds("timeout_s", timeout_s)
        self._home = home
        self._engine = engine
        self.target = display_name(engine.url)
        self._writer = ConnectionThread(self._engine, self.target, writes=True)
        self._readers = [ConnectionThread(self._engine, self.target, writes=False)]
        self._inline = InlineReader(self._engine, self.target) if reads == "inline" else None
        self._open: dict[TransactionExecutor, TransactionHandle] = {}
        self.database = database_info(self._engine)

    async def open(self) -> None:
        """Open the file, which is in use from here on."""
        if await to_thread(network_file_system, self.database.files[0]):
            # A write-ahead log is left behind by the only connection, or by none.
            with contextlib.suppress(CatalogReadOnlyError):
                await self._writer.call(lambda _: None, self.timeout_s)
        await self._readers[0].call(lambda _: None, self.timeout_s)

    async def run(self, operation: Operation[Any, T]) -> T:
        def unit(connection: Connection) -> T:
            return operation.run_one(connection, operation.value)

        if operation.single_statement:
            self._home.require()
            if self._inline is not None:
                done = self._inline.try_run(operation)
                if done is not None:
                    return done[0]
            return await self._reader(alone=False).look_up(unit, self.timeout_s)
        if not operation.writes:
            return await self.read(unit)
        if operation.exclusive:
            return await self.write_all(unit)
        if operation.run_many is not None:
            joint = Joint(operation.value, operation.run_one, operation.run_many)
            return await self.write(joint, operation.timeout_s)
        return await self.write(unit, operation.timeout_s)

    async def find(self, statement: PreparedStatement, values: Mapping[str, Any]) -> Sequence[Row]:
        self._home.require()
        if self._inline is not None:
            rows = self._inline.rows(statement, values)
            if rows is not None:
                return rows

        def unit(connection: Connection) -> Sequence[Row]:
            return statement.rows(connection, values)

        return await self._reader(alone=False).look_up(unit, self.timeout_s)

    async def read(self, unit: Unit[T]) -> T:
        self._home.require()
        return await self._reader(alone=True).call(unit, self.timeout_s, alone=True)

    def _reader(self, *, alone: bool) -> ConnectionThread:
        for lane in self._readers:
            if lane.takes(alone=alone):
                return lane
        if len(self._readers) < _MAX_READERS:
            self._readers.append(ConnectionThread(self._engine, self.target, writes=False))
            return self._readers[-1]
        return min(self._readers, key=lambda lane: lane.waiting_count)

    async def write(self, unit: Unit[T], timeout_s: float | None = None) -> T:
        self._home.require()
        self.forbid_nested_write()
        may_take_s = self.timeout_s if timeout_s is None else timeout_s
        return await self._writer.call(unit, may_take_s)

    async def write_all(self, unit: Unit[T]) -> T:
        self._home.require()
        self.forbid_nested_write()
        return await self._writer.call(unit, self.timeout_s, alone=True)

    def forbid_nested_write(self) -> None:
        forbid_nested_write(self)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Executor]:
        self._home.require()
        self.forbid_nested_write()
        hold = await self._writer.hold(self.timeout_s)
        shared = TransactionExecutor(
            _ThreadTransaction(self._writer, hold, self), LoopOwner(self.target), ours=True
        )
        self._open[shared] = hold
        try:
            with transaction_context(self):
                yield shared
                await shared.commit(lambda: self._writer.commit(hold, self.timeout_s))
        finally:
            self._open.pop(shared, None)
            # Does nothing after the commit.
            await shared.leave(lambda: self._writer.roll_back(hold))

    async def close(self) -> None:
        """Undo transactions that are open, and let what else was asked for come to its end."""
        for shared, hold in list(self._open.items()):
            await shared.abandon(partial(self._writer.roll_back, hold))
        for lane in (self._writer, *self._readers):
            await lane.close()
        if self._inline is not None:
            self._inline.close()


class _ThreadTransaction:
    """The transaction that the writing connection has open."""

    def __init__(
        self, lane: ConnectionThread, hold: TransactionHandle, lanes: ThreadExecutor
    ) -> None:
        self._lane = lane
        self._hold = hold
        self.timeout_s = lanes.timeout_s
        self.target = lanes.target
        self.database = lanes.database

    async def run(self, unit: Unit[T]) -> T:
        return await self._lane.call_held(self._hold, unit, self.timeout_s)

    async def savepoint(self) -> Savepoint:
        return _Savepoint(self, await self.run(Connection.begin_nested))

    async def is_whole(self) -> bool:
        return await self.run(_is_in_transaction)


class _Savepoint:
    def __init__(self, held: _ThreadTransaction, nested: NestedTransaction) -> None:
        self._held = held
        self._nested = nested

    async def commit(self) -> None:
        await self._held.run(lambda _: self._nested.commit())

    async def rollback(self) -> None:
        await self._held.run(lambda _: self._nested.rollback())


def _is_in_transaction(connection: Connection) -> bool:
    return bool(driver_connection(connection).in_transaction)
