"""Runs operations on a host's own sessions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from functools import partial
from typing import Any, TypeAlias, TypeVar

from sqlalchemy import Connection, StaticPool
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker

from model_catalog.concurrency.completion import hold_cancellation
from model_catalog.concurrency.context_managers import inner_contextmanager
from model_catalog.concurrency.forks import separate_in_child
from model_catalog.concurrency.ownership import HostOwner, LoopOwner
from model_catalog.concurrency.retry import MIN_TIMEOUT_S, Backoff
from model_catalog.connection.database_info import driver_connection
from model_catalog.connection.engines import database_info
from model_catalog.connection.error_mapping import is_invalid_text, text_or_bytes
from model_catalog.connection.interruption.interruptible_run import InterruptibleRun
from model_catalog.connection.interruption.running import (
    TIMEOUT_TOLERANCE_S,
    driver_working,
    run_with_retries,
)
from model_catalog.connection.interruption.sqlite_forks import warn_if_inherited
from model_catalog.connection.postgresql.dropping import prepare_replacement
from model_catalog.connection.timeouts import (
    LOOKUP,
    WRITE,
    ensure_write_transaction,
    reads_without_locks,
    restore_driver_transaction,
    restore_timeout_on_checkin,
    set_timeouts,
)
from model_catalog.domain import validation
from model_catalog.errors import CatalogCorruptError
from model_catalog.execution.executor import (
    OTHER_CALL,
    OTHER_WRITER,
    Executor,
    Operation,
    forbid_nested_write,
    transaction_context,
)
from model_catalog.execution.postgres_executor import PostgresExecutor
from model_catalog.execution.session_binds import PlainFactory, find_bind
from model_catalog.execution.session_transaction import (
    SessionTransaction,
    grace_s,
    joined_transaction,
    tell_of_commit,
)
from model_catalog.execution.sqlite_threads.pooled_executor import (
    PooledExecutor,
    is_suitable_engine,
)
from model_catalog.execution.transaction import TransactionExecutor
from model_catalog.execution.turns import connection_turn, hold, write_lock

T = TypeVar("T")

BatchingExecutor: TypeAlias = PooledExecutor | PostgresExecutor


class SessionExecutor:
    """
    Runs operations on a host's session factory.

    It exists because a host has an engine and a pool already, which the catalog shall use. Each
    operation runs on a session and in a transaction of its own, because each session may have a
    database or a user of its own. Only if the sessions do nothing but connect to one engine, see
    PlainFactory, are the operations passed to a faster executor, which batches them.
    """

    def __init__(
        self,
        sessions: async_sessionmaker[AsyncSession],
        timeout_s: float,
        owner: LoopOwner | None = None,
    ) -> None:
        self._sessions = sessions
        self.timeout_s = validation.seconds("timeout_s", timeout_s)
        self._factory = PlainFactory(sessions)
        # A router may answer differently at each call. The lock of writes, and the facts about the
        # database, are those of the first answer.
        self._engine = self._factory.first_bind().engine
        # A host may use its catalog in one event loop after another. The executors of a loop refer
        # to it, so a WeakKeyDictionary would never drop one.
        self._batching: dict[asyncio.AbstractEventLoop, BatchingExecutor] = {}
        self._owner = owner or HostOwner(on_fork=self._on_fork)
        restore_timeout_on_checkin(self._engine)
        prepare_replacement(self._engine)
        self.database = database_info(self._engine)
        self._grace_s = grace_s(self.database.dialect)
        self._open_transactions: dict[TransactionExecutor, SessionTransaction] = {}
        self._has_connected = False

    def _on_fork(self) -> None:
        self._batching.clear()
        for file in self.database.files[:1]:
            warn_if_inherited(file, self.database.name)

    @property
    def is_in_transaction(self) -> bool:
        """Each operation has a transaction of its own, or shares one with others."""
        return False

    def forbid_nested_write(self) -> None:
        """Raise TransactionError in a task that has a transaction of this engine open."""
        forbid_nested_write(self._engine)

    def run(self, operation: Operation[Any, T]) -> Coroutine[Any, Any, T]:
        """Run an operation in a transaction; writes to SQLite run one at a time."""
        # Not a coroutine itself: one more would take 1 us in each call.
        batching = self._batching_executor()
        if batching is None or not batching.is_suitable:
            return self._run_in_session(operation)
        return batching.run(operation)

    def _batching_executor(self) -> BatchingExecutor | None:
        """Return the faster executor of this loop, if the factory allows it now."""
        engine = self._factory.find_engine()
        # The first connection tells the name of the file, which the faster executor needs.
        if engine is None or not (self.database.knows_files or self._has_connected):
            return None
        self._owner.check_usable()
        loop = asyncio.get_running_loop()
        executor = self._batching.get(loop)
        if executor is None:
            separate_in_child(loop)
            executor = self._make_batching_executor(engine)
            if executor is not None:
                for closed in [each for each in self._batching if each.is_closed()]:
                    del self._batching[closed]
                self._batching[loop] = executor
        return executor

    def _make_batching_executor(self, engine: AsyncEngine) -> BatchingExecutor | None:
        if self._shares_connection:
            return None
        if self.database.dialect == "postgresql":
            return PostgresExecutor(engine, self.timeout_s, self._owner)
        if not is_suitable_engine(engine):
            return None
        return PooledExecutor(
            engine,
            self.database.name,
            self.timeout_s,
            self._owner,
            write_lock=write_lock(self._engine),
            run_in_session=self._run_in_session,
        )

    async def _run_in_session(self, operation: Operation[Any, T]) -> T:
        """Run an operation on a session, and in a transaction, of its own."""
        timeout_s = self.timeout_s if operation.timeout_s is None else operation.timeout_s
        self._owner.check_usable()
        session = self._sessions()
        bind = find_bind(session, writes=operation.writes)
        async with connection_turn(bind.connection, self.database.name, timeout_s):
            host_connection = bind.joined
            if host_connection is not None:
                async with joined_transaction(session, host_connection, timeout_s) as executor:
                    return await executor.run(operation)
            backoff = Backoff(timeout_s)
            with self._owner.active_call():
                if not (operation.writes or self._shares_connection):
                    return await self._run_with_retries(operation, backoff)
                async with self._write_turn(backoff):
                    return await self._run_with_retries(operation, backoff)

    async def _run_with_retries(self, operation: Operation[Any, T], backoff: Backoff) -> T:
        try:
            return await self._retry(operation, backoff, tolerant=False)
        except CatalogCorruptError as error:
            if not is_invalid_text(error):
                raise
        return await self._retry(operation, backoff, tolerant=True)

    async def _retry(self, operation: Operation[Any, T], backoff: Backoff, *, tolerant: bool) -> T:
        """Run an operation; if `tolerant`, texts of SQLite that are not UTF-8 are read as bytes."""
        with driver_working(self.database.dialect):
            return await run_with_retries(
                lambda run, lock_wait_s: self._run_once(
                    operation, run, backoff, lock_wait_s, tolerant=tolerant
                ),
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
        *,
        tolerant: bool,
    ) -> T:
        """Run an operation once. A statement of it gets the remaining time of the call."""
        with run:
            async with self._sessions() as session:
                connection = await self._begin(
                    session,
                    run,
                    backoff.remaining_s,
                    lock_wait_s,
                    writes=operation.writes,
                    is_lookup=operation.single_statement,
                )
                self._has_connected = True
                begun_s = backoff.remaining_s
                try:
                    run_one = partial(_read_bytes, operation) if tolerant else operation.run_one
                    result = await connection.run_sync(run_one, operation.value)
                    remaining_s = backoff.remaining_s
                    if begun_s - remaining_s > TIMEOUT_TOLERANCE_S:
                        await set_timeouts(connection, lock_wait_s, max(remaining_s, MIN_TIMEOUT_S))
                    if operation.writes:
                        tell_of_commit(run, session, operation.on_commit, result)
                    else:
                        run.mark_read_done()
                    await hold_cancellation(session.commit())
                except Exception:
                    await restore_driver_transaction(connection)
                    raise
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
        is_lookup: bool = False,
    ) -> AsyncConnection:
        """
        Begin a transaction of a session, and limit its lock waits and statements in time.

        If the pooled connection is dead, a new one takes its place, as in `begin_transaction`.
        """
        begin = partial(
            self._begin_once,
            session,
            run,
            max(statement_timeout_s, MIN_TIMEOUT_S),
            lock_wait_s,
            writes=writes,
            is_lookup=is_lookup,
        )
        try:
            return await begin()
        except BaseException as error:
            if not run.reconnects_after(error):
                raise
        await session.invalidate()
        return await begin()

    async def _begin_once(
        self,
        session: AsyncSession,
        run: InterruptibleRun,
        statement_timeout_s: float,
        lock_wait_s: float,
        *,
        writes: bool,
        is_lookup: bool = False,
    ) -> AsyncConnection:
        bind = find_bind(session, writes=writes)
        restore_timeout_on_checkin(bind.engine)
        prepare_replacement(bind.engine)
        # The options of a connection would outlive the session.
        options: dict[str, object] = {}
        if bind.connection is None:
            options = {WRITE: writes, LOOKUP: is_lookup}
        if self.database.dialect == "postgresql" and writes:
            # The host may have set AUTOCOMMIT, in which nothing can be rolled back.
            if bind.connection is None:
                options["isolation_level"] = "READ COMMITTED"
            else:
                bind.require_transactions()
        await session.begin()
        connecting = session.connection(bind.arguments, execution_options=options)
        connection = await hold_cancellation(connecting)
        run.set_connection(connection)
        if writes:
            await ensure_write_transaction(connection)
        if not (is_lookup and await reads_without_locks(connection)):
            await set_timeouts(connection, lock_wait_s, statement_timeout_s)
        run.mark_answered()
        return connection

    @inner_contextmanager
    async def transaction(self) -> AsyncIterator[Executor]:
        """Open a transaction that can write; on SQLite it holds the write lock until its end."""
        self._owner.check_usable()
        session = self._sessions()
        bind = find_bind(session, writes=True)
        async with connection_turn(bind.connection, self.database.name, self.timeout_s):
            host_connection = bind.joined
            async with (
                self._own_transaction()
                if host_connection is None
                else joined_transaction(session, host_connection, self.timeout_s)
            ) as executor:
                yield executor

    @inner_contextmanager
    async def _own_transaction(self) -> AsyncIterator[Executor]:
        backoff = Backoff(self.timeout_s)
        async with self._write_turn(backoff):
            session = self._sessions()
            backend = SessionTransaction(session, self.timeout_s)
            with self._owner.active_call(), driver_working(self.database.dialect):
                try:
                    backend.connection = await self._begin_with_retries(session, backoff)
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

    async def _begin_with_retries(self, session: AsyncSession, backoff: Backoff) -> AsyncConnection:
        async def attempt(run: InterruptibleRun, _lock_wait_s: float) -> AsyncConnection:
            # Later statements cannot be repeated, so each waits for the whole timeout.
            timeouts_s = (self.timeout_s, self.timeout_s)
            with run:
                try:
                    return await self._begin(session, run, *timeouts_s, writes=True)
                except BaseException:
                    await session.close()
                    raise
            return run.result  # type: ignore[no-any-return]

        return await run_with_retries(
            attempt, backoff, self.database.name, self._grace_s, writes=True
        )

    async def close(self) -> None:
        """Wait for calls in progress, and roll back the transactions that are open."""
        await self._owner.wait_idle()
        for batching in self._batching.values():
            await batching.close()
        for executor, backend in list(self._open_transactions.items()):
            await executor.end_early(backend.close)

    @inner_contextmanager
    async def _write_turn(self, backoff: Backoff) -> AsyncIterator[None]:
        """
        Hold the write lock of SQLite's engine in this loop; PostgreSQL needs none.

        If all tasks share one connection, it is the lock of that connection, which reads hold too.
        """
        self.forbid_nested_write()
        shares_connection = self._shares_connection
        if self.database.dialect != "sqlite" and not shares_connection:
            yield
            return
        reason = OTHER_CALL if shares_connection else OTHER_WRITER
        lock = write_lock(self._engine)
        async with hold(lock, self.database.name, reason, backoff.remaining_s):
            yield

    @property
    def _shares_connection(self) -> bool:
        """
        Whether all tasks share one connection, as in a database in memory.

        The rollback that ends a read would then undo the writes of another task.
        """
        return isinstance(self._engine.pool, StaticPool)


def _read_bytes(operation: Operation[Any, T], connection: Connection, value: object) -> T:
    """Run an operation, and read texts of SQLite that are not UTF-8 as bytes."""
    driver = driver_connection(connection)
    host_factory, driver.text_factory = driver.text_factory, text_or_bytes
    try:
        return operation.run_one(connection, value)
    finally:
        driver.text_factory = host_factory
