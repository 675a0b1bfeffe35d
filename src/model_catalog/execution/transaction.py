"""Runs operations inside one open transaction, with savepoints."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from model_catalog.concurrency.completion import run_to_completion
from model_catalog.concurrency.context_managers import inner_contextmanager
from model_catalog.concurrency.forks import fork_count
from model_catalog.concurrency.ownership import HostOwner, LoopOwner
from model_catalog.connection.database_info import DatabaseInfo
from model_catalog.connection.error_mapping import to_catalog_error
from model_catalog.errors import (
    CatalogBusyError,
    CatalogClosedError,
    CatalogError,
    ModelInUseError,
    TransactionError,
    WrongLoopError,
)
from model_catalog.execution.executor import Executor, Operation
from model_catalog.execution.observation.commit_callbacks import CommitCallbacks

I = TypeVar("I")  # noqa: E741 - an item
T = TypeVar("T")

# Executors of a parent process, kept referenced in its forked child.
_of_parent_process: Final[list[TransactionExecutor]] = []


class Savepoint(NamedTuple):
    """A savepoint of an open transaction, by the functions that end it."""

    commit: Callable[[], Awaitable[None]]
    """Release it: its changes are committed with the transaction."""
    rollback: Callable[[], Awaitable[None]]
    """Undo the changes made since it began."""


class TransactionBackend(Protocol):
    """A connection with an open transaction. Only one of its methods may run at a time."""

    database: DatabaseInfo
    timeout_s: float

    async def run(self, operation: Operation[I, T]) -> T:
        """Return what the function of an operation returns; driver errors become a CatalogError."""

    async def savepoint(self) -> Savepoint:
        """Begin a savepoint."""

    async def is_open(self) -> bool:
        """Return whether the database still has the transaction open."""


class TransactionExecutor:
    """
    Runs operations inside one open transaction. It uses the connection of that transaction.

    It exists for `transaction()` and for a catalog over a host's session. Operations run one after
    another, because a connection serves one task at a time.

    If we opened the transaction ourselves (`owns_transaction`), the first database error ends it.
    PostgreSQL would roll back at commit, and SQLite may have rolled back already. A savepoint
    around the failing call saves the rest.
    """

    def __init__(
        self,
        backend: TransactionBackend,
        owner: LoopOwner | HostOwner | None = None,
        *,
        owns_transaction: bool = False,
        commits: CommitCallbacks | None = None,
    ) -> None:
        self._backend = backend
        self._commits = CommitCallbacks() if commits is None else commits
        self._owner = owner or HostOwner()
        self.database = backend.database
        self.timeout_s = backend.timeout_s
        self._owns_transaction = owns_transaction
        self._forks = fork_count()
        self._is_over = False
        self._failure: CatalogError | None = None
        self._lock = asyncio.Lock()

    @property
    def is_in_transaction(self) -> bool:
        """Operations are part of an open transaction."""
        return True

    def forbid_nested_write(self) -> None:
        """Do nothing: this executor works in the caller's own transaction."""

    def _check_open(self) -> None:
        self._owner.check_open()
        if self._is_over:
            raise TransactionError(
                "this transaction has ended: call the catalog that opened the transaction"
            )
        if self._failure is not None:
            raise TransactionError(
                "an earlier call in this transaction failed, so the transaction will be rolled "
                "back: let its error leave the block, or make the call in a transaction() inside it"
            ) from self._failure

    async def run(self, operation: Operation[Any, T]) -> T:
        """
        Run an operation in the open transaction.

        An `exclusive` write may change many rows with several statements. It gets a savepoint of
        its own, so that all of its changes are made, or none.
        """
        if operation.writes and operation.exclusive:
            async with self.transaction():
                return await self._run(operation)
        return await self._run(operation)

    @inner_contextmanager
    async def transaction(self) -> AsyncIterator[Executor]:
        """Open a savepoint; an error in the block rolls back to it."""
        savepoint = await self._change_savepoint(self._backend.savepoint)
        commits = len(self._commits)
        try:
            yield self
            self._owner.check_usable()
            self._check_open()
        except BaseException:
            # In a forked child the transaction and its connection are the parent's.
            if fork_count() == self._forks:
                async with self._lock:
                    await run_to_completion(self._roll_back_to(savepoint))
                    self._commits.truncate(commits)
            raise
        await self._change_savepoint(savepoint.commit)

    async def _roll_back_to(self, savepoint: Savepoint) -> None:
        """Roll back to a savepoint; if that fails, keep the error that made it necessary."""
        try:
            await savepoint.rollback()
            is_open = await self._backend.is_open()
        except CatalogError as error:
            # A session of a host is rolled back by the host, and may be used again.
            if self._owns_transaction:
                self._failure = self._failure or error
        else:
            # On a full disk SQLite rolls back the whole transaction.
            if is_open:
                self._failure = None

    async def _run(self, operation: Operation[Any, T]) -> T:
        def record_failure(connection: Connection, value: Any) -> T:
            try:
                result = operation.run_one(connection, value)
            except (SQLAlchemyError, sqlite3.Error, OSError) as error:
                if self._owns_transaction:
                    self._failure = to_catalog_error(error, self.database.name)
                raise
            except ModelInUseError as error:
                # PostgreSQL executes no statement after a refused one.
                if self._owns_transaction:
                    self._failure = error
                raise
            if operation.on_commit is not None:
                self._commits.add(operation.on_commit)
            return result

        try:
            return await self._run_locked(
                lambda: self._backend.run(replace(operation, run_one=record_failure))
            )
        except CatalogBusyError as error:
            # If the call was interrupted, the function may have seen no error of the database.
            if self._owns_transaction:
                self._failure = self._failure or error
            raise

    async def _change_savepoint(self, step: Callable[[], Awaitable[T]]) -> T:
        """Begin or release a savepoint. An error of the database ends the transaction."""
        try:
            return await self._run_locked(step)
        except (CatalogClosedError, TransactionError, WrongLoopError):
            raise
        except CatalogError as error:
            if self._owns_transaction:
                self._failure = error
            raise

    async def _run_locked(self, step: Callable[[], Awaitable[T]]) -> T:
        # Before the lock, which belongs to one loop as well.
        self._owner.check_usable()
        async with self._lock:
            self._check_open()
            return await step()

    async def commit(self, commit: Callable[[Callable[[], None]], Awaitable[None]]) -> None:
        """
        Call `commit`, with the function that it calls when the transaction is committed.

        Raises TransactionError if an earlier call failed.
        """
        self._commits.prepare()
        try:
            await self._run_locked(lambda: commit(self._commits.call))
        finally:
            self._commits.drop()

    async def end(self, roll_back: Callable[[], Awaitable[None]]) -> None:
        """Call `roll_back`, which undoes what was not committed; not in a forked child."""
        self._is_over = True
        if self._owner.is_in_owner_process:
            await run_to_completion(self._run_alone(roll_back))
        else:
            # Python closes what is no longer referenced, and with it the parent's connection.
            _of_parent_process.append(self)

    async def end_early(self, roll_back: Callable[[], Awaitable[None]]) -> None:
        """Call `roll_back` because the catalog is being closed; later calls raise an error."""
        self._owner.is_closed = True
        await self._run_alone(roll_back)

    async def _run_alone(self, step: Callable[[], Awaitable[None]]) -> None:
        async with self._lock:
            await step()
