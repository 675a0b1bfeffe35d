"""Upgrades and downgrades the schema of a catalog database, in one transaction, with Alembic."""

from __future__ import annotations

import asyncio
import logging
import threading
from contextlib import contextmanager
from importlib import import_module, resources
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from model_catalog.concurrency.completion import run_to_completion
from model_catalog.concurrency.threads import to_thread
from model_catalog.connection.error_mapping import to_catalog_error
from model_catalog.connection.online_backup import backup_before_migration
from model_catalog.connection.open_database import OpenDatabase, open_database
from model_catalog.connection.target import Target
from model_catalog.errors import CatalogError, SchemaOutOfDateError, UpgradeFailedError
from model_catalog.mapping.revisions import head_revision, known_revisions
from model_catalog.mapping.tables import Base
from model_catalog.schema.migration_lock import migration_transaction
from model_catalog.schema.revision import (
    APPLICATION_ID,
    VERSION_TABLE,
    current_revision,
    detect_revision,
    require_known_revision,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from alembic.config import Config

# Alembic's `op` and `context` are global to the process. Of two migrations in different threads or
# event loops, one would run its revisions on the connection of the other.
_alembic_lock = threading.Lock()

log = logging.getLogger(__name__)


async def upgrade(target: Target | None = None, revision: str = "head") -> None:
    """
    Upgrade a database to a revision. All migrations run in one transaction.

    A missing SQLite file is created, and the table of the Rust daemon rbee-hive is adopted. If the
    database is at the revision already, no lock is taken. Otherwise one process migrates at a time;
    if it fails, is cancelled or is killed, the database stays unchanged. Before a SQLite file of
    our own with models is migrated, it is backed up to a file beside it; the last three such
    backups are kept. An `AsyncEngine` may belong to a host with other tables: it is not disposed,
    and its database is not backed up. `upgrade` may be called in a running event loop.

    Raises SchemaTooNewError if a newer package wrote the database, and ForeignDatabaseError if the
    database belongs to another program. Raises UpgradeFailedError if the database refuses a
    migration, and CatalogBusyError if another connection locks it for a minute. Raises
    StorageFullError if the disk has no space for the migration or the backup. After each of these
    errors the database is unchanged.
    """
    async with open_database(target, create=True) as database:
        await migrate_to(database, revision)


async def downgrade(target: Target | None, revision: str) -> None:
    """
    Downgrade a database to an older revision. All migrations run in one transaction.

    Data without a column or table in the older revision is deleted. `0001` is rbee-hive's table: if
    a model has more than one version, only the newest is kept.

    Raises the same errors as `upgrade`.
    """
    async with open_database(target, create=False) as database:
        await migrate_to(database, revision, down=True)


async def migrate_to(database: OpenDatabase, revision: str, *, down: bool = False) -> None:
    """Run the migrations from the database's revision to another; see `upgrade`."""
    known = ["base", *known_revisions()]
    goal = head_revision() if revision == "head" else revision
    if goal not in known:
        raise UpgradeFailedError(
            database.name, revision, f"this revision does not exist; known are {', '.join(known)}"
        )
    current = await current_revision(database)
    if _is_at(database, current, goal, down=down):
        return

    cancelled = threading.Event()
    while not _alembic_lock.acquire(blocking=False):  # noqa: ASYNC110 - a lock of all loops
        await asyncio.sleep(0.01)
    try:
        await run_to_completion(
            _migrate(database, goal, cancelled, down=down), on_cancel=cancelled.set
        )
    finally:
        _alembic_lock.release()


def _is_at(database: OpenDatabase, current: str | None, goal: str, *, down: bool) -> bool:
    """Return whether a database is at a revision. Raises if the direction is wrong."""
    require_known_revision(current, database.name)
    # The revisions are numbers of four digits; "base" is before all of them.
    start, end = ("" if revision in (None, "base") else revision for revision in (current, goal))
    if start != end and down != (end < start):
        function = "upgrade" if down else "downgrade"
        raise UpgradeFailedError(
            database.name, goal, f"it is at {current or 'no revision'}: use {function}() instead"
        )
    return start == end


async def _migrate(
    database: OpenDatabase, goal: str, cancelled: threading.Event, *, down: bool
) -> None:
    # The import takes a quarter of a second, so it runs in a thread and only if it is needed.
    command = await to_thread(import_module, "alembic.command")

    def run(connection: sa.Connection, current: str | None) -> None:
        with _stop_when_cancelled(connection, cancelled):
            (command.downgrade if down else command.upgrade)(alembic_config(connection), goal)
        set_application_id(connection, database)
        log.info(
            "migrated the catalog at %s from %s to %s", database.name, current or "nothing", goal
        )

    try:
        async with migration_transaction(
            database.engine, database.name, cancelled, wait_s=database.wait_s
        ) as connection:
            # Another process may have migrated the database before we got the lock.
            current = await connection.run_sync(detect_revision, database)
            if not _is_at(database, current, goal, down=down):
                await backup_if_needed(connection, database, goal)
                await connection.run_sync(run, current)
    except _MigrationCancelledError:
        raise asyncio.CancelledError from None
    except sa.exc.SQLAlchemyError as error:
        reason = to_catalog_error(error, database.name)
        if type(reason) in (CatalogError, SchemaOutOfDateError):
            # A statement was refused, but the database is neither busy, full nor corrupt.
            cause = f"{error.__cause__ or error}"
            raise UpgradeFailedError(database.name, goal, cause) from error
        raise reason from error


async def backup_if_needed(connection: AsyncConnection, database: OpenDatabase, goal: str) -> None:
    """Back up a SQLite file of our own before its migration, if it has models."""
    if database.path is None or not await connection.run_sync(_has_models):
        return
    backup = await backup_before_migration(database.path, database.name, goal)
    log.info("backed up the catalog at %s to %r", database.name, str(backup))


def _has_models(connection: sa.Connection) -> bool:
    return sa.inspect(connection).has_table("models") and bool(
        connection.exec_driver_sql("SELECT EXISTS (SELECT 1 FROM models)").scalar()
    )


def set_application_id(connection: sa.Connection, database: OpenDatabase) -> None:
    """
    Write our application id into the header of a SQLite file of our own.

    Does nothing if the file has another id or other tables: a host's file may be opened by path.
    """
    if database.shared or connection.dialect.name != "sqlite":
        return
    tables = set(sa.inspect(connection).get_table_names()) - {VERSION_TABLE, *Base.metadata.tables}
    if not tables and connection.exec_driver_sql("PRAGMA application_id").scalar() == 0:
        connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")


class _MigrationCancelledError(Exception):
    """The caller of the migration was cancelled."""


@contextmanager
def _stop_when_cancelled(connection: sa.Connection, cancelled: threading.Event) -> Iterator[None]:
    """Raise before the next statement once `cancelled` is set, so that the rollback is orderly."""

    def check(*_: Any) -> None:
        if cancelled.is_set():
            # After a CancelledError SQLAlchemy would invalidate a host's connection.
            raise _MigrationCancelledError

    sa.event.listen(connection, "before_cursor_execute", check)
    try:
        yield
    finally:
        sa.event.remove(connection, "before_cursor_execute", check)


def alembic_config(connection: sa.Connection | None = None) -> Config:
    """Return the Alembic configuration for this package's migrations on a connection."""
    from alembic.config import Config  # noqa: PLC0415 - slow to import, see _migrate

    config = Config()
    # ConfigParser interprets % as a placeholder.
    scripts = str(resources.files("model_catalog.migrations")).replace("%", "%%")
    config.set_main_option("script_location", scripts)
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
