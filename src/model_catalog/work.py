"""How a unit of work runs: in one transaction, to its end, in its turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction, async_sessionmaker

from model_catalog.engine import (
    LOCK_WAIT_S,
    WRITE,
    begin_writing,
    enforces_references,
    files_of,
    limit_lock_wait,
)
from model_catalog.errors import CatalogBusyError, TransactionError
from model_catalog.faults import translated
from model_catalog.model import Model
from model_catalog.target import name_of
from model_catalog.waiting import patiently, to_its_end

T = TypeVar("T")

Unit: TypeAlias = Callable[[AsyncSession], Awaitable[T]]
"""What is to be done with a session in a transaction; it may be done again from the start."""


class Work(Protocol):
    """Somewhere a unit of work can run."""

    dialect: str
    """The name of its database: `sqlite` or `postgresql`."""
    cascades: bool
    """Whether the database itself removes what refers to a row that is removed."""
    files: tuple[Path, ...]
    """The files of a SQLite database."""

    def ensure_outside(self) -> None:
        """Raise TransactionError where a write would wait for the caller's own transaction."""

    async def read(self, unit: Unit[T]) -> T:
        """Run a unit that only reads."""

    async def write(self, unit: Unit[T]) -> T:
        """Run a unit that writes."""

    def transaction(self) -> AbstractAsyncContextManager[Work]:
        """One transaction for everything that is run in the Work it yields."""


# A host may give each of its mappings a database of its own.
_BIND: Final = {"mapper": Model.__mapper__}


class _Open:
    """That a transaction is open: known to the tasks that began inside it, and to nobody else."""

    def __init__(self, engine: Engine) -> None:
        self.engine: Engine | None = engine


_inside: ContextVar[tuple[_Open, ...]] = ContextVar("model_catalog_inside", default=())

# SQLite has one writer. Queueing for it here is fair and can be cancelled; queueing in SQLite's
# own busy handler blocks a thread, and lets the luckiest go first.
_turns: WeakKeyDictionary[Engine, asyncio.Lock] = WeakKeyDictionary()


class OwnTransactions:
    """Every unit is a transaction of its own, on a session from the factory."""

    def __init__(self, sessions: async_sessionmaker[AsyncSession], timeout_s: float) -> None:
        self._sessions = sessions
        self._timeout_s = timeout_s
        self._engine = sessions().get_bind(Model).engine
        self._target = name_of(self._engine.url)
        self.dialect = self._engine.dialect.name
        self.cascades = enforces_references(self._engine)
        self.files = files_of(self._engine)

    async def read(self, unit: Unit[T]) -> T:
        return await self._run(unit, writes=False)

    async def write(self, unit: Unit[T]) -> T:
        async with self._turn():
            return await self._run(unit, writes=True)

    async def _run(self, unit: Unit[T], *, writes: bool) -> T:
        async def once() -> T:
            with translated(self._target):
                async with self._sessions() as session:
                    await session.begin()
                    if writes:
                        await self._begin_writing(session, LOCK_WAIT_S)
                    result = await unit(session)
                    await session.commit()
                    return result

        return await patiently(once, self._timeout_s)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Work]:
        async with self._turn():
            session = self._sessions()
            shared = SharedTransaction(session)
            here = _Open(self._engine)
            try:
                await self._begin_patiently(session)
                _inside.set((*(outer for outer in _inside.get() if outer.engine), here))
                yield shared
                await to_its_end(_translated(session.commit(), self._target))
            finally:
                here.engine = None
                shared.over = True
                # Rolls back whatever was not committed.
                await to_its_end(_translated(session.close(), self._target))

    async def _begin_patiently(self, session: AsyncSession) -> None:
        async def once() -> None:
            try:
                with translated(self._target):
                    await session.begin()
                    # What comes after cannot be tried again from the start.
                    await self._begin_writing(session, self._timeout_s)
            except BaseException:
                await session.close()
                raise

        await patiently(once, self._timeout_s)

    async def _begin_writing(self, session: AsyncSession, lock_wait_s: float) -> None:
        connection = await session.connection(_BIND, execution_options={WRITE: True})
        await begin_writing(connection)
        await limit_lock_wait(connection, lock_wait_s)

    def ensure_outside(self) -> None:
        if any(outer.engine is self._engine for outer in _inside.get()):
            raise TransactionError(
                "this task has a transaction open, which the call would wait for: "
                "call the catalog that transaction() gave"
            )

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        self.ensure_outside()
        if self.dialect != "sqlite":
            yield
            return
        turn = _turns.setdefault(self._engine, asyncio.Lock())
        try:
            async with asyncio.timeout(self._timeout_s):
                await turn.acquire()
        except TimeoutError as error:
            raise CatalogBusyError(
                self._target, "another task of this process is writing", self._timeout_s
            ) from error
        try:
            yield
        finally:
            turn.release()


async def _translated(step: Coroutine[Any, Any, T], target: str) -> T:
    with translated(target):
        return await step


class SharedTransaction:
    """Every unit is part of the transaction of one session, which somebody else ends."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session
        engine = session.get_bind(Model).engine
        self._target = name_of(engine.url)
        self.dialect = engine.dialect.name
        self.cascades = enforces_references(engine)
        self.files = files_of(engine)
        self.over = False
        # A session serves one task at a time; its users may well be several.
        self._turn = asyncio.Lock()

    def ensure_outside(self) -> None:
        """It is the caller's own transaction that this one works in."""

    async def read(self, unit: Unit[T]) -> T:
        return await self._run(unit)

    async def write(self, unit: Unit[T]) -> T:
        return await self._run(unit)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Work]:
        """Everything inside is undone together, by a savepoint; the rest of the session is not."""

        async def begin(session: AsyncSession) -> AsyncSessionTransaction:
            # To sqlite3 a SAVEPOINT is no reason to begin: releasing it would then commit.
            await begin_writing(await session.connection(_BIND))
            return await session.begin_nested()

        savepoint = await self._run(begin)
        try:
            yield self
        except BaseException:
            await self._run(lambda _: savepoint.rollback())
            raise
        await self._run(lambda _: savepoint.commit())

    async def _run(self, unit: Unit[T]) -> T:
        async def once() -> T:
            with translated(self._target):
                session = self._session
                if session.autoflush and (session.new or session.dirty or session.deleted):
                    # Only the ORM's own statements flush first. What the host has added and not
                    # yet flushed is to be found by the next.
                    await session.flush()
                return await unit(session)

        if self.over:
            raise TransactionError("this transaction is over: call the catalog it came from")
        async with self._turn:
            return await to_its_end(once())
