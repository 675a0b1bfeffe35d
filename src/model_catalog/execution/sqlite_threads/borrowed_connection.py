"""A SQLAlchemy connection on a `sqlite3` connection that an asynchronous driver owns."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, NullPool, PoolProxiedConnection, event

from model_catalog.connection.engines import send_begin
from model_catalog.connection.timeouts import LOCK_WAIT_S, busy_timeout

_SHORT_TIMEOUT: Final = busy_timeout(LOCK_WAIT_S)


class _BorrowedConnection(PoolProxiedConnection):
    """A `sqlite3` connection as SQLAlchemy's pool would lend it, but without a pool."""

    __slots__ = ("dbapi_connection", "driver_connection", "info")

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.dbapi_connection: Any = connection
        self.driver_connection: Any = connection
        self.info: dict[Any, Any] = {}

    @property
    def is_valid(self) -> bool:
        return True

    def invalidate(self, e: BaseException | None = None, soft: bool = False) -> None:  # noqa: FBT001, FBT002 - the signature of the base class
        """Do nothing: the owner of the connection finds out that it is lost."""

    def close(self) -> None:
        """Do nothing: the owner closes the connection."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dbapi_connection, name)


@contextmanager
def borrow(connection: sqlite3.Connection, options: Mapping[str, Any]) -> Iterator[Connection]:
    """
    Lend a `sqlite3` connection to SQLAlchemy during a block, in the thread that owns it.

    `options` are the execution options of its engine.

    A transaction begins with BEGIN, or BEGIN IMMEDIATE if the option WRITE is set. A statement
    waits for locks for LOCK_WAIT_S; afterwards the busy_timeout is the owner's again.
    """
    ((wait_ms,),) = connection.execute("PRAGMA busy_timeout").fetchall()
    connection.execute(_SHORT_TIMEOUT)
    try:
        with Connection(_engine(), _BorrowedConnection(connection)) as borrowed:
            yield borrowed.execution_options(**options) if options else borrowed
    finally:
        connection.execute(f"PRAGMA busy_timeout = {wait_ms}")


@cache
def _engine() -> Engine:
    """Return the engine that gives borrowed connections their dialect; it never connects."""
    engine = sa.create_engine("sqlite+pysqlite://", hide_parameters=True, poolclass=NullPool)
    # The first connection tells the dialect about SQLite. It is in memory, and closed at once.
    with engine.connect():
        pass
    event.listen(engine, "begin", send_begin)
    return engine
