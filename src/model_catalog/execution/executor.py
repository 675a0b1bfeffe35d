"""Operations on the database, and the interface of the executors that run them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import Any, Final, Generic, ParamSpec, Protocol, TypeAlias, TypeVar

from sqlalchemy import Connection

from model_catalog.connection.database_info import DatabaseInfo
from model_catalog.errors import TransactionError

I = TypeVar("I")  # noqa: E741 - an item
T = TypeVar("T")
P = ParamSpec("P")

OnCommit: TypeAlias = Callable[[], None]
"""Called when a transaction is committed."""

OTHER_WRITER: Final = "another task of this process is writing"
"""The reason of a CatalogBusyError: the call waited for a write of this process."""

OTHER_READER: Final = "another task of this process is reading"
"""The reason of a CatalogBusyError: the call waited for a read of this process."""

OTHER_CALL: Final = "another task uses the connection of the host"
"""The reason of a CatalogBusyError: the call waited for another on the connection of a host."""


# Not frozen: an operation is made for every call, and a frozen dataclass takes three times as long
# to make.
@dataclass(slots=True)
class Operation(Generic[I, T]):
    """
    One unit of work on the database: a function, and the value that it is called with.

    An executor calls `run_one(connection, value)` in a transaction. The function is synchronous on
    every driver. It may be run again from the start, for example after a lock timeout. Build
    operations with `lookup`, `read`, `write` and `write_alone`.
    """

    run_one: Callable[[Connection, I], T]
    value: I
    run_many: Callable[[Connection, Sequence[I]], Sequence[T]] | None = None
    """
    Runs the operation for several values in few statements; returns results in their order.

    PostgreSQL executors call it for every operation, and SQLite executors for lookups. Operations
    with the same function share a batch.
    """
    run_as_statement: Callable[[Connection, I], T] | None = None
    """
    Runs the operation as one statement, which waits for no lock, outside a transaction.

    Only the PostgreSQL executor calls it, and `run_one` if the statement met a lock.
    """
    writes: bool = False
    single_statement: bool = False
    """Whether it is one SELECT by key. It needs no transaction, and may share a snapshot."""
    exclusive: bool = False
    """Whether it needs a transaction of its own, because it may take long or writes many rows."""
    may_lag: bool = False
    """Whether it may miss what others have written in the last moments, as a replica does."""
    timeout_s: float | None = None
    """The seconds that it may take; None is the timeout of the executor."""
    schema: str | None = None
    """The schema that it uses, if that may be another one than the connection's own."""
    on_commit: OnCommit | None = None
    """
    Called once its transaction is committed, before its caller has the result. Raises nothing.

    Operations that share a transaction are told in their order. It may be called in any thread.
    """


def lookup(
    run_one: Callable[[Connection, I], T],
    value: I,
    run_many: Callable[[Connection, Sequence[I]], Sequence[T]] | None = None,
) -> Operation[I, T]:
    """Return an operation that is one SELECT of a few rows by key."""
    return Operation(run_one, value, run_many, single_statement=True, may_lag=True)


def read(
    run_one: Callable[[Connection, I], T], value: I, *, may_lag: bool = False
) -> Operation[I, T]:
    """
    Return an operation that only reads, in one transaction.

    On SQLite that is one snapshot. On PostgreSQL each statement has a snapshot of its own.
    With `may_lag` a replica may answer it.
    """
    return Operation(run_one, value, exclusive=True, may_lag=may_lag)


def read_once(
    run_one: Callable[[Connection, I], T], value: I, *, may_lag: bool = False
) -> Operation[I, T]:
    """Return an operation as `read` does, which is one SELECT, perhaps of many rows."""
    return Operation(run_one, value, run_as_statement=run_one, exclusive=True, may_lag=may_lag)


def write(
    run_one: Callable[[Connection, I], T],
    value: I,
    run_many: Callable[[Connection, Sequence[I]], Sequence[T]] | None = None,
    timeout_s: float | None = None,
    run_as_statement: Callable[[Connection, I], T] | None = None,
) -> Operation[I, T]:
    """Return an operation that writes a few rows; it may share a transaction with others."""
    return Operation(run_one, value, run_many, run_as_statement, writes=True, timeout_s=timeout_s)


def write_alone(run_one: Callable[[Connection, I], T], value: I) -> Operation[I, T]:
    """
    Return an operation that writes many rows, in a transaction of its own.

    In an open transaction it runs in a savepoint of its own.
    """
    return Operation(run_one, value, writes=True, exclusive=True)


_needs_primary: Final[ContextVar[bool]] = ContextVar("model_catalog_needs_primary", default=False)


def needs_primary() -> bool:
    """Return whether this task is in a call whose reads a replica must not answer."""
    return _needs_primary.get()


def reads_from_primary(
    function: Callable[P, Awaitable[T]],
) -> Callable[P, Coroutine[Any, Any, T]]:
    """
    Make an async function whose reads no replica answers, and neither those of its tasks.

    For a function that acts on what it has read: with a row that another catalog has changed since,
    it would delete or download the wrong files.
    """

    @wraps(function)
    async def reading(*args: P.args, **options: P.kwargs) -> T:
        token = _needs_primary.set(True)
        try:
            return await function(*args, **options)
        finally:
            _needs_primary.reset(token)

    return reading


def tell_of_commit(operations: Iterable[Operation[Any, Any]]) -> None:
    """Call `on_commit` of operations whose transaction was committed."""
    for operation in operations:
        if operation.on_commit is not None:
            operation.on_commit()


class Executor(Protocol):
    """
    Runs operations in transactions.

    If an operation does not end within its timeout, it is rolled back and CatalogBusyError is
    raised. When a caller is cancelled, the cancellation is delivered after the operation has ended.
    A lookup that shares a batch on PostgreSQL is left at once.
    """

    timeout_s: float
    """The seconds that a call may take."""

    @property
    def database(self) -> DatabaseInfo:
        """What is known about the database."""

    @property
    def is_in_transaction(self) -> bool:
        """Whether operations are part of an open transaction, which another call commits."""
        return False

    def forbid_nested_write(self) -> None:
        """Raise TransactionError if a write would wait for the caller's own open transaction."""

    async def run(self, operation: Operation[Any, T]) -> T:
        """
        Run an operation, and return its result.

        The operation is then committed, except in an executor for an open transaction. Raises
        CatalogError.
        """

    def transaction(self) -> AbstractAsyncContextManager[Executor]:
        """Open one transaction for all operations that are run in the executor it yields."""


class _TransactionMarker:
    """Marks that the current task has a transaction open; `database` is None after its end."""

    def __init__(self, database: object) -> None:
        self.database: object | None = database


# A context variable, so that tasks which the task starts inside the transaction know of it too.
_open_transactions: Final[ContextVar[tuple[_TransactionMarker, ...]]] = ContextVar(
    "model_catalog_open_transactions", default=()
)


@contextmanager
def transaction_context(database: object) -> Iterator[None]:
    """Mark, during a block, that this task has a transaction of a database open."""
    marker = _TransactionMarker(database)
    outer = (each for each in _open_transactions.get() if each.database is not None)
    _open_transactions.set((*outer, marker))
    try:
        yield
    finally:
        marker.database = None


def forbid_nested_write(database: object) -> None:
    """Raise TransactionError if this task has a transaction of the database open."""
    if any(marker.database is database for marker in _open_transactions.get()):
        raise TransactionError(
            "this task has a transaction open, and the call would wait for its end: "
            "call the catalog that transaction() returned"
        )
