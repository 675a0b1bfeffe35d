"""The open transaction of a host's session, or of the connection that it is bound to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from sqlalchemy import Connection, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, AsyncSessionTransaction

from model_catalog.concurrency.completion import hold_cancellation
from model_catalog.concurrency.context_managers import inner_contextmanager
from model_catalog.concurrency.ownership import LoopOwner
from model_catalog.connection.database_info import catalog_schema, driver_connection
from model_catalog.connection.engines import database_info
from model_catalog.connection.interruption.interruptible_run import InterruptibleRun
from model_catalog.connection.interruption.running import (
    SERVER_GRACE_S,
    close_in_time,
    driver_working,
    run_in_open_transaction,
)
from model_catalog.connection.postgresql.dropping import prepare_replacement
from model_catalog.connection.timeouts import (
    begin_if_needed,
    is_in_transaction,
    restore_driver_transaction,
    restore_timeout_on_checkin,
    use_commit_timeout,
)
from model_catalog.domain import validation
from model_catalog.execution.executor import (
    Executor,
    OnCommit,
    Operation,
    transaction_context,
)
from model_catalog.execution.session_binds import find_bind, find_first_bind
from model_catalog.execution.transaction import Savepoint, TransactionExecutor
from model_catalog.mapping.loaded_models import refresh, show_result

I = TypeVar("I")  # noqa: E741 - an item
T = TypeVar("T")


class SessionTransaction:
    """The open transaction of a host's session; a `TransactionBackend`."""

    def __init__(self, session: AsyncSession, timeout_s: float) -> None:
        self._session = session
        self.timeout_s = validation.seconds("timeout_s", timeout_s)
        self.connection: AsyncConnection | None = None
        """The connection of the transaction, which `close` drops if the server does not answer."""
        self._is_shown = False
        """Whether the last write was shown to the models that the session has loaded."""
        engine = find_first_bind(session).engine
        restore_timeout_on_checkin(engine)
        prepare_replacement(engine)
        self.database = database_info(engine)

    async def run(self, operation: Operation[I, T]) -> T:
        """Return what the function of an operation returns; loaded models get their new values."""

        def run_and_show(connection: Connection, value: I) -> T:
            result = operation.run_one(connection, value)
            if operation.writes:
                # The session's own statements read the schema of the connection.
                self._is_shown = operation.schema in (None, catalog_schema(connection))
                if self._is_shown:
                    show_result(self._session.sync_session, connection, result)
            return result

        return await self._run_step(
            lambda connection: connection.run_sync(run_and_show, operation.value)
        )

    async def savepoint(self) -> Savepoint:
        """Begin a savepoint of the session."""

        async def step(connection: AsyncConnection) -> AsyncSessionTransaction:
            # sqlite3 sends no BEGIN before a SAVEPOINT. Without one, RELEASE would commit.
            await begin_if_needed(connection)
            return await self._session.begin_nested()

        async def roll_back(connection: AsyncConnection) -> None:
            await nested.rollback()
            if self._is_shown:
                await connection.run_sync(
                    lambda connection: refresh(self._session.sync_session, connection)
                )

        nested = await self._run_step(step)
        return Savepoint(
            commit=lambda: self._run_step(lambda _: nested.commit()),
            rollback=lambda: self._run_step(roll_back),
        )

    async def is_open(self) -> bool:
        """Return whether the database still has the transaction open."""
        return await self._run_step(is_in_transaction)

    async def commit(self, on_commit: OnCommit) -> None:
        """Commit the transaction, and call `on_commit` when it is committed."""

        async def step(connection: AsyncConnection) -> None:
            await connection.run_sync(use_commit_timeout, self.timeout_s)
            await hold_cancellation(self._session.commit())

        await self._run_step(step, on_commit=on_commit)

    async def release(self) -> None:
        """End the session, whose transaction is part of one of the host's connection."""
        await self._run_step(lambda _: self._session.commit())

    async def close(self) -> None:
        """Roll back uncommitted changes, and return the connection to its pool."""
        await close_in_time(self._session.close, self.connection, self.database.name)

    async def _run_step(
        self,
        step: Callable[[AsyncConnection], Awaitable[T]],
        *,
        on_commit: OnCommit | None = None,
    ) -> T:
        """Run a step, which commits if `on_commit` is given."""
        run = InterruptibleRun(self.database.name)

        async def attempt() -> T:
            session = self._session
            with run:
                if session.autoflush and (session.new or session.dirty or session.deleted):
                    # Only the ORM's own statements flush by themselves. The operation shall find
                    # what the host has added to the session.
                    await session.flush()
                connection = self.connection = await self._connect()
                run.set_connection(connection)
                if on_commit is not None:
                    tell_of_commit(run, session, on_commit)
                was_open = await is_in_transaction(connection)
                try:
                    return await step(connection)
                except Exception:
                    if was_open:
                        await _mark_if_ended(connection)
                    raise
            return run.result  # type: ignore[no-any-return]

        dialect = self.database.dialect
        with driver_working(dialect):
            return await run_in_open_transaction(attempt(), run, self.timeout_s, grace_s(dialect))

    async def _connect(self) -> AsyncConnection:
        # Reads are sent where writes are, because they shall find what the transaction has written.
        bind = find_bind(self._session, writes=True)
        host_connection = bind.joined
        if host_connection is not None:
            # The session may begin with a SAVEPOINT, before which sqlite3 sends no BEGIN.
            await self._session.run_sync(lambda _: _begin_on(host_connection))
        return await hold_cancellation(self._session.connection(bind.arguments))


@inner_contextmanager
async def joined_transaction(
    session: AsyncSession, connection: Connection, timeout_s: float
) -> AsyncIterator[Executor]:
    """
    Open a savepoint in the transaction that a host has begun on its own connection.

    The session joins that transaction as its `join_transaction_mode` says, and the host rolls back
    or commits what the calls have written. A failed call rolls back to the savepoint. The caller
    has the `connection_turn`.
    """
    backend = SessionTransaction(session, timeout_s)
    executor = TransactionExecutor(backend, LoopOwner(backend.database.name))
    try:
        with transaction_context(connection.engine):
            async with executor.transaction():
                yield executor
        # The host commits later, or rolls back, and the catalog is not told.
        await executor.commit(lambda _: backend.release())
    finally:
        await executor.end(backend.close)


def tell_of_commit(
    run: InterruptibleRun,
    session: AsyncSession,
    on_commit: OnCommit | None,
    result: object = None,
) -> None:
    """Tell a run that a session is about to commit, and have the session tell it of the commit."""
    run.mark_committing(result)
    # A session that is bound to a connection may join a transaction, which the host commits.
    if on_commit is not None and find_bind(session, writes=True).connection is None:

        def tell() -> None:
            # A plain function, because the run is in a lower layer than the object behind it.
            on_commit()

        run.on_commit = tell
    # session.commit() also returns the connection to its pool, which may take a while. The event
    # comes before that.
    event.listen(session.sync_session, "after_commit", run.mark_committed, once=True)


def grace_s(dialect: str) -> float:
    """Return the seconds that a database gets to end a late statement itself."""
    return SERVER_GRACE_S if dialect == "postgresql" else 0.0


def _begin_on(connection: Connection) -> None:
    if connection.dialect.name == "sqlite" and not driver_connection(connection).in_transaction:
        connection.exec_driver_sql("BEGIN")


async def _mark_if_ended(connection: AsyncConnection) -> None:
    """
    Make a transaction of SQLAlchemy invalid if an error has ended it in the database.

    SQLite rolls back when a statement that writes is interrupted, or finds the disk full. Each
    later statement would then be committed by itself. PostgreSQL refuses later statements after any
    error, but answers COMMIT with a rollback and no error. Now statements and commits of the host
    raise PendingRollbackError until it rolls back. SQLAlchemy does the same after a failed COMMIT.
    """
    if await _has_ended(connection):
        transaction = connection.get_transaction()
        if transaction is not None:
            root: Any = transaction.sync_transaction
            root.is_active = False


async def _has_ended(connection: AsyncConnection) -> bool:
    if connection.dialect.name == "sqlite":
        return await restore_driver_transaction(connection)
    if connection.invalidated or connection.in_nested_transaction():
        # The host may go on after it has rolled back to its savepoint.
        return False
    try:
        await connection.exec_driver_sql("SELECT 1")
    except DBAPIError:
        if not connection.invalidated:
            # SQLAlchemy will send no ROLLBACK for an invalid transaction.
            await connection.run_sync(lambda sync: sync.connection.rollback())
        return not connection.invalidated
    return False
