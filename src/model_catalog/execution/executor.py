"""What the repository asks of a database: that a unit of work is run there, in a transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeAlias, TypeVar

from sqlalchemy import Connection

from model_catalog.connection.database_info import DatabaseInfo as DatabaseInfo  # noqa: PLC0414 - also exported here
from model_catalog.errors import TransactionError
from model_catalog.execution.prepared_statement import PreparedStatement, Row

I = TypeVar("I")  # noqa: E741 - an item
T = TypeVar("T")

Unit: TypeAlias = Callable[[Connection], T]
"""A synchronous step on a connection in a transaction. It may be run again from the start."""


@dataclass(frozen=True, slots=True)
class Joint(Generic[I, T]):
    """A unit for one item, which can also be done for `many` at once: a Work may choose to."""

    item: I
    one: Callable[[Connection, I], T]
    many: Callable[[Connection, Sequence[I]], Sequence[T]]

    def __call__(self, connection: Connection) -> T:
        """Do it for its item alone."""
        return self.one(connection, self.item)


# Not frozen: an operation is made for every call, and a frozen dataclass takes three times as long
# to make.
@dataclass(slots=True)
class Operation(Generic[I, T]):
    """
    One unit of work on the database: a function of a connection and a value.

    An executor runs it in a transaction. The function is synchronous whatever the driver is, and it
    may be run again from the start, for example after a lock timeout. Build operations with
    `lookup`, `read`, `write` and `write_alone`.
    """

    run_one: Callable[[Connection, I], T]
    value: I
    run_many: Callable[[Connection, Sequence[I]], Sequence[T]] | None = None
    """Runs the operation for several values in few statements, in the order of the values."""
    writes: bool = False
    single_statement: bool = False
    """Whether it is one SELECT by key: it then needs no transaction, and several may share one."""
    exclusive: bool = False
    """Whether it needs a transaction of its own, because it may take long or writes many rows."""
    timeout_s: float | None = None
    """The seconds that it may take; None is the timeout of the executor."""


def lookup(
    run_one: Callable[[Connection, I], T],
    value: I,
    run_many: Callable[[Connection, Sequence[I]], Sequence[T]] | None = None,
) -> Operation[I, T]:
    """Return an operation that is one SELECT of few rows by their keys."""
    return Operation(run_one, value, run_many, single_statement=True)


def read(run_one: Callable[[Connection, I], T], value: I) -> Operation[I, T]:
    """Return an operation that only reads, in one snapshot."""
    return Operation(run_one, value, exclusive=True)


def write(
    run_one: Callable[[Connection, I], T],
    value: I,
    run_many: Callable[[Connection, Sequence[I]], Sequence[T]] | None = None,
    timeout_s: float | None = None,
) -> Operation[I, T]:
    """Return an operation that writes a few rows; it may share a transaction with others."""
    return Operation(run_one, value, run_many, writes=True, timeout_s=timeout_s)


def write_alone(run_one: Callable[[Connection, I], T], value: I) -> Operation[I, T]:
    """Return an operation of several writes: all of them are kept or none."""
    return Operation(run_one, value, writes=True, exclusive=True)


class Executor(Protocol):
    """
    Runs operations in transactions.

    An operation that does not end within its timeout raises CatalogBusyError, and none of it is
    kept. When a caller is cancelled, the cancellation is delivered after the operation has ended.
    """

    database: DatabaseInfo
    timeout_s: float
    """The seconds that a call may take."""

    def forbid_nested_write(self) -> None:
        """Raise TransactionError if a write would wait for the caller's own open transaction."""

    async def run(self, operation: Operation[Any, T]) -> T:
        """Run an operation, and return its result once its transaction has ended."""

    # The older interface, until every operation goes through run().

    async def find(self, statement: PreparedStatement, values: Mapping[str, Any]) -> Sequence[Row]:
        """Run a lookup."""

    async def read(self, unit: Unit[T]) -> T:
        """Run a unit that reads."""

    async def write(self, unit: Unit[T], timeout_s: float | None = None) -> T:
        """Run a unit that writes a few rows."""

    async def write_all(self, unit: Unit[T]) -> T:
        """Run a unit that writes many rows."""

    def transaction(self) -> AbstractAsyncContextManager[Executor]:
        """Open one transaction for all operations that are run in the executor it yields."""


class _TransactionMarker:
    """That a transaction is open: known to the tasks that began inside it, and to nobody else."""

    def __init__(self, database: object) -> None:
        self.database: object | None = database


_inside: Final[ContextVar[tuple[_TransactionMarker, ...]]] = ContextVar(
    "model_catalog_inside", default=()
)


@contextmanager
def transaction_context(database: object) -> Iterator[None]:
    """A block in which the task has a transaction of a database open."""
    here = _TransactionMarker(database)
    _inside.set((*(outer for outer in _inside.get() if outer.database is not None), here))
    try:
        yield
    finally:
        here.database = None


def forbid_nested_write(database: object) -> None:
    """Raise TransactionError in a task that has a transaction of that database open."""
    if any(outer.database is database for outer in _inside.get()):
        raise TransactionError(
            "this task has a transaction open, which the call would wait for: "
            "call the catalog that transaction() gave"
        )
