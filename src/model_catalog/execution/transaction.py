"""One transaction that several calls are part of, and that somebody else ends."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from model_catalog.concurrency.completion import run_to_completion
from model_catalog.concurrency.ownership import LoopOwner
from model_catalog.connection.error_mapping import to_catalog_error
from model_catalog.errors import (
    CatalogBusyError,
    CatalogClosedError,
    CatalogError,
    TransactionError,
    WrongLoopError,
)
from model_catalog.execution.executor import DatabaseInfo, Executor, Joint, Operation, Unit
from model_catalog.execution.prepared_statement import PreparedStatement, Row

T = TypeVar("T")

_of_the_parent: Final[list[TransactionExecutor]] = []


class Savepoint(Protocol):
    """A part of a transaction that can be undone by itself."""

    async def commit(self) -> None:
        """Keep it, as far as the rest is kept."""

    async def rollback(self) -> None:
        """Undo it."""


class TransactionBackend(Protocol):
    """A connection with an open transaction; it serves one call at a time."""

    database: DatabaseInfo
    target: str
    timeout_s: float

    async def run(self, unit: Unit[T]) -> T:
        """What a unit returns; raises only the catalog's own errors."""

    async def savepoint(self) -> Savepoint:
        """Begin a part of the transaction."""

    async def is_whole(self) -> bool:
        """Whether the database still has the transaction open."""


class TransactionExecutor:
    """
    Every unit is part of a transaction that somebody else ends.

    One that is `ours` ends with the first call that the database fails: PostgreSQL would undo at
    the commit what came before, and SQLite may have undone it already. A savepoint around that call
    saves the rest.
    """

    def __init__(
        self, held: TransactionBackend, home: LoopOwner | None = None, *, ours: bool = False
    ) -> None:
        self._held = held
        self._home = home
        self.database = held.database
        self.timeout_s = held.timeout_s
        self.over = False
        self._ours = ours
        self._failure: CatalogError | None = None
        # A connection serves one task at a time; its users may well be several.
        self._turn = asyncio.Lock()

    def forbid_nested_write(self) -> None:
        """It is the caller's own transaction that this one works in."""

    def require_whole(self) -> None:
        """Raise TransactionError where it is over, or a call has failed and it with that."""
        if self._home is not None:
            self._home.require()
        if self.over:
            raise TransactionError("this transaction is over: call the catalog it came from")
        if self._failure is not None:
            raise TransactionError(
                "an earlier call in this transaction failed, and nothing of it is kept: "
                "let its error out of the block, or make the call in a transaction() within it"
            ) from self._failure

    async def run(self, operation: Operation[Any, T]) -> T:
        def unit(connection: Connection) -> T:
            return operation.run_one(connection, operation.value)

        if not operation.writes:
            return await self.read(unit)
        if operation.exclusive:
            return await self.write_all(unit)
        if operation.run_many is not None:
            joint = Joint(operation.value, operation.run_one, operation.run_many)
            return await self.write(joint, operation.timeout_s)
        return await self.write(unit, operation.timeout_s)

    async def find(self, statement: PreparedStatement, values: Mapping[str, Any]) -> Sequence[Row]:
        return await self.read(lambda connection: statement.rows(connection, values))

    async def read(self, unit: Unit[T]) -> T:
        return await self._run(unit)

    async def write(self, unit: Unit[T], timeout_s: float | None = None) -> T:  # noqa: ARG002
        return await self._run(unit)

    async def write_all(self, unit: Unit[T]) -> T:
        async with self.transaction() as work:
            return await work.write(unit)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Executor]:
        """Everything inside is undone together, by a savepoint; the rest of the session is not."""
        savepoint = await self._part(self._held.savepoint)
        try:
            yield self
            self.require_whole()
        except BaseException:
            async with self._turn:
                await run_to_completion(self._undo(savepoint))
            raise
        await self._part(savepoint.commit)

    async def _undo(self, savepoint: Savepoint) -> None:
        """Go back to a savepoint; where that fails, what made it necessary is the error to tell."""
        try:
            await savepoint.rollback()
            whole = await self._held.is_whole()
        except CatalogError as error:
            self._failure = self._failure or error
        else:
            # SQLite undoes the whole transaction where it has no room left for a part of it.
            if whole:
                self._failure = None

    async def _run(self, unit: Unit[T]) -> T:
        def noting_failures(connection: Connection) -> T:
            try:
                return unit(connection)
            except (SQLAlchemyError, sqlite3.Error, OSError) as error:
                if self._ours:
                    self._failure = to_catalog_error(error, self._held.target)
                raise

        try:
            return await self._step(lambda: self._held.run(noting_failures))
        except CatalogBusyError as error:
            # Where it was stopped from outside the unit has seen no error of the database's.
            if self._ours:
                self._failure = self._failure or error
            raise

    async def _part(self, step: Callable[[], Awaitable[T]]) -> T:
        """Begin or keep a savepoint, which only the database can refuse."""
        try:
            return await self._step(step)
        except (CatalogClosedError, TransactionError, WrongLoopError):
            raise
        except CatalogError as error:
            if self._ours:
                self._failure = error
            raise

    async def _step(self, step: Callable[[], Awaitable[T]]) -> T:
        # Before the lock, which is of one loop as well.
        if self._home is not None:
            self._home.require()
        async with self._turn:
            self.require_whole()
            return await step()

    async def commit(self, commit: Callable[[], Awaitable[None]]) -> None:
        """End it well. Raises what `require_whole` raises."""
        await self._step(commit)

    async def leave(self, undo: Callable[[], Awaitable[None]]) -> None:
        """Undo what was not committed, however it was left; in a child of the process, nothing."""
        self.over = True
        if self._home is None or self._home.is_here:
            await run_to_completion(self._alone(undo))
        else:
            # What is forgotten is closed, and with it the parent's end of the connection.
            _of_the_parent.append(self)

    async def abandon(self, undo: Callable[[], Awaitable[None]]) -> None:
        """Undo it, because its catalog is closed: whoever has it is told so by his next call."""
        if self._home is not None:
            self._home.is_closed = True
        await self._alone(undo)

    async def _alone(self, step: Callable[[], Awaitable[None]]) -> None:
        async with self._turn:
            await step()
