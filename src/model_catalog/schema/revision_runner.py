"""
Creates the tables of a new database, or runs revisions on an existing one.

The objects of Alembic that are global to the process are not used.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module, resources
from typing import TYPE_CHECKING

import sqlalchemy as sa

from model_catalog.connection.database_info import catalog_schema
from model_catalog.mapping.base import Base
from model_catalog.mapping.revisions import VERSION_TABLE, head_revision

if TYPE_CHECKING:
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

log = logging.getLogger("model_catalog.schema")


def import_alembic() -> None:
    """Import the parts of Alembic that migrations need, which takes a quarter of a second."""
    with _without_alembic_info():
        for name in ("alembic.migration", "alembic.operations", "alembic.script"):
            import_module(name)


@contextmanager
def _without_alembic_info() -> Iterator[None]:
    """
    Drop what Alembic logs at INFO in this thread, during a block.

    It logs ten lines about itself for each catalog that is created. We log one line about that.
    """
    thread = threading.get_ident()

    def is_kept(record: logging.LogRecord) -> bool:
        # A host's own Alembic in another thread goes on logging.
        return record.levelno > logging.INFO or threading.get_ident() != thread

    loggers = [logging.getLogger(f"alembic.runtime.{name}") for name in ("migration", "plugins")]
    for logger in loggers:
        logger.addFilter(is_kept)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_kept)


def run_revisions(
    connection: sa.Connection,
    current: str | None,
    goal: str,
    *,
    down: bool = False,
    after_each: Callable[[str], object] | None = None,
) -> None:
    """
    Run the revisions from `current` to `goal` in the connection's transaction, and record `goal`.

    `current` is None for a database without a catalog. With `down`, `goal` is an older revision or
    "base". `after_each` is called with the id of each revision that has run. The caller holds the
    migration lock, and commits.
    """
    import_alembic()
    from alembic.operations import Operations  # noqa: PLC0415 - see import_alembic

    operations = Operations(_migration_context(connection))
    scripts = script_directory()
    start = current or "base"
    upper, lower = (start, goal) if down else (goal, start)
    revisions = [] if start == goal else list(scripts.iterate_revisions(upper, lower))
    for script in revisions if down else reversed(revisions):
        module = script.module
        # The `op` that a revision imports belongs to the process. A host's Alembic, here or in
        # another thread, sets it to the host's connection. This module is a copy of our own.
        vars(module)["op"] = operations
        log.debug(
            "%s revision %s",
            "reverting" if down else "applying",
            script.revision,
            extra={"model_catalog_revision": script.revision},
        )
        (module.downgrade if down else module.upgrade)()
        if after_each is not None:
            after_each(script.revision)
    record_revision(connection, goal)


def create_tables(connection: sa.Connection) -> None:
    """
    Create the tables of the newest revision in the connection's transaction, and record it.

    The database has none of the catalog's tables yet, except perhaps the version table without a
    row. The caller holds the migration lock, and commits. The result equals that of all revisions
    in `migrations/`, which takes four times as long and needs Alembic.
    """
    # A program may have imported `upgrade` alone. Only a class that is imported has a table.
    from model_catalog.mapping import child_tables, tables  # noqa: F401, PLC0415

    Base.metadata.create_all(connection, checkfirst=False)
    # As Alembic creates it, which uses it in every later migration.
    versions = sa.Table(
        VERSION_TABLE,
        sa.MetaData(),
        sa.Column("version_num", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("version_num", name=f"{VERSION_TABLE}_pkc"),
    )
    # A downgrade to "base" leaves it.
    versions.create(connection, checkfirst=True)
    connection.execute(versions.delete())
    connection.execute(versions.insert().values(version_num=head_revision()))


def record_revision(connection: sa.Connection, revision: str) -> None:
    """Write a revision to the version table, which is created if it is missing."""
    if sa.inspect(connection).has_table(VERSION_TABLE, catalog_schema(connection)):
        # Alembic could not replace an id of release 0.1.0, because it does not know that id.
        connection.execute(sa.delete(sa.table(VERSION_TABLE)))
    _migration_context(connection).stamp(script_directory(), revision)


def _migration_context(connection: sa.Connection) -> MigrationContext:
    from alembic.migration import MigrationContext  # noqa: PLC0415 - see import_alembic

    opts = {"version_table": VERSION_TABLE, "target_metadata": Base.metadata}
    with _without_alembic_info():
        return MigrationContext.configure(connection, opts=opts)


def script_directory() -> ScriptDirectory:
    """Return Alembic's view of our revisions. Each call loads new copies of their modules."""
    from alembic.script import ScriptDirectory  # noqa: PLC0415 - see import_alembic

    return ScriptDirectory(str(resources.files("model_catalog.migrations")))
