"""What the repository asks of a database: that a unit of work is run there, in a transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, Protocol, TypeAlias, TypeVar

from sqlalchemy import Connection

from model_catalog.errors import TransactionError
from model_catalog.execution.prepared_statement import Prepared, Row

I = TypeVar("I")  # noqa: E741 - an item
T = TypeVar("T")

Unit: TypeAlias = Callable[[Connection], T]
"""
What is to be done with a connection in a transaction; it may be done again from the start.

It is one synchronous step, whatever the driver: where it runs, and in how many steps of the event
loop, is not its affair.
"""


@dataclass(frozen=True, slots=True)
class Joint(Generic[I, T]):
    """A unit for one item, which can also be done for `many` at once: a Work may choose to."""

    item: I
    one: Callable[[Connection, I], T]
    many: Callable[[Connection, Sequence[I]], Sequence[T]]

    def __call__(self, connection: Connection) -> T:
        """Do it for its item alone."""
        return self.one(connection, self.item)


class Work(Protocol):
    """
    Somewhere a unit of work can run.

    A unit has an end: it is waited for no longer than the Work allows, and then CatalogBusyError is
    raised and nothing of it is kept. Cancelling a caller is delivered once the unit has ended.
    """

    dialect: str
    """The name of its database: `sqlite` or `postgresql`."""
    cascades: bool
    """Whether the database itself removes what refers to a row that is removed."""
    files: tuple[Path, ...]
    """The files of a SQLite database."""
    timeout_s: float
    """How long a call may take."""

    def ensure_outside(self) -> None:
        """Raise TransactionError where a write would wait for the caller's own transaction."""

    async def find(self, statement: Prepared, values: Mapping[str, Any]) -> Sequence[Row]:
        """The few rows that a statement finds by their keys: others may be found along with it."""

    async def read(self, unit: Unit[T]) -> T:
        """Run a unit that only reads."""

    async def write(self, unit: Unit[T], timeout_s: float | None = None) -> T:
        """Run a unit that writes a few rows: others may be written along with it."""

    async def write_all(self, unit: Unit[T]) -> T:
        """Run a unit of several writes, of which all are kept or none."""

    def transaction(self) -> AbstractAsyncContextManager[Work]:
        """One transaction for everything that is run in the Work it yields."""


class _Open:
    """That a transaction is open: known to the tasks that began inside it, and to nobody else."""

    def __init__(self, database: object) -> None:
        self.database: object | None = database


_inside: Final[ContextVar[tuple[_Open, ...]]] = ContextVar("model_catalog_inside", default=())


@contextmanager
def inside(database: object) -> Iterator[None]:
    """A block in which the task has a transaction of a database open."""
    here = _Open(database)
    _inside.set((*(outer for outer in _inside.get() if outer.database is not None), here))
    try:
        yield
    finally:
        here.database = None


def require_outside(database: object) -> None:
    """Raise TransactionError in a task that has a transaction of that database open."""
    if any(outer.database is database for outer in _inside.get()):
        raise TransactionError(
            "this task has a transaction open, which the call would wait for: "
            "call the catalog that transaction() gave"
        )
