"""Units of work on a host's sessions, or on one of them: each in a transaction, in its turn."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from typing import Any, Final, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncSession,
    AsyncSessionTransaction,
    async_sessionmaker,
)

from model_catalog.concurrency.completion import MIN_TIMEOUT_S, Backoff, run_to_completion
from model_catalog.concurrency.ownership import LoopOwner
from model_catalog.concurrency.threads import thread_working
from model_catalog.connection.engines import (
    WRITE,
    abandon_pool_after_fork,
    database_info,
)
from model_catalog.connection.error_mapping import map_errors
from model_catalog.connection.target import display_name
from model_catalog.connection.timeouts import (
    LOCK_WAIT_S,
    ensure_write_transaction,
    is_in_transaction,
    restore_timeout_on_checkin,
    set_timeouts,
    use_commit_timeout,
)
from model_catalog.domain import validation
from model_catalog.errors import CatalogBusyError
from model_catalog.execution.executor import (
    Executor,
    Joint,
    Operation,
    Unit,
    forbid_nested_write,
    transaction_context,
)
from model_catalog.execution.interruption import InterruptibleRun
from model_catalog.execution.prepared_statement import PreparedStatement, Row
from model_catalog.execution.transaction import Savepoint, TransactionExecutor
from model_catalog.mapping.tables import Model

T = TypeVar("T")

# A host may give each of its mappings a database of its own.
_BIND: Final[dict[str, Any]] = {"mapper": Model.__mapper__}

# For as long as that a cancelled call may be held up by a lock in the server.
_MAX_LOCK_WAIT_S: Final = 2.0

# A call is that much late before anybody minds.
_TOLERANCE_S: Final = 0.05

# SQLite has one writer. Queueing for it here is fair and can be cancelled; queueing in SQLite's
# own busy handler blocks a thread, and lets the luckiest go first.
# A lock is of one loop, and an engine may be used in one after another.
_WriteLocks: TypeAlias = WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock]
_write_locks: WeakKeyDictionary[Engine, _WriteLocks] = WeakKeyDictionary()


class SessionExecutor:
    """Every unit is a transaction of its own, on a session from the factory."""

    def __init__(
        self,
        sessions: async_sessionmaker[AsyncSession],
        timeout_s: float,
        home: LoopOwner | None = None,
    ) -> None:
        self._sessions = sessions
        self.timeout_s = validation.seconds("timeout_s", timeout_s)
        self._home = home
        self._process = os.getpid()
        self._engine = _engine_of(sessions())
        restore_timeout_on_checkin(self._engine)
        self._target = display_name(self._engine.url)
        self.database = database_info(self._engine)
        self._grace_s = _grace_s(self.database.dialect)
        self._open: dict[TransactionExecutor, SessionTransaction] = {}

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
        with self._call():
            return await self._run(unit, Backoff(self.timeout_s), writes=False)

    async def write(self, unit: Unit[T], timeout_s: float | None = None) -> T:
        patience = Backoff(self.timeout_s if timeout_s is None else timeout_s)
        with self._call():
            async with self._turn(patience):
                return await self._run(unit, patience, writes=True)

    async def write_all(self, unit: Unit[T]) -> T:
        return await self.write(unit)

    def forbid_nested_write(self) -> None:
        forbid_nested_write(self._engine)

    async def _run(self, unit: Unit[T], patience: Backoff, *, writes: bool) -> T:
        lock_wait_s = LOCK_WAIT_S
        while True:
            try:
                return await self._try(
                    unit, patience, InterruptibleRun(self._target), lock_wait_s, writes=writes
                )
            except CatalogBusyError as error:
                await patience.after(error)
                # Whoever takes rows one by one and always gives up first never has them all.
                lock_wait_s = min(2 * lock_wait_s, _MAX_LOCK_WAIT_S)

    async def _try(
        self,
        unit: Unit[T],
        patience: Backoff,
        attempt: InterruptibleRun,
        lock_wait_s: float = LOCK_WAIT_S,
        *,
        writes: bool,
        most_s: float = math.inf,
    ) -> T:
        """Run a unit once, no statement of it for longer than the call may, nor than `most_s`."""

        async def once() -> T:
            async with self._sessions() as session:
                left_s = min(patience.left_s, most_s)
                connection = await self._begin(session, attempt, left_s, lock_wait_s, writes=writes)
                begun_s = patience.left_s
                result = await connection.run_sync(unit)
                if begun_s - patience.left_s > _TOLERANCE_S:
                    # The commit has only what is left of the call.
                    await set_timeouts(connection, lock_wait_s, max(patience.left_s, MIN_TIMEOUT_S))
                if writes:
                    attempt.commits(session, result)
                else:
                    attempt.has_read()
                await session.commit()
                return result

        return await run_to_completion(
            attempt.run(once),
            None if writes else attempt.stop_reading,
            late_after_s=max(patience.left_s, MIN_TIMEOUT_S) + self._grace_s,
            on_late=attempt.stop,
        )

    async def _begin(
        self,
        session: AsyncSession,
        attempt: InterruptibleRun,
        statement_s: float,
        lock_wait_s: float,
        *,
        writes: bool,
    ) -> AsyncConnection:
        """
        Begin a transaction in which no statement takes longer than it may.

        A connection that the server has dropped meanwhile is found out by its first statement, and
        another one takes its place: nothing was asked of it yet but to begin. To ask it first
        whether it is there would be as many round trips again.
        """
        try:
            return await self._begin_once(session, attempt, statement_s, lock_wait_s, writes=writes)
        except DBAPIError as error:
            if self._home is None or not error.connection_invalidated:
                raise
        await session.invalidate()
        attempt.works_on(None)
        return await self._begin_once(session, attempt, statement_s, lock_wait_s, writes=writes)

    async def _begin_once(
        self,
        session: AsyncSession,
        attempt: InterruptibleRun,
        statement_s: float,
        lock_wait_s: float,
        *,
        writes: bool,
    ) -> AsyncConnection:
        options: dict[str, object] = {WRITE: writes}
        if self.database.dialect == "postgresql" and writes:
            # A host may have set AUTOCOMMIT, in which nothing is undone.
            options["isolation_level"] = "READ COMMITTED"
        await session.begin()
        connection = await session.connection(_BIND, execution_options=options)
        attempt.works_on(connection)
        if writes:
            await ensure_write_transaction(connection)
        await set_timeouts(connection, lock_wait_s, max(statement_s, MIN_TIMEOUT_S))
        return connection

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Executor]:
        patience = Backoff(self.timeout_s)
        self._require_here()
        async with self._turn(patience):
            session = self._sessions()
            held = SessionTransaction(session, self.timeout_s)
            with self._call():
                try:
                    await self._begin_patiently(session, patience)
                    if self._home is not None:
                        self._home.require()
                except BaseException:
                    # It may have begun all the same: a cancellation is delivered afterwards.
                    await held.close()
                    raise
            shared = TransactionExecutor(held, LoopOwner(self._target), ours=True)
            self._open[shared] = held
            try:
                with transaction_context(self._engine):
                    yield shared
                    await shared.commit(held.commit)
            finally:
                # Rolls back whatever was not committed.
                await shared.leave(held.close)
                self._open.pop(shared, None)

    async def close(self) -> None:
        """Undo transactions that are open, and let what else was asked for come to its end."""
        if self._home is not None:
            await self._home.until_quiet()
        for shared, held in list(self._open.items()):
            await shared.abandon(held.close)

    async def _begin_patiently(self, session: AsyncSession, patience: Backoff) -> None:
        while True:
            attempt = InterruptibleRun(self._target)

            async def once(attempt: InterruptibleRun = attempt) -> None:
                try:
                    # What comes after cannot be tried again from the start.
                    await self._begin(session, attempt, self.timeout_s, self.timeout_s, writes=True)
                except BaseException:
                    await session.close()
                    raise

            try:
                await run_to_completion(
                    attempt.run(once),
                    late_after_s=max(patience.left_s, MIN_TIMEOUT_S) + self._grace_s,
                    on_late=attempt.stop,
                )
            except CatalogBusyError as error:
                await patience.after(error)
            else:
                return

    @contextmanager
    def _call(self) -> Iterator[None]:
        self._require_here()
        with (
            nullcontext() if self._home is None else self._home.call(),
            _thread_working_if_sqlite(self.database.dialect),
        ):
            yield

    def _require_here(self) -> None:
        if self._home is not None:
            self._home.require()
        if os.getpid() != self._process:
            abandon_pool_after_fork(self._engine)
            self._process = os.getpid()

    @asynccontextmanager
    async def _turn(self, patience: Backoff) -> AsyncIterator[None]:
        self.forbid_nested_write()
        if self.database.dialect != "sqlite":
            yield
            return
        turns = _write_locks.setdefault(self._engine, WeakKeyDictionary())
        turn = turns.setdefault(asyncio.get_running_loop(), asyncio.Lock())
        try:
            async with asyncio.timeout(patience.left_s):
                await turn.acquire()
        except TimeoutError as error:
            raise CatalogBusyError(
                self._target, "another task of this process is writing", self.timeout_s
            ) from error
        try:
            yield
        finally:
            turn.release()


class SessionTransaction:
    """The connection of a session that has a transaction open."""

    def __init__(self, session: AsyncSession, timeout_s: float) -> None:
        self._session = session
        self.timeout_s = validation.seconds("timeout_s", timeout_s)
        engine = _engine_of(session)
        restore_timeout_on_checkin(engine)
        self.target = display_name(engine.url)
        self.database = database_info(engine)

    async def run(self, unit: Unit[T]) -> T:
        async def step(connection: AsyncConnection) -> T:
            return await connection.run_sync(unit)

        return await self._run(step)

    async def savepoint(self) -> Savepoint:
        async def step(connection: AsyncConnection) -> AsyncSessionTransaction:
            # To sqlite3 a SAVEPOINT is no reason to begin: releasing it would then commit.
            await ensure_write_transaction(connection)
            return await self._session.begin_nested()

        return _Savepoint(self, await self._run(step))

    async def finish(self, end: Callable[[], Awaitable[None]]) -> None:
        """End a savepoint."""

        async def step(_connection: AsyncConnection) -> None:
            await end()

        await self._run(step)

    async def is_whole(self) -> bool:
        return await self._run(is_in_transaction)

    async def commit(self) -> None:
        """End the transaction well."""

        async def step(connection: AsyncConnection) -> None:
            await connection.run_sync(use_commit_timeout, self.timeout_s)
            await self._session.commit()

        await self._run(step, commits=True)

    async def close(self) -> None:
        """Give the connection back, and undo what was not committed."""
        await run_to_completion(InterruptibleRun(self.target).run(self._session.close))

    async def _run(
        self, step: Callable[[AsyncConnection], Awaitable[T]], *, commits: bool = False
    ) -> T:
        attempt = InterruptibleRun(self.target)

        async def once() -> T:
            session = self._session
            if session.autoflush and (session.new or session.dirty or session.deleted):
                # Only the ORM's own statements flush first. What the host has added and not yet
                # flushed is to be found by the next.
                await session.flush()
            connection = await session.connection(_BIND)
            attempt.works_on(connection)
            if commits:
                attempt.commits(session)
            return await step(connection)

        start = time.monotonic()
        late_after_s = max(self.timeout_s, MIN_TIMEOUT_S) + _grace_s(self.database.dialect)
        try:
            with _thread_working_if_sqlite(self.database.dialect):
                return await run_to_completion(
                    attempt.run(once), late_after_s=late_after_s, on_late=attempt.stop
                )
        except CatalogBusyError as error:
            waited_s = time.monotonic() - start
            raise CatalogBusyError(error.target, error.reason, waited_s) from error


class _Savepoint:
    def __init__(self, connection: SessionTransaction, nested: AsyncSessionTransaction) -> None:
        self._connection = connection
        self._nested = nested

    async def commit(self) -> None:
        await self._connection.finish(self._nested.commit)

    async def rollback(self) -> None:
        await self._connection.finish(self._nested.rollback)


def _thread_working_if_sqlite(dialect: str) -> AbstractContextManager[None]:
    """A block in which a driver is waited for: SQLite's works in a thread."""
    return thread_working() if dialect == "sqlite" else nullcontext()


def _grace_s(dialect: str) -> float:
    """How long a server may take to end a statement itself, before its driver is cancelled."""
    return 0.08 if dialect == "postgresql" else 0.0


def _engine_of(session: AsyncSession) -> Engine:
    with map_errors("the host's session"):
        return session.get_bind(Model).engine
