"""The schema of a catalog database: where it is, and how it gets to where it should be."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache
from importlib import import_module, resources
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from model_catalog.concurrency.completion import retry_while_busy, run_to_completion
from model_catalog.concurrency.threads import to_thread
from model_catalog.connection.error_mapping import map_errors, to_catalog_error
from model_catalog.connection.online_backup import backup_before_migration
from model_catalog.connection.open_database import OpenDatabase, open_database
from model_catalog.connection.target import Target
from model_catalog.connection.timeouts import LOCK_WAIT_S, set_timeouts
from model_catalog.errors import (
    CatalogError,
    ForeignDatabaseError,
    SchemaOutOfDateError,
    SchemaTooNewError,
    UpgradeFailedError,
)
from model_catalog.mapping.tables import REVISION, Base
from model_catalog.schema.migration_lock import migration_transaction

if TYPE_CHECKING:
    from collections.abc import Iterator

    from alembic.config import Config

VERSION_TABLE: Final = "model_catalog_version"
"""Our own: a host's `alembic_version` in the same database is the host's."""

APPLICATION_ID: Final = 0x4D436174
"""`MCat`, in the header of a SQLite file of our own: https://www.sqlite.org/fileformat2.html#application_id"""

_REVISION_0001_COLUMNS: Final = {
    "reference",
    "provider",
    "local_path",
    "size_bytes",
    "downloaded_at",
}
_HIVE_KEYS: Final = (["reference", "provider"], ["reference"])

# Alembic's `op` and `context` are global to the process: of two upgrades at once, in whatever
# threads or loops, one would run its revisions on the other's connection.
_alembic = threading.Lock()

log = logging.getLogger(__name__)


@cache
def revisions() -> list[str]:
    """The revisions this package knows, oldest first. Alembic is slow to import, and not asked."""
    names = (entry.name for entry in resources.files("model_catalog.migrations.versions").iterdir())
    return sorted(match[1] for name in names if (match := re.fullmatch(r"(\d{4})_\w+\.py", name)))


async def schema_state(target: Target | None = None) -> tuple[str | None, str]:
    """
    The revision a catalog database is at, and the newest this package knows.

    None for a database with no catalog in it yet, and for one that the Rust hive wrote. Takes no
    lock and writes nothing. Raises ForeignDatabaseError for another program's.
    """
    async with open_database(target, create=False) as database:
        return await current_revision(database), REVISION


async def upgrade(target: Target | None = None, revision: str = "head") -> None:
    """
    Bring a database to a revision, all the way or not at all.

    A SQLite file that is not there is created, and one that the Rust hive wrote is adopted. When
    there is nothing to do, no lock is taken. Otherwise one migrator runs at a time, whatever
    process it is in, and what it does is one transaction: if it fails, is cancelled or is killed,
    the database is as it was. Of a SQLite file of our own that has models in it a copy is made
    first, beside it; the last three stay. An `AsyncEngine` may belong to a host with tables of its
    own: it is not disposed, and its database is not copied. Safe in a running loop.

    Raises SchemaTooNewError for a database from a newer package, ForeignDatabaseError for one of
    another program, UpgradeFailedError when the database refuses a migration, CatalogBusyError
    after a minute of somebody else's lock, and StorageFullError where there is no room for it or
    for the copy. Each leaves it untouched.
    """
    async with open_database(target, create=True) as database:
        await migrate_to(database, revision)


async def downgrade(target: Target | None, revision: str) -> None:
    """
    Take a database back to an older revision, all the way or not at all; what has no room goes.

    `0001` is the Rust hive's table: of several versions of one model only the newest stays.

    Raises what `upgrade` raises.
    """
    async with open_database(target, create=False) as database:
        await migrate_to(database, revision, down=True)


async def current_revision(database: OpenDatabase) -> str | None:
    """The revision a database is at. Raises ForeignDatabaseError."""
    threads = database.sync_engine

    def look(threads: sa.Engine) -> str | None:
        with map_errors(database.name), threads.connect() as connection:
            return detect_revision(connection, database)

    async def once() -> str | None:
        if threads is not None:
            return await to_thread(look, threads)
        with map_errors(database.name):
            async with database.engine.connect() as connection:
                await set_timeouts(connection, LOCK_WAIT_S)
                return await connection.run_sync(detect_revision, database)

    # To its end: a driver that is cancelled while it connects leaves a connection nobody knows of.
    return await retry_while_busy(once, database.wait_s)


def detect_revision(connection: sa.Connection, database: OpenDatabase) -> str | None:
    """
    The revision of the database behind a connection; None where a catalog may begin.

    Raises ForeignDatabaseError where it may not: a table `models` that is not ours, or, unless it
    is shared on purpose, a SQLite file in which another program keeps its tables.
    """
    version = _recorded(connection)
    if version is None and (found := _foreign(connection, shared=database.shared)):
        # To PostgreSQL, and to a host's sqlite3, every statement sees what is committed by then:
        # the tables may be those of somebody who has migrated since the first look.
        version = _recorded(connection)
        if version is None:
            raise ForeignDatabaseError(database.name, found)
    return version


def _recorded(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    version: str | None = connection.execute(
        sa.text(f"SELECT version_num FROM {VERSION_TABLE}")  # noqa: S608 - our own name
    ).scalar()
    return version


def _foreign(connection: sa.Connection, *, shared: bool) -> str | None:
    """What another program has where a catalog would be."""
    inspector = sa.inspect(connection)
    if inspector.has_table("models"):
        columns = {column["name"] for column in inspector.get_columns("models")}
        key = inspector.get_pk_constraint("models")["constrained_columns"]
        if columns != _REVISION_0001_COLUMNS or key not in _HIVE_KEYS:
            return f"a table 'models' with the columns {', '.join(sorted(columns))}"
        return None
    if not shared and connection.dialect.name == "sqlite":
        program = connection.exec_driver_sql("PRAGMA application_id").scalar()
        if program not in (0, APPLICATION_ID):
            return f"the application id {program}"
        tables = sorted(set(inspector.get_table_names()) - {VERSION_TABLE})
        if tables:
            listed = ", ".join(map(repr, tables[:3])) + (", ..." if tables[3:] else "")
            return f"the tables {listed} and no catalog"
    return None


def require_known_revision(current: str | None, name: str) -> None:
    """Raise SchemaTooNewError for a revision this package does not know."""
    if current is not None and current not in revisions():
        raise SchemaTooNewError(name, current, REVISION)


async def require_current_schema(database: OpenDatabase) -> None:
    """Raise SchemaOutOfDateError or SchemaTooNewError for a database not at our revision."""
    current = await current_revision(database)
    require_known_revision(current, database.name)
    if current != REVISION:
        raise SchemaOutOfDateError(database.name, current, REVISION)


async def migrate_to(database: OpenDatabase, revision: str, *, down: bool = False) -> None:
    """Run the migrations between where a database is and a revision."""
    known = ["base", *revisions()]
    goal = REVISION if revision == "head" else revision
    if goal not in known:
        raise UpgradeFailedError(
            database.name, revision, f"there is no such revision, only {', '.join(known)}"
        )
    current = await current_revision(database)
    if _is_there(database, current, goal, down=down):
        return

    cancelled = threading.Event()
    while not _alembic.acquire(blocking=False):  # noqa: ASYNC110 - of all loops and threads
        await asyncio.sleep(0.01)
    try:
        await run_to_completion(
            _migrate(database, goal, cancelled, down=down), on_cancel=cancelled.set
        )
    finally:
        _alembic.release()


def _is_there(database: OpenDatabase, current: str | None, goal: str, *, down: bool) -> bool:
    """Whether a database is where it is to go. Raises for one that would go the other way."""
    require_known_revision(current, database.name)
    # The revisions are numbered, and "base" is before them all.
    start, end = ("" if at in (None, "base") else at for at in (current, goal))
    if start != end and down != (end < start):
        verb = "upgrade" if down else "downgrade"
        raise UpgradeFailedError(
            database.name, goal, f"it is at {current or 'no revision'}: {verb}() goes that way"
        )
    return start == end


async def _migrate(
    database: OpenDatabase, goal: str, cancelled: threading.Event, *, down: bool
) -> None:
    # A quarter of a second, needed once in a life: not at import, and not in the loop's thread.
    command = await to_thread(import_module, "alembic.command")

    def run(connection: sa.Connection, current: str | None) -> None:
        with _stopping(connection, cancelled):
            (command.downgrade if down else command.upgrade)(configuration(connection), goal)
        set_application_id(connection, database)
        log.info("the catalog at %s went from %s to %s", database.name, current or "nothing", goal)

    try:
        exclusively = migration_transaction(
            database.engine, database.name, cancelled, wait_s=database.wait_s
        )
        async with exclusively as connection:
            # Whoever had the lock before may have gone there, or past it.
            current = await connection.run_sync(detect_revision, database)
            if not _is_there(database, current, goal, down=down):
                await backup_if_needed(connection, database, goal)
                await connection.run_sync(run, current)
    except _CallerGoneError:
        raise asyncio.CancelledError from None
    except sa.exc.SQLAlchemyError as error:
        reason = to_catalog_error(error, database.name)
        if type(reason) in (CatalogError, SchemaOutOfDateError):
            # A statement of a migration was refused: that is no busy or broken database.
            cause = f"{error.__cause__ or error}"
            raise UpgradeFailedError(database.name, goal, cause) from error
        raise reason from error


async def backup_if_needed(connection: AsyncConnection, database: OpenDatabase, goal: str) -> None:
    """Copy a SQLite file of our own before it is migrated, where models would be lost with it."""
    if database.path is None or not await connection.run_sync(_has_models):
        return
    copy = await backup_before_migration(database.path, database.name, goal)
    log.info("the catalog at %s was copied to %r", database.name, str(copy))


def _has_models(connection: sa.Connection) -> bool:
    return sa.inspect(connection).has_table("models") and bool(
        connection.exec_driver_sql("SELECT EXISTS (SELECT 1 FROM models)").scalar()
    )


def set_application_id(connection: sa.Connection, database: OpenDatabase) -> None:
    """
    Write our name into the header of a SQLite file of our own.

    Not over another's, and not where there are other tables beside ours: by its path a host's file
    may be opened as well.
    """
    if database.shared or connection.dialect.name != "sqlite":
        return
    tables = set(sa.inspect(connection).get_table_names()) - {VERSION_TABLE, *Base.metadata.tables}
    if not tables and connection.exec_driver_sql("PRAGMA application_id").scalar() == 0:
        connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")


class _CallerGoneError(Exception):
    """Nobody waits for the migration any more."""


@contextmanager
def _stopping(connection: sa.Connection, cancelled: threading.Event) -> Iterator[None]:
    """Stop before the next statement once the caller is gone: the rollback is then a clean one."""

    def look(*_: Any) -> None:
        if cancelled.is_set():
            # For a CancelledError SQLAlchemy would throw a host's connection away.
            raise _CallerGoneError

    sa.event.listen(connection, "before_cursor_execute", look)
    try:
        yield
    finally:
        sa.event.remove(connection, "before_cursor_execute", look)


def configuration(connection: sa.Connection | None = None) -> Config:
    """Alembic's configuration for the migrations of this package, run on a connection."""
    from alembic.config import Config  # noqa: PLC0415 - see _migrate

    found = Config()
    # ConfigParser takes a % for the beginning of a placeholder.
    scripts = str(resources.files("model_catalog.migrations")).replace("%", "%%")
    found.set_main_option("script_location", scripts)
    found.set_main_option("path_separator", "os")
    found.attributes["connection"] = connection
    return found


async def check_schema(target: Target | None = None) -> list[str]:
    """
    What is wrong with a catalog database, a sentence each; empty when it is sound.

    Its revision, whether its tables are as this package expects them, and on SQLite whether its
    pages and its references hold together. Writes nothing.
    """
    async with open_database(target, create=False) as database:
        try:
            await require_current_schema(database)
        except SchemaOutOfDateError as error:
            return [str(error)]
        return await run_to_completion(_all_problems(database))


async def _all_problems(database: OpenDatabase) -> list[str]:
    with map_errors(database.name):
        async with database.engine.connect() as connection:
            return await connection.run_sync(_problems)


def _problems(connection: sa.Connection) -> list[str]:
    from alembic.autogenerate import compare_metadata  # noqa: PLC0415 - see _migrate
    from alembic.migration import MigrationContext  # noqa: PLC0415

    found: list[str] = []
    if connection.dialect.name == "sqlite":
        for pragma in ("integrity_check", "foreign_key_check"):
            rows = connection.exec_driver_sql(f"PRAGMA {pragma}").all()
            found += [f"{pragma}: {row[0]}" for row in rows if row[0] != "ok"]
        found += _odd_values(connection)
    context = MigrationContext.configure(
        connection,
        opts={"version_table": VERSION_TABLE, **autogenerate_options(connection.dialect.name)},
    )
    found += [f"schema: {difference}" for difference in compare_metadata(context, Base.metadata)]
    return found


def _odd_values(connection: sa.Connection) -> list[str]:
    """What SQLite takes for sound and no catalog has written: texts that are none, and numbers."""
    found = []
    for table in Base.metadata.sorted_tables:
        for column in table.columns:
            kind = "integer" if column.type._type_affinity is sa.Integer else "text"  # noqa: SLF001
            value: sa.ColumnElement[Any] = sa.literal_column(f'"{column.name}"')
            odd = sa.or_(
                sa.func.typeof(value).not_in((kind, "null")),
                # SQLite's own functions end a text there.
                sa.func.instr(value, sa.func.char(0)) > 0,
            )
            count = connection.execute(sa.select(sa.func.count()).select_from(table).where(odd))
            if number := count.scalar_one():
                found.append(f"values: {number} in {table.name}.{column.name} are no {kind}")
    return found


def autogenerate_options(dialect: str) -> dict[str, Any]:
    """How Alembic compares the tables with the mapping: ours alone, names and defaults as well."""

    def ours(name: str | None, kind: str, _parents: dict[str, str | None]) -> bool:
        return kind != "table" or name in Base.metadata.tables

    def sqlite_default(*arguments: Any) -> bool | None:
        # SQLite has no IDENTITY: the column is its rowid by another name.
        return False if arguments[2].identity is not None else None

    compare: bool | Callable[..., bool | None] = sqlite_default if dialect == "sqlite" else True
    return {
        "include_name": ours,
        "compare_server_default": compare,
        "autogenerate_plugins": ["alembic.autogenerate.*", "alembic.ext.checkconstraint_byname"],
    }
