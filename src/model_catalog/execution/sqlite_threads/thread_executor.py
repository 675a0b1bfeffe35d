"""Units of work on a SQLite file of our own: one connection that writes, and a few that read."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Engine, NestedTransaction

from model_catalog.concurrency.ownership import Home
from model_catalog.concurrency.threads import to_thread
from model_catalog.connection.database_file import network_file_system
from model_catalog.connection.engines import files_of
from model_catalog.connection.target import name_of
from model_catalog.domain import validation
from model_catalog.errors import CatalogReadOnlyError
from model_catalog.execution.executor import Unit, Work, inside, require_outside
from model_catalog.execution.prepared_statement import Prepared, Row
from model_catalog.execution.sqlite_threads.connection_thread import Hold, Lane
from model_catalog.execution.sqlite_threads.inline_reader import InlineReader, Reads
from model_catalog.execution.transaction import Savepoint, SharedTransaction

T = TypeVar("T")

# A long list is not to hold up another; more than these would only contend for Python's own lock.
_MOST_READERS: Final = 4


class Lanes:
    """
    Every unit is a transaction of its own, in the thread that has the connection.

    That is one step out of the event loop and one back, and those who call together share it.
    """

    def __init__(
        self, engine: Engine, timeout_s: float, home: Home, reads: Reads = "threads"
    ) -> None:
        self.timeout_s = validation.seconds("timeout_s", timeout_s)
        self._home = home
        self._engine = engine
        self.target = name_of(engine.url)
        self._writer = Lane(self._engine, self.target, writes=True)
        self._readers = [Lane(self._engine, self.target, writes=False)]
        self._inline = InlineReader(self._engine, self.target) if reads == "inline" else None
        self._open: dict[SharedTransaction, Hold] = {}
        self.dialect = "sqlite"
        self.cascades = True
        self.files = files_of(self._engine)

    async def open(self) -> None:
        """Open the file, which is in use from here on."""
        if await to_thread(network_file_system, self.files[0]):
            # A write-ahead log is left behind by the only connection, or by none.
            with contextlib.suppress(CatalogReadOnlyError):
                await self._writer.call(lambda _: None, self.timeout_s)
        await self._readers[0].call(lambda _: None, self.timeout_s)

    async def find(self, statement: Prepared, values: Mapping[str, Any]) -> Sequence[Row]:
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

    def _reader(self, *, alone: bool) -> Lane:
        for lane in self._readers:
            if lane.takes(alone=alone):
                return lane
        if len(self._readers) < _MOST_READERS:
            self._readers.append(Lane(self._engine, self.target, writes=False))
            return self._readers[-1]
        return min(self._readers, key=lambda lane: lane.waiting_count)

    async def write(self, unit: Unit[T], timeout_s: float | None = None) -> T:
        self._home.require()
        self.ensure_outside()
        may_take_s = self.timeout_s if timeout_s is None else timeout_s
        return await self._writer.call(unit, may_take_s)

    async def write_all(self, unit: Unit[T]) -> T:
        self._home.require()
        self.ensure_outside()
        return await self._writer.call(unit, self.timeout_s, alone=True)

    def ensure_outside(self) -> None:
        require_outside(self)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Work]:
        self._home.require()
        self.ensure_outside()
        hold = await self._writer.hold(self.timeout_s)
        shared = SharedTransaction(_Held(self._writer, hold, self), Home(self.target), ours=True)
        self._open[shared] = hold
        try:
            with inside(self):
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


class _Held:
    """The transaction that the writing connection has open."""

    def __init__(self, lane: Lane, hold: Hold, lanes: Lanes) -> None:
        self._lane = lane
        self._hold = hold
        self.timeout_s = lanes.timeout_s
        self.target = lanes.target
        self.dialect = lanes.dialect
        self.cascades = lanes.cascades
        self.files = lanes.files

    async def run(self, unit: Unit[T]) -> T:
        return await self._lane.call_held(self._hold, unit, self.timeout_s)

    async def savepoint(self) -> Savepoint:
        return _Savepoint(self, await self.run(Connection.begin_nested))

    async def is_whole(self) -> bool:
        return await self.run(_is_in_transaction)


class _Savepoint:
    def __init__(self, held: _Held, nested: NestedTransaction) -> None:
        self._held = held
        self._nested = nested

    async def commit(self) -> None:
        await self._held.run(lambda _: self._nested.commit())

    async def rollback(self) -> None:
        await self._held.run(lambda _: self._nested.rollback())


def _is_in_transaction(connection: Connection) -> bool:
    return bool(connection.connection.driver_connection.in_transaction)  # type: ignore[union-attr]
