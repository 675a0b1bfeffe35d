"""Statements that a driver of PostgreSQL executes without SQLAlchemy, in the catalog's sessions."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

from sqlalchemy import Connection, Row, Select
from sqlalchemy.exc import DBAPIError

from model_catalog.connection.postgresql.dropping import drop_connection, is_closed

IS_OWN: Final = "model_catalog_own_session"
"""Key of Connection.info: whether the session is the catalog's own; see `own_sessions`."""

_ROWS_AT_ONCE: Final = 1000


def is_direct(connection: Connection) -> bool:
    """
    Return whether the driver of a connection may execute statements without SQLAlchemy.

    The session has to be the catalog's own, and nothing may listen to its statements. A tracer such
    as OpenTelemetry listens to those of all engines.
    """
    if not connection.info.get(IS_OWN):
        return False
    engine = connection.engine
    # Such a collection is true if it has a listener, also one of the class.
    events: Any = engine.dispatch
    return not (
        events.before_cursor_execute
        or events.after_cursor_execute
        or events.before_execute
        or events.after_execute
        or engine.logger.isEnabledFor(logging.INFO)
    )


def fetch_from_driver(
    connection: Connection, statement: str, names: Sequence[str], values: Sequence[Any]
) -> Sequence[Sequence[Any]]:
    """
    Execute a statement on the driver of a connection, and return all rows.

    `names` are those of the parameters, and `values` their values in the same order. The driver
    prepares the statement. Raises DBAPIError. Call it in a greenlet of SQLAlchemy.
    """
    rows: Sequence[Sequence[Any]]
    if connection.dialect.driver == "asyncpg":
        rows = _run(connection, statement, lambda driver: driver.fetch(statement, *values))
    else:
        parameters = dict(zip(names, values, strict=True))
        rows = _run(
            connection, statement, lambda driver: _fetch_with_psycopg(driver, statement, parameters)
        )
    return rows


def execute_on_driver(connection: Connection, statement: str) -> bool:
    """
    Execute a SELECT without parameters in the simple query protocol; return whether it found a row.

    Raises DBAPIError. Call it in a greenlet of SQLAlchemy.
    """
    if connection.dialect.driver == "asyncpg":
        status = _run(connection, statement, lambda driver: driver.execute(statement))
        return bool(status != "SELECT 0")
    cursor = _run(connection, statement, lambda driver: driver.execute(statement, prepare=False))
    return bool(cursor.rowcount)


def fetch_in_parts(
    connection: Connection, statement: Select[Any], size: int
) -> Iterator[Sequence[Row[Any]]]:
    """
    Execute a SELECT, and yield its rows in lists of at most `size`.

    On a server in a transaction, only such a part is in memory at a time. Raises DBAPIError. Call
    it in a greenlet of SQLAlchemy.
    """
    if connection.dialect.driver == "psycopg":
        _use_quiet_cursors(connection)
    with _driver_errors(connection, statement):
        result = connection.execute(statement)
    try:
        parts = result.partitions(size)
        while True:
            with _driver_errors(connection, statement):
                part = next(parts, None)
            if part is None:
                return
            yield part
    finally:
        result.close()


def _use_quiet_cursors(connection: Connection) -> None:
    """
    Let psycopg give a cursor of the server up without a warning.

    A call that is interrupted while it executes cannot close its cursor. The server closes it
    at the end of the transaction.
    """
    driver: Any = connection.connection.driver_connection
    driver.server_cursor_factory = _quiet_cursor_class()


@cache
def _quiet_cursor_class() -> type:
    from psycopg import AsyncServerCursor  # noqa: PLC0415 - an extra

    return type("QuietServerCursor", (AsyncServerCursor,), {"__del__": lambda _cursor: None})


@contextmanager
def _driver_errors(connection: Connection, statement: Select[Any]) -> Iterator[None]:
    """
    Raise the errors of a driver as DBAPIError.

    SQLAlchemy 2.1 passes those of asyncpg on as they are when it fetches from a server-side cursor.
    """
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith("asyncpg."):
            raise
        raise _as_dbapi_error(connection, str(statement), error) from error


def _as_dbapi_error(connection: Connection, statement: str, error: Exception) -> DBAPIError:
    """Wrap an error of a driver, and drop its connection if it is lost."""
    adapted: Any = connection.connection.dbapi_connection
    driver = adapted.driver_connection
    is_lost = is_closed(driver) or isinstance(error, OSError)
    if is_lost:
        drop_connection(driver)
        connection.invalidate()
    return DBAPIError(statement, None, error, hide_parameters=True, connection_invalidated=is_lost)


def _run(connection: Connection, statement: str, execute: Callable[[Any], Awaitable[Any]]) -> Any:
    adapted: Any = connection.connection.dbapi_connection
    try:
        return adapted.run_async(execute)
    except UnicodeEncodeError:
        raise
    except Exception as error:
        raise _as_dbapi_error(connection, statement, error) from error
    except BaseException:
        # After a cancellation, asyncpg asks the server to cancel the statement, and `invalidate`
        # waits for that. SQLAlchemy does the same.
        connection.invalidate()
        raise


async def _fetch_with_psycopg(
    driver: Any, statement: str, parameters: dict[str, Any]
) -> list[tuple[Any, ...]]:
    cursor = await driver.execute(statement, parameters)
    rows: list[tuple[Any, ...]] = await cursor.fetchmany(_ROWS_AT_ONCE)
    if len(rows) == _ROWS_AT_ONCE:
        # psycopg makes the tuples of 100,000 rows in 0.2 s. The event loop goes on meanwhile.
        while part := await cursor.fetchmany(_ROWS_AT_ONCE):
            rows += part
            await asyncio.sleep(0)
    return rows
