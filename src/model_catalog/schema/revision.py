"""Schema revisions: which ones exist, and which one a database is at."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from model_catalog.concurrency.retry import retry_while_busy
from model_catalog.concurrency.threads import to_thread
from model_catalog.connection.error_mapping import map_errors
from model_catalog.connection.open_database import OpenDatabase, open_database
from model_catalog.connection.target import Target
from model_catalog.connection.timeouts import LOCK_WAIT_S, set_timeouts
from model_catalog.errors import ForeignDatabaseError, SchemaOutOfDateError, SchemaTooNewError
from model_catalog.mapping.revisions import head_revision, known_revisions

VERSION_TABLE: Final = "model_catalog_version"
"""The table with the revision. It is not `alembic_version`, which a host may use itself."""

APPLICATION_ID: Final = 0x4D436174
"""`MCat`, in the header of our own SQLite files: https://www.sqlite.org/fileformat2.html#application_id"""

_REVISION_0001_COLUMNS: Final = {
    "reference",
    "provider",
    "local_path",
    "size_bytes",
    "downloaded_at",
}
# The two primary keys that the Rust daemon rbee-hive has created the table with.
_HIVE_KEYS: Final = (["reference", "provider"], ["reference"])


async def schema_state(target: Target | None = None) -> tuple[str | None, str]:
    """
    Return the revision of a catalog database, and the newest revision that this package knows.

    The first is None for an empty database, and for a file of the Rust daemon rbee-hive, which
    records no revision. Takes no write lock and changes nothing.

    Raises ForeignDatabaseError for another program's database, and CatalogUnavailableError for a
    missing file.
    """
    async with open_database(target, create=False) as database:
        return await current_revision(database), head_revision()


async def current_revision(database: OpenDatabase) -> str | None:
    """
    Return the revision of an open database; None if it has no catalog yet.

    Raises ForeignDatabaseError, and CatalogBusyError if it stays locked for `database.wait_s`.
    """
    sync_engine = database.sync_engine

    def detect(engine: sa.Engine) -> str | None:
        with map_errors(database.name), engine.connect() as connection:
            return detect_revision(connection, database.name, shared=database.shared)

    async def detect_once() -> str | None:
        if sync_engine is not None:
            return await to_thread(detect, sync_engine)
        with map_errors(database.name):
            async with database.engine.connect() as connection:
                await set_timeouts(connection, LOCK_WAIT_S)
                return await connection.run_sync(
                    detect_revision, database.name, shared=database.shared
                )

    # Runs to completion: a driver that is cancelled while it connects leaks the connection.
    return await retry_while_busy(detect_once, database.wait_s)


def detect_revision(connection: sa.Connection, name: str, *, shared: bool) -> str | None:
    """
    Return the revision of the connection's database; None if a catalog can be created there.

    Raises ForeignDatabaseError if the database has a table `models` that is not ours. For a SQLite
    file that is not shared, it also raises if another program has tables in the file.
    """
    revision = _recorded_revision(connection)
    if revision is None and (found := _foreign_content(connection, shared=shared)):
        # On PostgreSQL, and with a host's sqlite3, each statement sees all commits so far. Another
        # process may have migrated the database after the first look, so look again.
        revision = _recorded_revision(connection)
        if revision is None:
            raise ForeignDatabaseError(name, found)
    return revision


def _recorded_revision(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    revision: str | None = connection.execute(
        sa.text(f"SELECT version_num FROM {VERSION_TABLE}")  # noqa: S608 - a constant
    ).scalar()
    return revision


def _foreign_content(connection: sa.Connection, *, shared: bool) -> str | None:
    """Describe what another program has in a database without our version table, or None."""
    inspector = sa.inspect(connection)
    if inspector.has_table("models"):
        columns = {column["name"] for column in inspector.get_columns("models")}
        key = inspector.get_pk_constraint("models")["constrained_columns"]
        if columns != _REVISION_0001_COLUMNS or key not in _HIVE_KEYS:
            return f"a table 'models' with the columns {', '.join(sorted(columns))}"
        return None
    if not shared and connection.dialect.name == "sqlite":
        application_id = connection.exec_driver_sql("PRAGMA application_id").scalar()
        if application_id not in (0, APPLICATION_ID):
            return f"the application id {application_id}"
        tables = sorted(set(inspector.get_table_names()) - {VERSION_TABLE})
        if tables:
            listed = ", ".join(map(repr, tables[:3])) + (", ..." if tables[3:] else "")
            return f"the tables {listed} and no catalog"
    return None


def require_known_revision(current: str | None, name: str) -> None:
    """Raise SchemaTooNewError if this package does not contain the revision."""
    if current is not None and current not in known_revisions():
        raise SchemaTooNewError(name, current, head_revision())


async def require_current_schema(database: OpenDatabase) -> None:
    """Raise SchemaOutOfDateError or SchemaTooNewError unless it is at the head revision."""
    current = await current_revision(database)
    require_known_revision(current, database.name)
    if current != head_revision():
        raise SchemaOutOfDateError(database.name, current, head_revision())
