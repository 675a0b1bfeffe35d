"""Locks the tables of a catalog on PostgreSQL before a migration changes them."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Final

import sqlalchemy as sa

from model_catalog.concurrency.retry import MIN_TIMEOUT_S
from model_catalog.connection.database_info import catalog_schema
from model_catalog.connection.error_mapping import is_lock_refused
from model_catalog.connection.timeouts import LOCK_WAIT_S, lock_timeout
from model_catalog.mapping.added_objects import added_tables
from model_catalog.mapping.base import Base
from model_catalog.schema.postgres_schema import quote_name

_PAUSE_S: Final = 0.2


def lock_tables(
    connection: sa.Connection,
    remaining_s: Callable[[], float],
    cancelled: threading.Event | None = None,
) -> None:
    """
    Lock the existing tables of the catalog for a migration; does nothing on SQLite.

    ALTER TABLE needs a lock that conflicts with a SELECT. While it waits for a transaction that has
    read the table, the server lets every later SELECT wait too. So this waits 0.1 s for the lock of
    a table. Then it releases all locks that it has, pauses for 0.2 s, and tries again. After it no
    statement of the migration waits for a reader.

    Uses a savepoint of the open transaction, and leaves `lock_timeout` at the remaining time.
    `remaining_s` returns the seconds that are left. When there is no time for another attempt,
    raises the error of the server: SQLSTATE 55P03. Returns early once `cancelled` is set.
    """
    tables = _existing_tables(connection)
    if not tables:
        return
    while cancelled is None or not cancelled.is_set():
        try:
            with connection.begin_nested():
                _lock_once(connection, tables, max(remaining_s(), MIN_TIMEOUT_S))
        except sa.exc.DBAPIError as error:
            if not is_lock_refused(error) or remaining_s() <= LOCK_WAIT_S:
                raise
        else:
            connection.exec_driver_sql(lock_timeout(max(remaining_s(), MIN_TIMEOUT_S)))
            return
        # The server sleeps: a synchronous function may run in the thread of an event loop.
        # Another attempt must fit into the remaining time.
        pause_s = max(0.0, min(_PAUSE_S, remaining_s() - LOCK_WAIT_S))
        pause_s *= random.uniform(0.75, 1.0)  # noqa: S311 - not for security
        connection.execute(sa.select(sa.func.pg_sleep(pause_s)))


def _lock_once(connection: sa.Connection, tables: str, remaining_s: float) -> None:
    # No SELECT and no write conflicts with this lock, but VACUUM does. The server ends an automatic
    # VACUUM only for a lock that has waited for `deadlock_timeout`, by default one second.
    connection.exec_driver_sql(lock_timeout(remaining_s))
    connection.exec_driver_sql(f"LOCK TABLE {tables} IN SHARE UPDATE EXCLUSIVE MODE")
    connection.exec_driver_sql(lock_timeout(min(LOCK_WAIT_S, remaining_s)))
    connection.exec_driver_sql(f"LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE")


def _existing_tables(connection: sa.Connection) -> str:
    """Return the quoted names of the catalog's tables that exist, separated by commas."""
    if connection.dialect.name != "postgresql":
        return ""
    existing = set(sa.inspect(connection).get_table_names(catalog_schema(connection)))
    # A SELECT reads `models` first, then the child tables.
    names = (*(table.name for table in Base.metadata.sorted_tables), *sorted(added_tables()))
    return ", ".join(quote_name(name) for name in names if name in existing)
