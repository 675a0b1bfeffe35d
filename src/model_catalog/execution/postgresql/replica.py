"""Reads from a replica of a PostgreSQL server, which shows what the same catalog has written."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any, Final, TypeAlias, TypeVar

from sqlalchemy import Connection, text

from model_catalog.concurrency.context_managers import inner_contextmanager
from model_catalog.connection.postgresql.notifications import NotificationListener
from model_catalog.errors import (
    CatalogClosedError,
    CatalogError,
    InvalidModelError,
    InvalidTargetError,
    ModelNotFoundError,
    WrongLoopError,
)
from model_catalog.execution.executor import Executor, Operation, needs_primary
from model_catalog.execution.postgres_executor import PostgresExecutor

T = TypeVar("T")

_RunMany: TypeAlias = Callable[[Connection, Sequence[Any]], Sequence[Any]]

log = logging.getLogger("model_catalog.execution")

# For so long no read asks a replica that was behind, or one that failed.
_PAUSE_BEHIND_S: Final = 0.02
_PAUSE_FAILED_S: Final = 5.0

# The part of a call's time that the replica gets. The primary needs the other part.
_SHARE_OF_REPLICA: Final = 0.5

# Key of Connection.info: the position up to which the server of a connection has replayed.
_REPLAYED: Final = "model_catalog_replayed"

# Positions in the write-ahead log as numbers. The identifier is that of a primary and its replicas.
# During a failover the primary may be a standby still, which has no position of its own: NULL.
_WRITTEN = text(
    "SELECT pg_wal_lsn_diff(CASE WHEN NOT pg_is_in_recovery()"
    " THEN pg_current_wal_insert_lsn() END, '0/0'), system_identifier, current_database()"
    " FROM pg_control_system()"
)
_REPLAYED_BY_NOW = text(
    "SELECT pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()"
    " ELSE pg_current_wal_insert_lsn() END, '0/0'), system_identifier, current_database()"
    " FROM pg_control_system()"
)


# Errors of the call, after which the replica is asked as before.
_NOT_OF_THE_SERVER: Final = (
    *(ModelNotFoundError, InvalidModelError),
    *(CatalogClosedError, WrongLoopError),
)


class _BehindError(Exception):
    """The replica has not yet replayed what this catalog has written."""


class ReplicatedExecutor:
    """
    Runs reads on a replica if that has replayed every write of this catalog, and else on a primary.

    It exists so that most reads of many processes do not load the primary. A write costs nothing:
    it only counts. The next read runs on the primary, and asks there for the position in the
    write-ahead log. Later reads ask a connection to the replica for its position until that has
    been reached. That is asked of each connection, because several replicas may share a URL.

    A read that fails on the replica is repeated on the primary.
    """

    def __init__(self, primary: PostgresExecutor, replica: PostgresExecutor) -> None:
        self._primary: Final = primary
        self._replica: Final = replica
        self._writes = 0
        self._identity: tuple[Any, Any] | None = None
        # The position that a replica must have replayed; None before it was asked for.
        self._position: int | None = None
        self._paused_until = 0.0
        self._wrapped: dict[tuple[_RunMany, Callable[[Connection], None]], _RunMany] = {}
        self.database = primary.database
        self.timeout_s = primary.timeout_s

    def listener(self, channel: str) -> NotificationListener:
        """Return the listener of a channel of notifications, which only a primary sends."""
        return self._primary.listener(channel)

    @property
    def is_in_transaction(self) -> bool:
        """Each operation has a transaction of its own, or shares one with others."""
        return False

    def forbid_nested_write(self) -> None:
        """Raise TransactionError in a task that has a transaction of the primary open."""
        self._primary.forbid_nested_write()

    async def run(self, operation: Operation[Any, T]) -> T:
        """Run an operation on the primary; a read that may lag on the replica."""
        if operation.writes:
            try:
                return await self._primary.run(operation)
            finally:
                self._count_write()
        if not operation.may_lag or needs_primary():
            return await self._primary.run(operation)
        if self._position is None:
            return await self._primary.run(self._wrap(operation, self._ask_primary))
        if time.monotonic() < self._paused_until:
            return await self._primary.run(operation)
        return await self._run_on_replica(operation)

    async def _run_on_replica(self, operation: Operation[Any, T]) -> T:
        timeout_s = self.timeout_s if operation.timeout_s is None else operation.timeout_s
        start = time.monotonic()
        wrapped = self._wrap(operation, self._ask_replica)
        wrapped.timeout_s = timeout_s * _SHARE_OF_REPLICA
        try:
            return await self._replica.run(wrapped)
        except _BehindError:
            self._paused_until = time.monotonic() + _PAUSE_BEHIND_S
        except InvalidTargetError:
            raise
        except _NOT_OF_THE_SERVER:
            pass
        except CatalogError as error:
            # The primary decides: an error that is not the replica's own is raised there as well.
            self._paused_until = time.monotonic() + _PAUSE_FAILED_S
            log.warning(
                "the replica of %s failed: %s",
                self.database.name,
                error,
                extra={"model_catalog_url": self.database.name},
            )
        remaining_s = timeout_s - (time.monotonic() - start)
        return await self._primary.run(replace(operation, timeout_s=max(remaining_s, 0.0)))

    def _count_write(self) -> None:
        self._writes += 1
        self._position = None

    def _wrap(
        self, operation: Operation[Any, T], ask: Callable[[Connection], None]
    ) -> Operation[Any, T]:
        """Return an operation that calls `ask` on its connection before it reads."""
        function = operation.run_one

        def asking(connection: Connection, value: Any) -> T:
            ask(connection)
            return function(connection, value)

        run_many = operation.run_many
        many = None if run_many is None else self._wrap_many(run_many, ask)
        # A read runs the same function with and without a transaction.
        statement = None if operation.run_as_statement is None else asking
        return replace(operation, run_one=asking, run_many=many, run_as_statement=statement)

    def _wrap_many(self, function: _RunMany, ask: Callable[[Connection], None]) -> _RunMany:
        """Return a function that asks first. It is always the same, as a batch has one."""
        key = (function, ask)
        wrapped = self._wrapped.get(key)
        if wrapped is None:

            def asking(connection: Connection, values: Sequence[Any]) -> Sequence[Any]:
                ask(connection)
                return function(connection, values)

            wrapped = self._wrapped[key] = asking
        return wrapped

    def _ask_primary(self, connection: Connection) -> None:
        """Learn up to which position a replica must have replayed."""
        writes = self._writes
        position, *identity = connection.execute(_WRITTEN).one()
        # A write that has ended meanwhile may have committed after this.
        if writes == self._writes and position is not None:
            self._position = int(position)
            self._identity = (identity[0], identity[1])

    def _ask_replica(self, connection: Connection) -> None:
        """Raise _BehindError unless the server of a connection has replayed enough."""
        needed = self._position
        if needed is None:
            raise _BehindError
        if connection.info.get(_REPLAYED, -1) >= needed:
            return
        position, *identity = connection.execute(_REPLAYED_BY_NOW).one()
        if (identity[0], identity[1]) != self._identity:
            raise InvalidTargetError(
                self._replica.database.name,
                f"it is not a replica of {self.database.name}, but another server or database",
            )
        connection.info[_REPLAYED] = int(position)
        if position < needed:
            raise _BehindError

    @inner_contextmanager
    async def transaction(self) -> AsyncIterator[Executor]:
        """Open a transaction on the primary, which can write."""
        try:
            async with self._primary.transaction() as executor:
                yield executor
        finally:
            self._count_write()

    async def close(self) -> None:
        """Wait for calls in progress, and roll back the transactions that are open."""
        await self._replica.close()
        await self._primary.close()
