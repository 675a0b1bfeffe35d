"""Upgrades the schema on a connection of a host, for example in the env.py of its own Alembic."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import sqlalchemy as sa

from model_catalog.concurrency.retry import DEFAULT_OPEN_TIMEOUT_S, Backoff
from model_catalog.connection.database_info import (
    database_name,
    driver_connection,
    is_autocommit,
    use_scope,
)
from model_catalog.connection.error_mapping import map_errors
from model_catalog.connection.sqlite_pragmas import require_commit, set_foreign_keys
from model_catalog.connection.timeouts import begin_immediate
from model_catalog.errors import InvalidTargetError, UpgradeFailedError, shown
from model_catalog.schema.host_objects import keep_host_objects
from model_catalog.schema.migrate import (
    log_migration,
    needs_migration,
    resolve_revision,
    run_migration,
    to_migration_error,
)
from model_catalog.schema.migration_lock import (
    broken_references,
    require_references_kept,
)
from model_catalog.schema.postgres_schema import schema_as_default, take_advisory_lock
from model_catalog.schema.revision import detect_revision
from model_catalog.schema.table_locks import lock_tables

_ISOLATION_LEVEL: Final = "READ COMMITTED"
_LOCK_WAIT_MS: Final = int(DEFAULT_OPEN_TIMEOUT_S * 1000)
_FOREIGN_KEYS_ENFORCED: Final = (
    "its connection enforces foreign keys and has an open transaction, in which SQLite cannot stop"
    " that: call upgrade_connection() before the transaction begins"
)


def upgrade_connection(
    connection: sa.Connection, revision: str = "head", *, schema: str | None = None
) -> None:
    """
    Upgrade the database of a host's connection to a revision, like `upgrade`, without a coroutine.

    The connection may be one of a synchronous engine, or the one that `AsyncConnection.run_sync`
    passes. If it is not in a transaction, all migrations run in one transaction, which is
    committed. If it is in a transaction, they are part of it, and the host commits or rolls back.

    On a SQLite connection that enforces foreign keys, a migration must begin the transaction
    itself, because SQLite can stop the enforcement only between transactions. A database that is at
    the revision already is not locked or changed.

    Waits up to a minute for another migration, and for transactions that have read the tables.
    Meanwhile other transactions can read and write; see docs/embedding.md.

    `schema` is the schema of the catalog's tables on PostgreSQL. None is the schema for None in the
    connection's `schema_translate_map`, or else its default schema. The connection's `search_path`
    is the same afterwards.

    Raises the same errors as `upgrade`, and InvalidTargetError for other objects than a connection.
    """
    if not isinstance(connection, sa.Connection):
        raise InvalidTargetError(
            shown(connection),
            "give a Connection, for example in connection.run_sync(upgrade_connection);"
            " an AsyncEngine goes to upgrade()",
        )
    with use_scope(connection, schema):
        name = database_name(connection)
        _upgrade(connection, name, resolve_revision(revision, name))


def _upgrade(connection: sa.Connection, name: str, goal: str) -> None:
    is_own_transaction = not connection.in_transaction()
    try:
        with map_errors(name):
            current = detect_revision(connection, name, shared=True)
    finally:
        if is_own_transaction:
            # SQLAlchemy began a transaction for the reads.
            connection.rollback()
    if not needs_migration(current, goal, name, down=False):
        return
    backoff = Backoff(_LOCK_WAIT_MS / 1000)
    try:
        with (
            _own_transaction(connection, name)
            if is_own_transaction
            else _joined_transaction(connection, name, goal),
            schema_as_default(connection, name),
        ):
            # Another process may have migrated the database before we got the lock.
            current = detect_revision(connection, name, shared=True)
            if needs_migration(current, goal, name, down=False):
                lock_tables(connection, lambda: backoff.remaining_s)
                broken_before = broken_references(connection)
                with keep_host_objects(connection, name, goal):
                    run_migration(connection, current, goal)
                require_references_kept(connection, name, broken_before)
                log_migration(name, current.revision, goal)
    except sa.exc.SQLAlchemyError as error:
        raise to_migration_error(error, name, goal) from error


@contextmanager
def _own_transaction(connection: sa.Connection, name: str) -> Iterator[None]:
    """Run a block in a transaction with the migration lock. Commits, and restores the settings."""
    if connection.dialect.name == "sqlite":
        require_commit(connection.connection, name)
        # Rebuilding a table drops the old table. With foreign keys on, that would delete the rows
        # that refer to it.
        enforced = set_foreign_keys(connection, 0)
        try:
            with _busy_timeout(connection), connection.begin():
                begin_immediate(connection)
                yield
        finally:
            set_foreign_keys(connection, enforced)
        return
    if is_autocommit(connection):
        connection.execution_options(isolation_level=_ISOLATION_LEVEL)
        try:
            with connection.begin():
                _lock_postgresql(connection)
                yield
        finally:
            connection.execution_options(isolation_level="AUTOCOMMIT")
        return
    with connection.begin():
        # In a stricter level the transaction would keep the snapshot from before it got the lock,
        # without the changes of the previous migration.
        connection.exec_driver_sql(f"SET TRANSACTION ISOLATION LEVEL {_ISOLATION_LEVEL}")
        _lock_postgresql(connection)
        yield


@contextmanager
def _joined_transaction(connection: sa.Connection, name: str, goal: str) -> Iterator[None]:
    """Run a block with the migration lock in a savepoint of the host's transaction."""
    if connection.dialect.name == "sqlite":
        if _read_pragma(connection, "foreign_keys"):
            raise UpgradeFailedError(name, goal, _FOREIGN_KEYS_ENFORCED)
        if not driver_connection(connection).in_transaction:
            # sqlite3 itself would begin only at the first INSERT.
            with _busy_timeout(connection):
                begin_immediate(connection)
        with connection.begin_nested():
            yield
        return
    if is_autocommit(connection):
        raise UpgradeFailedError(
            name,
            goal,
            "its connection has the isolation level AUTOCOMMIT, so nothing could be rolled back:"
            " call upgrade_connection() before connection.begin()",
        )
    timeout = connection.exec_driver_sql("SHOW lock_timeout").scalar_one()
    with connection.begin_nested():
        _lock_postgresql(connection)
        yield
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{timeout}'")


def _lock_postgresql(connection: sa.Connection) -> None:
    """Take the migration lock. The server waits for it, and for the locks of later statements."""
    # With a synchronous function in a running event loop, a sleep would block the loop.
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = {_LOCK_WAIT_MS}")
    take_advisory_lock(connection, "pg_advisory_xact_lock")


@contextmanager
def _busy_timeout(connection: sa.Connection) -> Iterator[None]:
    """Let SQLite wait for its write lock in a block."""
    before = _read_pragma(connection, "busy_timeout")
    _execute_pragma(connection, f"PRAGMA busy_timeout = {_LOCK_WAIT_MS}")
    try:
        yield
    finally:
        _execute_pragma(connection, f"PRAGMA busy_timeout = {before}")


def _read_pragma(connection: sa.Connection, name: str) -> int:
    value: int = _execute_pragma(connection, f"PRAGMA {name}")
    return value


def _execute_pragma(connection: sa.Connection, pragma: str) -> Any:
    # Not through SQLAlchemy, which would begin a transaction.
    cursor = connection.connection.cursor()
    try:
        cursor.execute(pragma)
        return (cursor.fetchone() or (None,))[0]
    finally:
        cursor.close()
