"""Runs operations on a host's own sessions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncSession,
    AsyncSessionTransaction,
    async_sessionmaker,
)

from model_catalog.concurrency.completion import run_to_completion
from model_catalog.concurrency.ownership import HostOwner, LoopOwner
from model_catalog.concurrency.retry import MIN_TIMEOUT_S, Backoff
from model_catalog.connection.engines import WRITE, abandon_pool_after_fork, database_info
from model_catalog.connection.timeouts import (
    ensure_write_transaction,
    is_in_transaction,
    restore_timeout_on_checkin,
    set_timeouts,
    use_commit_timeout,
)
from model_catalog.domain import validation
from model_catalog.errors import CatalogBusyError
from model_catalog.execution.executor import (
    OTHER_WRITER,
    Executor,
    Operation,
    forbid_nested_write,
    transaction_context,
)
from model_catalog.execution.interruption import (
    SERVER_GRACE_S,
    TIMEOUT_TOLERANCE_S,
    InterruptibleRun,
    driver_working,
    run_in_open_transaction,
    run_with_retries,
)
from model_catalog.execution.session_binds import find_bind, find_first_bind, new_session
from model_catalog.execution.transaction import Savepoint, TransactionExecutor

I = TypeVar("I")  # noqa: E741 - an item
T = TypeVar("T")

# SQLite has one writer. A queue in the process is fair, and a wait in it can be cancelled. SQLite's
# own busy handler blocks a thread, and serves waiting writers at random.
# A lock belongs to one event loop, and an engine may be used in one loop after another.
_WriteLocks: TypeAlias = WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock]
_write_locks: WeakKeyDictionary[Engine, _WriteLocks] = WeakKeyDictionary()


class SessionExecutor:
    """
    Runs each operation in a transaction of its own, on a session from a host's session factory.

    It exists because a host has an engine and a pool already, which the catalog shall use. It does
    not batch operations: each session may have a database or a user of its own.
    """

    def __init__(
        self,
        sessions: async_sessionmaker[AsyncSession],
        timeout_s: float,
        owner: LoopOwner | None = None,
    ) -> None:
        self._sessions = sessions
        self.timeout_s = validation.seconds("timeout_s", timeout_s)
        # A router may answer differently at each call. The lock of writes, and the facts about the
        # database, are those of the first answer.
        self._engine = find_first_bind(new_session(sessions)).engine
        self._owner = owner or HostOwner(on_fork=lambda: abandon_pool_after_fork(self._engine))
        self._reconnects = owner is not None
        restore_timeout_on_checkin(self._engine)
        self.database = database_info(self._engine)
        self._grace_s = _grace_s(self.database.dialect)
        self._open_transactions: dict[TransactionExecutor, SessionTransaction] = {}

    def forbid_nested_write(self) -> None:
        """Raise TransactionError in a task that has a transaction of this engine open."""
        forbid_nested_write(self._engine)

    async def run(self, operation: Operation[Any, T]) -> T:
        """Run an operation in a transaction of its own; writes to SQLite run one at a time."""
        timeout_s = self.timeout_s if operation.timeout_s is None else operation.timeout_s
        backoff = Backoff(timeout_s)
        with self._owner.active_call(), driver_working(self.database.dialect):
            if not operation.writes:
                return await self._run_with_retries(operation, backoff)
            async with self._write_lock(backoff):
                return await self._run_with_retries(operation, backoff)

    async def _run_with_retries(self, operation: Operation[Any, T], backoff: Backoff) -> T:
        return await run_with_retries(
            lambda run, lock_wait_s: self._run_once(operation, run, backoff, lock_wait_s),
            backoff,
            self.database.name,
            self._grace_s,
            writes=operation.writes,
        )

    async def _run_once(
        self,
        operation: Operation[Any, T],
        run: InterruptibleRun,
        backoff: Backoff,
        lock_wait_s: float,
    ) -> T:
        """Run an operation once. A statement of it gets the remaining time of the call."""
        with run:
            async with self._sessions() as session:
                connection = await self._begin(
                    session, run, backoff.remaining_s, lock_wait_s, writes=operation.writes
                )
                begun_s = backoff.remaining_s
                result = await connection.run_sync(operation.run_one, operation.value)
                remaining_s = backoff.remaining_s
                if begun_s - remaining_s > TIMEOUT_TOLERANCE_S:
                    await set_timeouts(connection, lock_wait_s, max(remaining_s, MIN_TIMEOUT_S))
                if operation.writes:
                    _commits(run, session, result)
                else:
                    run.mark_read_done()
                await session.commit()
            return result
        return run.result  # type: ignore[no-any-return]

    async def _begin(
        self,
        session: AsyncSession,
        run: InterruptibleRun,
        statement_timeout_s: float,
        lock_wait_s: float,
        *,
        writes: bool,
    ) -> AsyncConnection:
        """
        Begin a transaction of a session, and limit its lock waits and statements in time.

        If the server has dropped the pooled connection meanwhile, a catalog of `open_catalog` takes
        a new one, as in `begin_transaction`. A catalog over a host's session factory raises the
        error.
        """
        timeouts_s = (max(statement_timeout_s, MIN_TIMEOUT_S), lock_wait_s)
        try:
            return await self._begin_once(session, run, *timeouts_s, writes=writes)
        except DBAPIError as error:
            if not (self._reconnects and error.connection_invalidated):
                raise
        await session.invalidate()
        run.set_connection(None)
        return await self._begin_once(session, run, *timeouts_s, writes=writes)

    async def _begin_once(
        self,
        session: AsyncSession,
        run: InterruptibleRun,
        statement_timeout_s: float,
        lock_wait_s: float,
        *,
        writes: bool,
    ) -> AsyncConnection:
        options: dict[str, object] = {WRITE: writes}
        if self.database.dialect == "postgresql" and writes:
            # The host may have set AUTOCOMMIT, in which nothing can be rolled back.
            options["isolation_level"] = "READ COMMITTED"
        bind = find_bind(session, writes=writes)
        restore_timeout_on_checkin(bind.engine)
        await session.begin()
        connection = await session.connection(bind.arguments, execution_options=options)
        run.set_connection(connection)
        if writes:
            await ensure_write_transaction(connection)
        await set_timeouts(connection, lock_wait_s, statement_timeout_s)
        return connection

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Executor]:
        """Open a transaction that can write; on SQLite it holds the write lock until its end."""
        backoff = Backoff(self.timeout_s)
        self._owner.check_usable()
        async with self._write_lock(backoff):
            session = self._sessions()
            backend = SessionTransaction(session, self.timeout_s)
            with self._owner.active_call(), driver_working(self.database.dialect):
                try:
                    await self._begin_with_retries(session, backoff)
                    self._owner.check_usable()
                except BaseException:
                    # The transaction may have begun: a cancellation is delivered after that.
                    await backend.close()
                    raise
            executor = TransactionExecutor(
                backend, LoopOwner(self.database.name), owns_transaction=True
            )
            self._open_transactions[executor] = backend
            try:
                with transaction_context(self._engine):
                    yield executor
                    await executor.commit(backend.commit)
            finally:
                await executor.end(backend.close)
                self._open_transactions.pop(executor, None)

    async def _begin_with_retries(self, session: AsyncSession, backoff: Backoff) -> None:
        async def attempt(run: InterruptibleRun, _lock_wait_s: float) -> None:
            with run:
                try:
                    # Later statements cannot be repeated, so each waits for the whole timeout.
                    await self._begin(session, run, self.timeout_s, self.timeout_s, writes=True)
                except BaseException:
                    await session.close()
                    raise

        await run_with_retries(attempt, backoff, self.database.name, self._grace_s, writes=True)

    async def close(self) -> None:
        """Wait for calls in progress, and roll back the transactions that are open."""
        await self._owner.wait_idle()
        for executor, backend in list(self._open_transactions.items()):
            await executor.end_early(backend.close)

    @asynccontextmanager
    async def _write_lock(self, backoff: Backoff) -> AsyncIterator[None]:
        """Hold the write lock of SQLite's engine in this loop; PostgreSQL needs none."""
        self.forbid_nested_write()
        if self.database.dialect != "sqlite":
            yield
            return
        locks = _write_locks.setdefault(self._engine, WeakKeyDictionary())
        lock = locks.setdefault(asyncio.get_running_loop(), asyncio.Lock())
        try:
            async with asyncio.timeout(backoff.remaining_s):
                await lock.acquire()
        except TimeoutError as error:
            raise CatalogBusyError(self.database.name, OTHER_WRITER, self.timeout_s) from error
        try:
            yield
        finally:
            lock.release()


class SessionTransaction:
    """The open transaction of a host's session; a `TransactionBackend`."""

    def __init__(self, session: AsyncSession, timeout_s: float) -> None:
        self._session = session
        self.timeout_s = validation.seconds("timeout_s", timeout_s)
        engine = find_first_bind(session).engine
        restore_timeout_on_checkin(engine)
        self.database = database_info(engine)

    async def run(self, function: Callable[[Connection, I], T], value: I) -> T:
        """Return what `function(connection, value)` returns."""
        return await self._run_step(lambda connection: connection.run_sync(function, value))

    async def savepoint(self) -> Savepoint:
        """Begin a savepoint of the session."""

        async def step(connection: AsyncConnection) -> AsyncSessionTransaction:
            # sqlite3 sends no BEGIN before a SAVEPOINT. Without one, RELEASE would commit.
            await ensure_write_transaction(connection)
            return await self._session.begin_nested()

        nested = await self._run_step(step)
        return Savepoint(
            commit=lambda: self._run_step(lambda _: nested.commit()),
            rollback=lambda: self._run_step(lambda _: nested.rollback()),
        )

    async def is_open(self) -> bool:
        """Return whether the database still has the transaction open."""
        return await self._run_step(is_in_transaction)

    async def commit(self) -> None:
        """Commit the transaction."""

        async def step(connection: AsyncConnection) -> None:
            await connection.run_sync(use_commit_timeout, self.timeout_s)
            await self._session.commit()

        await self._run_step(step, commits=True)

    async def close(self) -> None:
        """Roll back uncommitted changes, and return the connection to its pool."""

        async def step() -> None:
            with InterruptibleRun(self.database.name):
                await self._session.close()

        await run_to_completion(step())

    async def _run_step(
        self, step: Callable[[AsyncConnection], Awaitable[T]], *, commits: bool = False
    ) -> T:
        run = InterruptibleRun(self.database.name)

        async def attempt() -> T:
            session = self._session
            with run:
                if session.autoflush and (session.new or session.dirty or session.deleted):
                    # Only the ORM's own statements flush by themselves. The operation shall find
                    # what the host has added to the session.
                    await session.flush()
                # Reads go there too, because they shall find what the transaction has written.
                bind = find_bind(session, writes=True)
                connection = await session.connection(bind.arguments)
                run.set_connection(connection)
                if commits:
                    _commits(run, session)
                return await step(connection)
            return run.result  # type: ignore[no-any-return]

        dialect = self.database.dialect
        with driver_working(dialect):
            return await run_in_open_transaction(attempt(), run, self.timeout_s, _grace_s(dialect))


def _commits(run: InterruptibleRun, session: AsyncSession, result: object = None) -> None:
    """Tell a run that a session is about to commit, and have the session tell it of the commit."""
    run.mark_committing(result)
    # session.commit() also returns the connection to its pool, which may take a while. The event
    # comes before that.
    event.listen(session.sync_session, "after_commit", run.mark_committed, once=True)


def _grace_s(dialect: str) -> float:
    return SERVER_GRACE_S if dialect == "postgresql" else 0.0
