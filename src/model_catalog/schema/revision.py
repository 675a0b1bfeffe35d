"""Schema revisions: which ones exist, and which one a database is at."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple, TypeVar

import sqlalchemy as sa

from model_catalog.concurrency.retry import DEFAULT_OPEN_TIMEOUT_S, Backoff, retry_while_busy
from model_catalog.concurrency.threads import to_thread
from model_catalog.connection.database_info import catalog_schema, driver_connection
from model_catalog.connection.error_mapping import map_errors
from model_catalog.connection.interruption.interruptible_run import InterruptibleRun
from model_catalog.connection.interruption.running import (
    SERVER_GRACE_S,
    driver_working,
    run_with_retries,
)
from model_catalog.connection.open_database import OpenDatabase, open_database
from model_catalog.connection.target import Target, database_file_of
from model_catalog.connection.timeouts import set_timeouts
from model_catalog.domain import validation
from model_catalog.errors import (
    ForeignDatabaseError,
    SchemaOutOfDateError,
    SchemaTooNewError,
    command,
)
from model_catalog.mapping.revisions import (
    VERSION_TABLE,
    canonical_revision,
    head_revision,
    known_revisions,
)
from model_catalog.mapping.search_index.objects import has_index
from model_catalog.schema.postgres_schema import require_schema, require_usable_schema
from model_catalog.schema.recognition import recognize_revision

T = TypeVar("T")

APPLICATION_ID: Final = 0x4D436174
"""`MCat`, in the header of our own SQLite files: https://www.sqlite.org/fileformat2.html#application_id"""

_REVISION_0001_COLUMNS: Final = {
    "reference",
    "provider",
    "local_path",
    "size_bytes",
    "downloaded_at",
}
# Tables with these columns and more are the catalog's own, at revision 0002 or later.
_CATALOG_COLUMNS: Final = _REVISION_0001_COLUMNS | {"id", "version"}
# The two primary keys that the Rust daemon rbee-hive has created the table with.
_HIVE_KEYS: Final = (["reference", "provider"], ["reference"])
_CHANGE_OR_NAME: Final = (
    "Change the tables so that they equal those of that revision, or name another database"
)


class DatabaseRevision(NamedTuple):
    """The revision of a database, and how it is known."""

    revision: str | None
    """The id of the revision; None if the database has no catalog yet."""
    recorded: str | None
    """The text in the version table, perhaps an id of release 0.1.0; None without such a table."""
    is_new: bool = False
    """Whether there is no table `models` either, so that all tables can be created at once."""

    @property
    def is_unrecorded(self) -> bool:
        """Whether the tables are at a known revision that no version table names."""
        return self.revision is not None and self.recorded is None


class SchemaState(tuple[str | None, str]):  # noqa: SLOT001 - a pair with an attribute
    """The revision of a database, and the newest revision that this package knows."""

    has_search_index: bool = False
    """
    Whether the filter `search` has an index; without one it reads every model.

    It needs the newest revision, and SQLite with FTS5 from 3.34 or PostgreSQL with `pg_trgm`.
    """


async def schema_state(
    target: Target | None = None,
    *,
    shared: bool = False,
    schema: str | None = None,
    timeout_s: float = DEFAULT_OPEN_TIMEOUT_S,
) -> SchemaState:
    """
    Return the revision of a catalog database, and the newest revision that this package knows.

    The `has_search_index` of the pair tells whether a search reads an index, or every model.

    The first is None for an empty database, and for a file of the Rust daemon rbee-hive, which
    records no revision. Takes no write lock and changes nothing. Waits `timeout_s` seconds for
    locks and for a server. `schema` is as in `upgrade`.

    Raises ForeignDatabaseError for another program's database, unless it has no table `models` and
    `shared` is true, and CatalogUnavailableError for a missing file or schema.
    """
    validation.seconds("timeout_s", timeout_s)
    async with open_database(
        target, create=False, wait_s=timeout_s, shared=shared, schema=schema
    ) as database:
        current = (await current_revision(database)).revision
        state = SchemaState((current, head_revision()))
        if current == head_revision():
            state.has_search_index = await read_from(database, _has_search_index)
        return state


def _has_search_index(connection: sa.Connection) -> bool:
    return has_index(connection, catalog_schema(connection))


async def current_revision(database: OpenDatabase) -> DatabaseRevision:
    """
    Return the revision of an open database.

    Raises ForeignDatabaseError, and CatalogBusyError if it stays locked for `database.wait_s`.
    """
    return await read_from(
        database, partial(detect_revision, name=database.name, shared=database.shared)
    )


async def read_from(database: OpenDatabase, function: Callable[[sa.Connection], T]) -> T:
    """
    Return what a function reads from an open database, without a lock.

    Raises CatalogBusyError if the database stays locked for `database.wait_s`.
    """
    sync_engine = database.sync_engine

    def read(engine: sa.Engine) -> T:
        with map_errors(database.name), engine.connect() as connection:
            return function(connection)

    if sync_engine is not None:
        return await retry_while_busy(lambda: to_thread(read, sync_engine), database.wait_s)

    async def attempt(run: InterruptibleRun, lock_wait_s: float) -> T:
        with run:
            async with database.engine.connect() as connection:
                run.set_connection(connection)
                await set_timeouts(connection, lock_wait_s, math.inf)
                if not database.create:
                    await connection.run_sync(require_schema, database.name)
                found = await connection.run_sync(function)
                run.mark_read_done()
            return found
        return run.result  # type: ignore[no-any-return]

    with driver_working(database.engine.dialect.name):
        return await run_with_retries(
            attempt, Backoff(database.wait_s), database.name, SERVER_GRACE_S, writes=False
        )


def detect_revision(connection: sa.Connection, name: str, *, shared: bool) -> DatabaseRevision:
    """
    Return the revision of the connection's database; None if a catalog can be created there.

    Without a version table, tables that are exactly at a known revision are recognized. Raises
    ForeignDatabaseError if the database has a table `models` that is not ours. Unless `shared`, it
    also raises if another program has tables in a database without a catalog.
    """
    recorded = _recorded_revision(connection)
    revision = None
    if recorded is None:
        require_usable_schema(connection, name)
        revision, error = _examine_tables(connection, name, shared=shared)
        if revision is not None or error is not None:
            # On PostgreSQL, and with a host's sqlite3, each statement sees all commits so far.
            # Another process may have migrated the database after the first look: look again.
            recorded = _recorded_revision(connection)
        if recorded is None and error is not None:
            raise error
    if recorded is not None:
        revision = canonical_revision(recorded)
    is_new = revision is None and not _has_models(connection)
    return DatabaseRevision(revision, recorded, is_new)


def is_current_file(connection: sa.Connection) -> bool:
    """
    Return whether a SQLite file records the head revision. One statement, without SQLAlchemy.

    False may also mean that it has no version table: then `detect_revision` examines it.
    """
    try:
        rows = driver_connection(connection).execute(f"SELECT version_num FROM {VERSION_TABLE}")  # noqa: S608
        return bool(rows.fetchall() == [(head_revision(),)])
    except sqlite3.OperationalError as error:
        if error.sqlite_errorname != "SQLITE_ERROR":
            raise
        return False


def _has_models(connection: sa.Connection) -> bool:
    return sa.inspect(connection).has_table("models", catalog_schema(connection))


def _recorded_revision(connection: sa.Connection) -> str | None:
    schema = catalog_schema(connection)
    if not sa.inspect(connection).has_table(VERSION_TABLE, schema):
        return None
    table = sa.table(VERSION_TABLE, sa.column("version_num", sa.String()), schema=schema)
    return connection.scalar(sa.select(table.c.version_num))


def _examine_tables(
    connection: sa.Connection, name: str, *, shared: bool
) -> tuple[str | None, ForeignDatabaseError | None]:
    """
    Examine a database without a recorded revision.

    Returns the revision that its tables have, and the error if they are another program's. At most
    one of the two is not None.
    """
    inspector = sa.inspect(connection)
    schema = catalog_schema(connection)
    if not inspector.has_table("models", schema):
        other = None if shared else _other_content(connection)
        if other is None:
            return None, None
        advice = (
            "Name another database, or create the catalog beside these tables: upgrade(target, "
            f"shared=True), {command('db', 'upgrade', '--shared', target=name)}, or your own "
            "AsyncEngine"
        )
        return None, ForeignDatabaseError(name, other, advice)
    columns = {column["name"] for column in inspector.get_columns("models", schema)}
    key = inspector.get_pk_constraint("models", schema)["constrained_columns"]
    if columns == _REVISION_0001_COLUMNS and key in _HIVE_KEYS:
        return None, None
    if columns >= _CATALOG_COLUMNS:
        revision, differences = recognize_revision(connection)
        if revision is not None:
            return revision, None
        found = f"the tables of a catalog, but no table '{VERSION_TABLE}'; they are {differences}"
        return None, ForeignDatabaseError(name, found, _CHANGE_OR_NAME)
    found = f"a table 'models' with the columns {', '.join(sorted(columns))}"
    return None, ForeignDatabaseError(name, found, _own_place(connection, name))


def _own_place(connection: sa.Connection, name: str) -> str:
    """Say where a catalog can be beside a program that has a table `models` of its own."""
    if connection.dialect.name == "postgresql":
        return (
            "The catalog needs a table of that name: give it a schema of its own, for example with "
            "schema='model_catalog' (`--schema model_catalog`), or name another database"
        )
    path = database_file_of(name)
    free = "another file" if path is None else repr(str(path.with_name("model_catalog.db")))
    return (
        "The catalog needs a table of that name: give it a file of its own, for example "
        f"upgrade({free}) and open_catalog({free})"
    )


def _other_content(connection: sa.Connection) -> str | None:
    """Describe what another program has in a database without a table `models`, or None."""
    if connection.dialect.name == "sqlite":
        application_id = connection.exec_driver_sql("PRAGMA application_id").scalar()
        if application_id not in (0, APPLICATION_ID):
            return f"the application id {application_id}"
    names = sa.inspect(connection).get_table_names(catalog_schema(connection))
    tables = sorted(set(names) - {VERSION_TABLE})
    if not tables:
        return None
    listed = ", ".join(map(repr, tables[:3])) + (", ..." if tables[3:] else "")
    return f"the tables {listed} and no catalog"


def require_known_revision(current: str | None, name: str) -> None:
    """Raise SchemaTooNewError if this package does not contain the revision."""
    if current is not None and current not in known_revisions():
        raise SchemaTooNewError(name, current, head_revision())


async def require_current_schema(database: OpenDatabase) -> None:
    """Raise SchemaOutOfDateError or SchemaTooNewError unless it is at the head revision."""
    current = (await current_revision(database)).revision
    require_known_revision(current, database.name)
    if current != head_revision():
        raise SchemaOutOfDateError(database.name, current, head_revision())
