"""Upgrades and downgrades the schema of a catalog database, in one transaction, with Alembic."""

from __future__ import annotations

import asyncio
import logging
import threading
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from model_catalog.concurrency.completion import run_to_completion
from model_catalog.concurrency.retry import DEFAULT_OPEN_TIMEOUT_S, retry_while_busy
from model_catalog.concurrency.threads import to_thread
from model_catalog.connection.database_info import catalog_schema
from model_catalog.connection.engines import database_info
from model_catalog.connection.error_mapping import map_errors, to_catalog_error
from model_catalog.connection.online_backup import backup_before_migration
from model_catalog.connection.open_database import OpenDatabase, open_database
from model_catalog.connection.target import Target
from model_catalog.domain import validation
from model_catalog.errors import CatalogError, SchemaOutOfDateError, UpgradeFailedError
from model_catalog.mapping.added_objects import added_tables
from model_catalog.mapping.base import Base
from model_catalog.mapping.revisions import (
    VERSION_TABLE,
    canonical_revision,
    head_revision,
    known_revisions,
    revision_number,
)
from model_catalog.mapping.search_index.inspection import complete_index, needs_completion
from model_catalog.schema.host_objects import keep_host_objects
from model_catalog.schema.migration_lock import (
    MigrationCancelledError,
    MigrationWatch,
    file_transaction,
    migration_transaction,
)
from model_catalog.schema.revision import (
    APPLICATION_ID,
    DatabaseRevision,
    current_revision,
    detect_revision,
    read_from,
    require_known_revision,
)
from model_catalog.schema.revision_runner import create_tables, import_alembic, run_revisions

if TYPE_CHECKING:
    from collections.abc import Coroutine

# One migration at a time on an engine. The pool of a database in memory gives all tasks the same
# connection, so that the database's own lock could not keep two migrations apart.
_engine_locks: WeakKeyDictionary[sa.Engine, threading.Lock] = WeakKeyDictionary()

log = logging.getLogger("model_catalog.schema")


async def upgrade(
    target: Target | None = None,
    revision: str = "head",
    *,
    shared: bool = False,
    schema: str | None = None,
    timeout_s: float = DEFAULT_OPEN_TIMEOUT_S,
) -> None:
    """
    Upgrade a database to a revision. All migrations run in one transaction.

    A missing SQLite file is created, and the table of the Rust daemon rbee-hive is adopted. If the
    database is at the revision already, no lock is taken, unless its search index is to be
    completed. Otherwise one process migrates at a time;
    if it fails, is cancelled or is killed, the database stays unchanged. Before a SQLite file with
    models is migrated, it is backed up to a file beside it; the last three such backups are kept.
    Tables of a catalog without a version table are recognized if they are exactly at a known
    revision, which is then recorded.

    In a database with tables of another program a catalog is created only with `shared=True`, or
    with the program's own `AsyncEngine`. The engine is not disposed. `upgrade` may be called in a
    running event loop, in the env.py of a host's own Alembic, and while that Alembic runs in
    another thread.

    On PostgreSQL `schema` is the schema of the catalog's tables, and is created if it is missing.
    None is the schema for None in the engine's `schema_translate_map`, the environment variable
    `MODEL_CATALOG_SCHEMA` for the default target, or else the default schema.

    `timeout_s` is the number of seconds to wait for locks and for a server. Each statement of a
    migration has this time.

    Raises SchemaTooNewError if a newer package wrote the database, and ForeignDatabaseError if the
    database belongs to another program. Raises UpgradeFailedError if the database refuses a
    migration, and CatalogBusyError if it is locked for `timeout_s` seconds. Raises
    StorageFullError if the disk has no space for the migration or the backup. After each of these
    errors the database is unchanged. Raises CatalogUnavailableError if the server does not answer;
    its `outcome_unknown` tells whether the migration may have been committed.
    """
    validation.seconds("timeout_s", timeout_s)
    async with open_database(
        target, create=True, wait_s=timeout_s, shared=shared, schema=schema
    ) as database:
        await migrate_to(database, revision)
        if resolve_revision(revision, database.name) == head_revision():
            await _complete_search_index(database)


async def downgrade(
    target: Target | None,
    revision: str,
    *,
    schema: str | None = None,
    timeout_s: float = DEFAULT_OPEN_TIMEOUT_S,
) -> None:
    """
    Downgrade a database to an older revision. All migrations run in one transaction.

    Data without a column or table in the older revision is deleted. `0001` is rbee-hive's table: if
    a model has more than one version, only the newest is kept.

    `timeout_s` and the errors are those of `upgrade`.
    """
    validation.seconds("timeout_s", timeout_s)
    async with open_database(target, create=False, wait_s=timeout_s, schema=schema) as database:
        await migrate_to(database, revision, down=True)


async def migrate_to(database: OpenDatabase, revision: str, *, down: bool = False) -> None:
    """Run the migrations from the database's revision to another; see `upgrade`."""
    goal = resolve_revision(revision, database.name)
    watch = MigrationWatch(database)
    if database.sync_engine is not None and goal == head_revision() and not down:
        creation = _create_if_new(database, database.sync_engine, goal, watch)
        current = await run_to_completion(creation, watch.cancelled.set)
    else:
        current = await current_revision(database)
    if needs_migration(current, goal, database.name, down=down):
        await _run_alone(database, _migrate(database, current, goal, watch, down=down), watch)


async def _run_alone(
    database: OpenDatabase, migration: Coroutine[Any, Any, None], watch: MigrationWatch
) -> None:
    """Run a migration to its end, while no other migrates on the engine."""
    is_server = database.engine.dialect.name != "sqlite"
    engine_lock = _engine_locks.setdefault(database.engine.sync_engine, threading.Lock())
    try:
        while not engine_lock.acquire(blocking=False):  # noqa: ASYNC110 - a lock of all loops
            await asyncio.sleep(0.01)
    except BaseException:
        migration.close()
        raise
    try:
        await run_to_completion(
            migration,
            watch.cancel,
            timeout_s=database.wait_s if is_server else None,
            on_timeout=watch.interrupt_if_silent,
        )
    finally:
        engine_lock.release()


async def _complete_search_index(database: OpenDatabase) -> None:
    """Create, rebuild or fill the search index of a database at the newest revision."""
    if not await read_from(database, _needs_completion):
        return
    watch = MigrationWatch(database)

    def run(connection: sa.Connection) -> None:
        with watch.watching_statements(connection):
            complete_index(connection, catalog_schema(connection))

    async def complete() -> None:
        with watch.run:
            try:
                async with migration_transaction(
                    database.engine,
                    database.name,
                    watch.cancelled,
                    create=False,
                    wait_s=database.wait_s,
                    run=watch.run,
                ) as connection:
                    await connection.run_sync(run)
            except MigrationCancelledError:
                raise asyncio.CancelledError from None
            except sa.exc.SQLAlchemyError as error:
                raise to_migration_error(error, database.name, head_revision()) from error

    await _run_alone(database, complete(), watch)
    log.info(
        "completed the search index of the catalog at %s",
        database.name,
        extra={"model_catalog_url": database.name},
    )


def _needs_completion(connection: sa.Connection) -> bool:
    return needs_completion(connection, catalog_schema(connection))


def resolve_revision(revision: str, name: str) -> str:
    """Return a known revision, or "base"; "head" is the newest. `name` is for the error."""
    known = ["base", *known_revisions()]
    goal = head_revision() if revision == "head" else canonical_revision(revision)
    if goal not in known:
        raise UpgradeFailedError(
            name, revision, f"this revision does not exist; known are {', '.join(known)}"
        )
    return goal


def needs_migration(current: DatabaseRevision, goal: str, name: str, *, down: bool) -> bool:
    """
    Return whether a database is not at a revision, or does not record it.

    Raises SchemaTooNewError, and UpgradeFailedError if the direction is wrong.
    """
    require_known_revision(current.revision, name)
    # The ids end with four digits; "base" is before all of them.
    start, end = ("" if at in (None, "base") else at for at in (current.revision, goal))
    if start != end and down != (end < start):
        function = "upgrade" if down else "downgrade"
        raise UpgradeFailedError(
            name, goal, f"it is at {current.revision or 'no revision'}: use {function}() instead"
        )
    return start != end or current.is_unrecorded


def is_created_at_once(current: DatabaseRevision, goal: str) -> bool:
    """Return whether the tables are created in one step, without Alembic and its revisions."""
    return current.is_new and goal == head_revision()


def run_migration(
    connection: sa.Connection, current: DatabaseRevision, goal: str, *, down: bool = False
) -> None:
    """Create the tables of a new database, or run the revisions; see `run_revisions`."""
    if is_created_at_once(current, goal):
        create_tables(connection)
    else:
        run_revisions(connection, current.revision, goal, down=down)


async def _create_if_new(
    database: OpenDatabase, engine: sa.Engine, goal: str, watch: MigrationWatch
) -> DatabaseRevision:
    """
    Create the tables in a file of our own that has none, and return the revision of the file.

    A file with a catalog, or with the table of the hive, is only read. It takes no lock then.
    """
    name, shared = database.name, database.shared

    def create() -> DatabaseRevision:
        watch.raise_if_cancelled()
        with map_errors(name), engine.connect() as connection:
            current = detect_revision(connection, name, shared=shared)
            # SQLAlchemy began a transaction for the reads.
            connection.rollback()
            if not is_created_at_once(current, goal):
                return current
            try:
                with file_transaction(connection, name):
                    # Another process may have created them before we got the lock.
                    current = detect_revision(connection, name, shared=shared)
                    if not is_created_at_once(current, goal):
                        return current
                    _run_watched(connection, database, current, goal, watch)
            except sa.exc.SQLAlchemyError as error:
                raise to_migration_error(error, name, goal) from error
        log_migration(name, None, goal)
        return DatabaseRevision(goal, goal)

    try:
        # In one thread. Over an async connection each statement is three trips to its thread.
        return await retry_while_busy(partial(to_thread, create), database.wait_s)
    except MigrationCancelledError:
        raise asyncio.CancelledError from None


async def _migrate(
    database: OpenDatabase,
    current: DatabaseRevision,
    goal: str,
    watch: MigrationWatch,
    *,
    down: bool,
) -> None:
    if not is_created_at_once(current, goal):
        # The import takes a quarter of a second, so it runs in a thread and only if it is needed.
        await to_thread(import_alembic)

    with watch.run:
        try:
            async with migration_transaction(
                database.engine,
                database.name,
                watch.cancelled,
                create=database.create,
                wait_s=database.wait_s,
                run=watch.run,
            ) as connection:
                # Another process may have migrated the database before we got the lock.
                current = await connection.run_sync(
                    detect_revision, database.name, shared=database.shared
                )
                if needs_migration(current, goal, database.name, down=down):
                    await backup_if_needed(connection, database, goal)
                    await connection.run_sync(
                        _run_watched, database, current, goal, watch, down=down
                    )
                    log_migration(database.name, current.revision, goal)
        except MigrationCancelledError:
            raise asyncio.CancelledError from None
        except sa.exc.SQLAlchemyError as error:
            raise to_migration_error(error, database.name, goal) from error


def _run_watched(
    connection: sa.Connection,
    database: OpenDatabase,
    current: DatabaseRevision,
    goal: str,
    watch: MigrationWatch,
    *,
    down: bool = False,
) -> None:
    """Run a migration in the connection's transaction. A cancellation stops it."""
    with (
        keep_host_objects(connection, database.name, goal),
        watch.watching_statements(connection),
    ):
        run_migration(connection, current, goal, down=down)
    set_application_id(connection, database)


def to_migration_error(error: sa.exc.SQLAlchemyError, name: str, goal: str) -> CatalogError:
    """Return the CatalogError for an error of SQLAlchemy during a migration."""
    reason = to_catalog_error(error, name)
    if type(reason) in (CatalogError, SchemaOutOfDateError):
        # A statement was refused, but the database is neither busy, full nor corrupt.
        return UpgradeFailedError(name, goal, _refusal(error))
    return reason


def _refusal(error: sa.exc.SQLAlchemyError) -> str:
    """Return why a statement was refused, with the function of a trigger that refused it."""
    text = f"{error.__cause__ or error}"
    # asyncpg keeps PostgreSQL's context out of its text; psycopg has it there.
    context = getattr(getattr(error, "driver_exception", None), "context", None)
    return text if not context or context in text else f"{text}\nCONTEXT:  {context}"


def log_migration(name: str, current: str | None, goal: str) -> None:
    """Log a finished migration in one line; `name` contains no password."""
    extra = {"model_catalog_url": name, "model_catalog_revision": goal}
    if current is None:
        log.info("created the catalog at %s at revision %s", name, goal, extra=extra)
    else:
        log.info(
            "migrated the catalog at %s from revision %s to %s", name, current, goal, extra=extra
        )


async def backup_if_needed(connection: AsyncConnection, database: OpenDatabase, goal: str) -> None:
    """Back up a SQLite file before its migration, if it has models."""
    files = database_info(connection.engine.sync_engine).files
    if not files or not await connection.run_sync(_has_models):
        return
    backup = await backup_before_migration(files[0], database.name, revision_number(goal))
    log.info(
        "backed up the catalog at %s to %r",
        database.name,
        str(backup),
        extra={"model_catalog_url": database.name},
    )


def _has_models(connection: sa.Connection) -> bool:
    return sa.inspect(connection).has_table("models") and bool(
        connection.exec_driver_sql("SELECT EXISTS (SELECT 1 FROM models)").scalar()
    )


def set_application_id(connection: sa.Connection, database: OpenDatabase) -> None:
    """
    Write our application id into the header of a SQLite file of our own.

    Does nothing if the file has another id or other tables: a host's file may be opened by path.
    """
    if database.path is None:
        return
    tables = set(sa.inspect(connection).get_table_names()) - {VERSION_TABLE, *Base.metadata.tables}
    tables -= added_tables()
    if not tables and connection.exec_driver_sql("PRAGMA application_id").scalar() == 0:
        connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")
