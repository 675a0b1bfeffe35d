"""Runs operations on an engine for PostgreSQL, with batching."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util import greenlet_spawn

from model_catalog.concurrency.batching import Coalescer
from model_catalog.concurrency.completion import hold_cancellation
from model_catalog.concurrency.context_managers import inner_contextmanager
from model_catalog.concurrency.ownership import HostOwner, LoopOwner
from model_catalog.concurrency.retry import MIN_TIMEOUT_S, Backoff
from model_catalog.connection.database_info import driver_connection
from model_catalog.connection.engines import database_info
from model_catalog.connection.interruption.interruptible_run import (
    SLOW_STATEMENTS,
    InterruptibleRun,
)
from model_catalog.connection.interruption.running import (
    SERVER_GRACE_S,
    TIMEOUT_TOLERANCE_S,
    run_with_retries,
)
from model_catalog.connection.postgresql.commit_warnings import (
    forget_warnings,
    require_replicated,
)
from model_catalog.connection.postgresql.notifications import NotificationListener
from model_catalog.connection.timeouts import LOCK_WAIT_S, set_timeouts
from model_catalog.domain import validation
from model_catalog.errors import (
    CatalogBusyError,
    CatalogError,
    CatalogReadOnlyError,
)
from model_catalog.execution.executor import (
    Executor,
    Operation,
    forbid_nested_write,
    read,
    tell_of_commit,
    transaction_context,
)
from model_catalog.execution.postgres_transaction import (
    ConnectionTransaction,
    begin_transaction,
    begin_write,
    close_connection,
    commit_write,
)
from model_catalog.execution.postgresql.batches import RetryAloneError, run_lookups, run_writes
from model_catalog.execution.postgresql.own_sessions import OwnSessions, mark_used
from model_catalog.execution.postgresql.read_only import reason_for_read_only
from model_catalog.execution.transaction import TransactionExecutor

I = TypeVar("I")  # noqa: E741 - an item
T = TypeVar("T")

# Of lookups and of writes each. One batch that hangs must not delay all later calls. With more
# batches at once, fewer calls would share one.
_MAX_CONCURRENT_BATCHES: Final = 4

# With a shorter timeout, no time would be left to repeat a call alone after its batch failed.
_MIN_BATCH_TIMEOUT_S: Final = 2 * LOCK_WAIT_S

# The server gets this long to tell why it refused a write.
_QUESTION_S: Final = 1.0


class PostgresExecutor:
    """
    Runs operations on an engine for PostgreSQL, and batches concurrent ones.

    It exists because it is faster than sessions: lookups that come at the same time are one query,
    and registrations one transaction. For a host's engine it may only be used if the host's
    sessions do nothing of their own, see PlainFactory.

    If a call is cancelled, its Coalescer takes it out of its batch. For a call that runs alone,
    `run_with_retries` does the same: a read is interrupted, a write is completed.
    """

    is_suitable: Final = True

    def __init__(
        self,
        engine: AsyncEngine,
        timeout_s: float,
        owner: LoopOwner | HostOwner,
        *,
        owns_engine: bool = False,
    ) -> None:
        """Make an executor; with `owns_engine` only it uses the pool of the engine."""
        self.timeout_s = validation.seconds("timeout_s", timeout_s)
        self._owner = owner
        self._engine = engine.sync_engine
        self.database = database_info(self._engine)
        self._reading = engine
        self._writing = engine.execution_options(isolation_level="READ COMMITTED")
        # A lookup is one statement, so it is its own snapshot. It reads from an index, so it ends
        # before a statement timeout would. BEGIN, timeouts and COMMIT would be three more round
        # trips. If a lookup waits for a lock, the driver ends it.
        self._autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
        sessions = OwnSessions(self._autocommit.sync_engine, self.timeout_s)
        self._sessions = sessions if owns_engine and sessions.are_possible else None
        self._batches: dict[Any, Coalescer[Operation[Any, Any], Any]] = {}
        self._open_transactions: dict[TransactionExecutor, ConnectionTransaction] = {}
        self._listeners: dict[str, NotificationListener] = {}

    @property
    def has_own_sessions(self) -> bool:
        """Whether its sessions have limits of their own, if no pooler is in between."""
        return self._sessions is not None

    def listener(self, channel: str) -> NotificationListener:
        """Return the listener of a channel of notifications; one for all callers."""
        listener = self._listeners.get(channel)
        if listener is None:
            listener = self._listeners[channel] = NotificationListener(self._reading, channel)
        return listener

    @property
    def is_in_transaction(self) -> bool:
        """Each operation has a transaction of its own, or shares one with others."""
        return False

    def forbid_nested_write(self) -> None:
        """Raise TransactionError in a task that has a transaction of this engine open."""
        forbid_nested_write(self._engine)

    async def run(self, operation: Operation[Any, T]) -> T:
        """Run an operation in a transaction, alone or in a batch with operations of its kind."""
        timeout_s = self.timeout_s if operation.timeout_s is None else operation.timeout_s
        with self._owner.active_call():
            if not operation.writes:
                if operation.run_many is None:
                    return await self._run_alone(operation, Backoff(timeout_s))
                timeout_s = max(timeout_s, MIN_TIMEOUT_S)
                return await self._run_in_batch(operation, run_lookups, timeout_s)
            self.forbid_nested_write()
            try:
                if operation.run_many is not None and timeout_s >= _MIN_BATCH_TIMEOUT_S:
                    return await self._run_in_batch(operation, run_writes, timeout_s)
                return await self._run_alone(operation, Backoff(timeout_s))
            except CatalogReadOnlyError as error:
                raise await self._explained(error) from error

    async def _explained(self, error: CatalogReadOnlyError) -> CatalogReadOnlyError:
        """Return the error with the reason why the server does not write, if it tells."""
        with suppress(CatalogError):
            question = read(reason_for_read_only, None)
            if (found := await self._run_alone(question, Backoff(_QUESTION_S))) is not None:
                return CatalogReadOnlyError(self.database.name, *found)
        return error

    def _batches_of(
        self,
        operation: Operation[Any, Any],
        run: Callable[
            [PostgresExecutor, Sequence[Operation[Any, Any]], float], Awaitable[Sequence[Any]]
        ],
    ) -> Coalescer[Operation[Any, Any], Any]:
        """Return the coalescer of the operations that have the same `run_many`."""
        batches = self._batches.get(operation.run_many)
        if batches is None:
            batches = self._batches[operation.run_many] = Coalescer(
                partial(run, self),
                max_concurrent=_MAX_CONCURRENT_BATCHES,
                reads=not operation.writes,
                timeout_error=partial(CatalogBusyError, self.database.name, SLOW_STATEMENTS),
                grace_s=SERVER_GRACE_S,
            )
        return batches

    async def _run_in_batch(
        self,
        operation: Operation[Any, T],
        run: Callable[
            [PostgresExecutor, Sequence[Operation[Any, Any]], float], Awaitable[Sequence[Any]]
        ],
        timeout_s: float,
    ) -> T:
        """Run an operation in a batch, and alone if an error of the batch may not be its own."""
        backoff = Backoff(timeout_s)
        try:
            return await self._batches_of(operation, run).submit(operation, timeout_s)  # type: ignore[no-any-return]
        except RetryAloneError as failed:
            if isinstance(failed.error, CatalogBusyError):
                await backoff.wait_or_raise(failed.error)
        return await self._run_alone(operation, backoff)

    async def _run_alone(self, operation: Operation[Any, T], backoff: Backoff) -> T:
        is_statement = not operation.writes and operation.run_as_statement is not None

        async def attempt(run: InterruptibleRun, lock_wait_s: float) -> T:
            nonlocal is_statement
            run.on_commit = partial(tell_of_commit, (operation,))
            if is_statement:
                # The next attempt waits for locks.
                is_statement = False
                for result in await self.run_statement_once(operation, run, backoff):
                    return result
            return await self.run_once(
                operation.run_one,
                operation.value,
                run,
                backoff,
                lock_wait_s=lock_wait_s,
                writes=operation.writes,
            )

        return await run_with_retries(
            attempt,
            backoff,
            self.database.name,
            SERVER_GRACE_S,
            writes=operation.writes,
        )

    async def run_once(
        self,
        function: Callable[[Connection, I], T],
        value: I,
        run: InterruptibleRun,
        backoff: Backoff,
        *,
        writes: bool,
        lock_wait_s: float = LOCK_WAIT_S,
        max_statement_s: float = math.inf,
    ) -> T:
        """
        Run a function once in a transaction.

        A statement gets the remaining time of `backoff`, and at most `max_statement_s`.
        """
        timeouts_s = (lock_wait_s, min(backoff.remaining_s, max_statement_s))
        with run:
            if writes:
                connection = await begin_write(self._autocommit, run, *timeouts_s)
            else:
                connection = await begin_transaction(self._reading, run, *timeouts_s)
            try:
                begun_s = backoff.remaining_s
                result = await connection.run_sync(function, value)
                remaining_s = backoff.remaining_s
                if begun_s - remaining_s > TIMEOUT_TOLERANCE_S:
                    await set_timeouts(connection, lock_wait_s, max(remaining_s, MIN_TIMEOUT_S))
                if writes:
                    run.mark_committing(result)
                    await commit_write(connection, self.database.name)
                    run.mark_committed()
                else:
                    run.mark_read_done()
                    await connection.commit()
            except BaseException:
                await close_connection(connection, rolls_back=writes)
                raise
            await close_connection(connection)
            return result
        return run.result  # type: ignore[no-any-return]

    async def look_up_once(
        self, function: Callable[[Connection, I], T], value: I, run: InterruptibleRun
    ) -> T:
        """Run a function that is one SELECT, without a transaction."""
        with run:
            try:
                return await hold_cancellation(greenlet_spawn(self._look_up, function, value, run))
            except BaseException as error:
                # As in begin_transaction.
                if not run.reconnects_after(error):
                    raise
            return await hold_cancellation(greenlet_spawn(self._look_up, function, value, run))
        return run.result  # type: ignore[no-any-return]

    def _look_up(
        self, function: Callable[[Connection, I], T], value: I, run: InterruptibleRun
    ) -> T:
        connection = None
        if self._sessions is not None:
            connection = self._sessions.connect(run, writes=False)
        if connection is None:
            connection = self._autocommit.sync_engine.connect()
            run.set_connection(connection)
        try:
            result = function(connection, value)
            run.mark_read_done()
            mark_used(connection)
        finally:
            # It has no transaction, so nothing is sent.
            connection.close()
        return result

    async def run_statement_once(
        self, operation: Operation[I, T], run: InterruptibleRun, backoff: Backoff
    ) -> list[T]:
        """
        Run an operation as one statement without a transaction, and return a list of its result.

        The list is empty if that is not safe, and then nothing was done.

        It is safe in a session of the catalog's own, which limits lock waits and statements. The
        server commits a write when it has executed it. So the outcome is unknown if the answer is
        lost, as that of a COMMIT.
        """
        function = operation.run_as_statement
        if self._sessions is None or function is None:
            return []
        step = partial(self._run_statement, self._sessions, function, operation, run, backoff)
        with run:
            try:
                return await hold_cancellation(greenlet_spawn(step))
            except BaseException as error:
                # Only a read may be sent twice.
                if not run.reconnects_after(error):
                    raise
            return await hold_cancellation(greenlet_spawn(step))
        return run.result  # type: ignore[no-any-return]

    def _run_statement(
        self,
        sessions: OwnSessions,
        function: Callable[[Connection, I], T],
        operation: Operation[I, T],
        run: InterruptibleRun,
        backoff: Backoff,
    ) -> list[T]:
        connection = sessions.connect(run, writes=operation.writes)
        if connection is None:
            return []
        try:
            if not operation.writes:
                result = [function(connection, operation.value)]
                run.mark_read_done()
            elif sessions.limit_within(backoff.remaining_s):
                driver = driver_connection(connection)
                forget_warnings(driver)
                run.mark_committing()
                result = run.result = [function(connection, operation.value)]
                require_replicated(driver, self.database.name)
                run.mark_committed()
            else:
                # The driver would stop the statement, and its outcome would be unknown.
                return []
            mark_used(connection)
        finally:
            # It has no transaction, so nothing is sent.
            connection.close()
        return result

    @inner_contextmanager
    async def transaction(self) -> AsyncIterator[Executor]:
        """Open a transaction that can write."""
        backoff = Backoff(self.timeout_s)
        with self._owner.active_call():
            self.forbid_nested_write()
            backend = ConnectionTransaction(self.database, self.timeout_s)
            try:
                await run_with_retries(
                    lambda run, _: backend.begin(self._writing, run),
                    backoff,
                    self.database.name,
                    SERVER_GRACE_S,
                    writes=True,
                )
                self._owner.check_open()
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

    async def close(self) -> None:
        """Wait for calls in progress, and roll back the transactions that are open."""
        for listener in self._listeners.values():
            await listener.close()
        await self._owner.wait_idle()
        for executor, backend in list(self._open_transactions.items()):
            await executor.end_early(backend.close)
