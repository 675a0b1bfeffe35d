"""How a unit of work runs: in one transaction, to its end, in its turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncSession,
    AsyncSessionTransaction,
    async_sessionmaker,
)

from model_catalog import rules
from model_catalog.engine import (
    LOCK_WAIT_S,
    WRITE,
    begin_writing,
    enforces_references,
    files_of,
    is_in_transaction,
    limit_lock_wait,
)
from model_catalog.errors import (
    CatalogBusyError,
    CatalogError,
    TransactionError,
)
from model_catalog.faults import meaning, translated
from model_catalog.model import Model
from model_catalog.target import name_of
from model_catalog.waiting import patiently, to_its_end

T = TypeVar("T")

Unit: TypeAlias = Callable[[Connection], T]
"""
What is to be done with a connection in a transaction; it may be done again from the start.

It is one synchronous step, whatever the driver: where it runs, and in how many steps of the event
loop, is not its affair.
"""


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

    async def write_all(self, unit: Unit[T]) -> T:
        """Run a unit of several writes, of which all are kept or none."""

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
# A lock is of one loop, and an engine may be used in one after another.
_Turns: TypeAlias = WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock]
_turns: WeakKeyDictionary[Engine, _Turns] = WeakKeyDictionary()


class OwnTransactions:
    """Every unit is a transaction of its own, on a session from the factory."""

    def __init__(self, sessions: async_sessionmaker[AsyncSession], timeout_s: float) -> None:
        self._sessions = sessions
        self._timeout_s = rules.seconds("timeout_s", timeout_s)
        self._engine = _engine_of(sessions())
        self._target = name_of(self._engine.url)
        self.dialect = self._engine.dialect.name
        self.cascades = enforces_references(self._engine)
        self.files = files_of(self._engine)

    async def read(self, unit: Unit[T]) -> T:
        return await self._run(unit, writes=False)

    async def write(self, unit: Unit[T]) -> T:
        async with self._turn():
            return await self._run(unit, writes=True)

    async def write_all(self, unit: Unit[T]) -> T:
        return await self.write(unit)

    async def _run(self, unit: Unit[T], *, writes: bool) -> T:
        async def once() -> T:
            with translated(self._target):
                async with self._sessions() as session:
                    connection = await self._begin(session, LOCK_WAIT_S, writes=writes)
                    result = await connection.run_sync(unit)
                    await session.commit()
                    return result

        return await patiently(once, self._timeout_s)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Work]:
        async with self._turn():
            session = self._sessions()
            shared = SharedTransaction(session, ours=True)
            here = _Open(self._engine)
            try:
                await self._begin_patiently(session)
                _inside.set((*(outer for outer in _inside.get() if outer.engine), here))
                yield shared
                shared.require_whole()
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
                    # What comes after cannot be tried again from the start.
                    await self._begin(session, self._timeout_s, writes=True)
            except BaseException:
                await session.close()
                raise

        await patiently(once, self._timeout_s)

    async def _begin(
        self, session: AsyncSession, lock_wait_s: float, *, writes: bool
    ) -> AsyncConnection:
        options: dict[str, object] = {WRITE: writes}
        if self.dialect == "postgresql" and writes:
            # A host may have set AUTOCOMMIT, in which nothing is undone.
            options["isolation_level"] = "READ COMMITTED"
        await session.begin()
        connection = await session.connection(_BIND, execution_options=options)
        if writes:
            await begin_writing(connection)
        await limit_lock_wait(connection, lock_wait_s)
        return connection

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
        turns = _turns.setdefault(self._engine, WeakKeyDictionary())
        turn = turns.setdefault(asyncio.get_running_loop(), asyncio.Lock())
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


def _engine_of(session: AsyncSession) -> Engine:
    with translated("the host's session"):
        return session.get_bind(Model).engine


async def _translated(step: Coroutine[Any, Any, T], target: str) -> T:
    with translated(target):
        return await step


class SharedTransaction:
    """
    Every unit is part of the transaction of one session, which somebody else ends.

    One that is `ours` ends with the first call that the database fails: PostgreSQL would undo at
    the commit what came before, and SQLite may have undone it already. A savepoint around that call
    saves the rest.
    """

    def __init__(self, session: AsyncSession, *, ours: bool = False) -> None:
        self._session = session
        engine = _engine_of(session)
        self._target = name_of(engine.url)
        self.dialect = engine.dialect.name
        self.cascades = enforces_references(engine)
        self.files = files_of(engine)
        self.over = False
        self._ours = ours
        self._failure: CatalogError | None = None
        # A session serves one task at a time; its users may well be several.
        self._turn = asyncio.Lock()

    def ensure_outside(self) -> None:
        """It is the caller's own transaction that this one works in."""

    def require_whole(self) -> None:
        """Raise TransactionError where a call has failed, and with it the transaction."""
        if self._failure is not None:
            raise TransactionError(
                "an earlier call in this transaction failed, and nothing of it is kept: "
                "let its error out of the block, or make the call in a transaction() within it"
            ) from self._failure

    async def read(self, unit: Unit[T]) -> T:
        return await self._run(unit)

    async def write(self, unit: Unit[T]) -> T:
        return await self._run(unit)

    async def write_all(self, unit: Unit[T]) -> T:
        async with self.transaction() as work:
            return await work.write(unit)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Work]:
        """Everything inside is undone together, by a savepoint; the rest of the session is not."""

        async def begin() -> AsyncSessionTransaction:
            # To sqlite3 a SAVEPOINT is no reason to begin: releasing it would then commit.
            await begin_writing(await self._session.connection(_BIND))
            return await self._session.begin_nested()

        savepoint = await self._step(begin)
        try:
            yield self
            self.require_whole()
        except BaseException:
            async with self._turn:
                await to_its_end(self._undo(savepoint))
            raise
        await self._step(savepoint.commit)

    async def _undo(self, savepoint: AsyncSessionTransaction) -> None:
        """Go back to a savepoint; where that fails, what made it necessary is the error to tell."""
        try:
            with translated(self._target):
                await savepoint.rollback()
                whole = await is_in_transaction(await self._session.connection(_BIND))
        except CatalogError as error:
            self._failure = self._failure or error
        else:
            # SQLite undoes the whole transaction where it has no room left for a part of it.
            if whole:
                self._failure = None

    async def _run(self, unit: Unit[T]) -> T:
        async def run() -> T:
            return await (await self._session.connection(_BIND)).run_sync(unit)

        return await self._step(run)

    async def _step(self, step: Callable[[], Awaitable[T]]) -> T:
        async def once() -> T:
            with translated(self._target):
                session = self._session
                if session.autoflush and (session.new or session.dirty or session.deleted):
                    # Only the ORM's own statements flush first. What the host has added and not
                    # yet flushed is to be found by the next.
                    await session.flush()
                try:
                    return await step()
                except (SQLAlchemyError, OSError) as error:
                    if self._ours:
                        self._failure = meaning(error, self._target)
                    raise

        if self.over:
            raise TransactionError("this transaction is over: call the catalog it came from")
        async with self._turn:
            self.require_whole()
            return await to_its_end(once())
