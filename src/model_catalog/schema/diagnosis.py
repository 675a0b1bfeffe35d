"""Diagnoses a catalog database for `db check`: its tables, pages, foreign keys and values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final

import sqlalchemy as sa

from model_catalog.concurrency.retry import DEFAULT_OPEN_TIMEOUT_S, Backoff
from model_catalog.connection.interruption.interruptible_run import InterruptibleRun
from model_catalog.connection.interruption.running import (
    SERVER_GRACE_S,
    driver_working,
    run_with_retries,
)
from model_catalog.connection.open_database import OpenDatabase, find_damage, open_database
from model_catalog.connection.target import Target
from model_catalog.domain import validation
from model_catalog.errors import SchemaOutOfDateError, command
from model_catalog.mapping import added_objects
from model_catalog.mapping.added_objects import (
    COUNTED_KEY,
    added_tables,
    counted_values,
)
from model_catalog.mapping.base import Base
from model_catalog.mapping.column_types import MAX_TIMESTAMP, MIN_TIMESTAMP, UnixTimestamp
from model_catalog.mapping.revisions import VERSION_TABLE
from model_catalog.mapping.search_index.inspection import find_problem
from model_catalog.schema.host_objects import refused_changes
from model_catalog.schema.migration_lock import broken_references
from model_catalog.schema.postgres_schema import enter_schema
from model_catalog.schema.revision import require_current_schema

_MAX_LISTED_ROWS: Final = 5


async def check_schema(
    target: Target | None = None,
    *,
    schema: str | None = None,
    timeout_s: float = DEFAULT_OPEN_TIMEOUT_S,
) -> list[str]:
    """
    Check a catalog database and return its problems, one sentence each; empty if there are none.

    It compares the revision and the tables with those of this package. On SQLite it also checks
    the integrity of the pages, the foreign keys and the types of the values, which reads the whole
    file. It changes nothing. It waits `timeout_s` seconds for locks and for a server. `schema` is
    as in `upgrade`.

    Raises CatalogCorruptError, ForeignDatabaseError, SchemaTooNewError and the errors of opening.
    """
    validation.seconds("timeout_s", timeout_s)
    async with open_database(target, create=False, wait_s=timeout_s, schema=schema) as database:
        try:
            await require_current_schema(database)
        except SchemaOutOfDateError as error:
            return [str(error)]
        return await _all_problems(database)


async def _all_problems(database: OpenDatabase) -> list[str]:
    dialect = database.engine.dialect.name

    async def attempt(run: InterruptibleRun, _lock_wait_s: float) -> list[str]:
        with run:
            async with database.engine.connect() as connection:
                run.set_connection(connection)
                if dialect == "postgresql":
                    # Without a transaction, as a host may have set it, a schema could not be
                    # entered.
                    await connection.execution_options(isolation_level="READ COMMITTED")
                await connection.run_sync(partial(enter_schema, name=database.name, create=False))
                # Alembic would take the schema of each table for a difference.
                await connection.execution_options(schema_translate_map=None)
                problems = await connection.run_sync(_find_problems)
                run.mark_read_done()
            return problems
        return run.result  # type: ignore[no-any-return]

    # SQLite reads all pages, which takes minutes for a large file.
    wait_s = math.inf if dialect == "sqlite" else database.wait_s
    with driver_working(dialect):
        return await run_with_retries(
            attempt, Backoff(wait_s), database.name, SERVER_GRACE_S, writes=False
        )


def _find_problems(connection: sa.Connection) -> list[str]:
    # Imported here, because importing Alembic takes a quarter of a second.
    from alembic.autogenerate import compare_metadata  # noqa: PLC0415
    from alembic.migration import MigrationContext  # noqa: PLC0415

    problems: list[str] = []
    if connection.dialect.name == "sqlite":
        damage = find_damage(connection, "integrity_check")
        problems += [f"integrity_check: {problem}" for problem in damage]
        broken = sorted(broken_references(connection), key=str)
        problems += [f"foreign_key_check: {table}" for table, *_ in broken]
        problems += refused_changes(connection)
        problems += _missing_objects(connection) or _wrong_counters(connection)
    problems += _odd_values(connection)
    problems += _search_problems(connection)
    context = MigrationContext.configure(
        connection,
        opts={"version_table": VERSION_TABLE, **autogenerate_options(connection.dialect.name)},
    )
    differences = compare_metadata(context, Base.metadata)
    return problems + [f"schema: {difference}" for difference in differences]


def _search_problems(connection: sa.Connection) -> Iterator[str]:
    # The schema was entered, so it is the default one.
    problem = find_problem(connection, None)
    if problem is not None:
        yield f"search index: {problem}; {command('db', 'upgrade')} completes it"


def _missing_objects(connection: sa.Connection) -> list[str]:
    """Name the triggers and tables beyond the mapping that do not exist or are another's."""
    rows = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master")
    existing: dict[str, str | None] = {row[0]: row[1] for row in rows}
    return [
        f"schema: {each.name} is missing or was changed; it is created by: {each.sql}"
        for each in added_objects.ADDED_OBJECTS
        if each.dialect == "sqlite"
        and each.is_possible is None
        and existing.get(each.name) != each.sql
    ]


def _wrong_counters(connection: sa.Connection) -> Iterator[str]:
    """
    Compare the counters with the models that they count.

    They differ after a REPLACE of another program, or after its changes with triggers turned off.
    """
    if "model_totals" not in added_tables():
        return
    stored = f"SELECT {COUNTED_KEY}, models, high, low FROM model_totals"  # noqa: S608
    counted = (
        f"SELECT {counted_values('models')}, count(*), sum(coalesce(size_bytes, 0) >> 32),"  # noqa: S608
        " sum(coalesce(size_bytes, 0) & 4294967295) FROM models"
        " WHERE id <= (SELECT counted_to FROM model_totals_progress) GROUP BY 1, 2, 3, 4, 5, 6"
    )
    wrong = connection.exec_driver_sql(
        "SELECT (SELECT count(*) FROM model_totals_progress) AND"  # noqa: S608
        f" (EXISTS (SELECT * FROM ({stored}) EXCEPT SELECT * FROM ({counted}))"
        f" OR EXISTS (SELECT * FROM ({counted}) EXCEPT SELECT * FROM ({stored})))"
    ).scalar()
    if wrong:
        yield (
            "model_totals: the counters are not those of the models, because another program has"
            " changed models without triggers. Counts and totals may be wrong. Execute"
            " DELETE FROM model_totals_progress, and the catalog counts the models again"
        )


def _odd_values(connection: sa.Connection) -> Iterator[str]:
    """
    Name the rows and columns of values that the catalog does not write, column by column.

    SQLite accepts a value of any type in a column, texts with a NUL, and texts that are not UTF-8.
    Both databases accept numbers that are not a time.
    """
    is_sqlite = connection.dialect.name == "sqlite"
    for table in Base.metadata.sorted_tables:
        for column in table.columns:
            is_time = isinstance(column.type, UnixTimestamp)
            kind = "integer" if is_time or isinstance(column.type, sa.Integer) else "text"
            value: sa.ColumnElement[Any] = sa.literal_column(f'"{column.name}"')
            if is_sqlite:
                wrong = sa.or_(
                    sa.func.typeof(value).not_in((kind, "null")),
                    # SQLite's text functions ignore everything after a NUL.
                    sa.func.instr(value, sa.func.char(0)) > 0,
                )
                yield from _name_rows(connection, table, column.name, wrong, f"not {kind}")
            if is_time:
                is_number = sa.func.typeof(value) == "integer" if is_sqlite else sa.true()
                outside = sa.not_(value.between(MIN_TIMESTAMP, MAX_TIMESTAMP))
                wrong = sa.and_(is_number, outside)
                yield from _name_rows(connection, table, column.name, wrong, "not a time")
            if is_sqlite and kind == "text":
                yield from _invalid_texts(connection, table, column.name)


def _name_rows(
    connection: sa.Connection,
    table: sa.Table,
    column: str,
    wrong: sa.ColumnElement[bool],
    problem: str,
) -> Iterator[str]:
    if "id" in table.columns:
        name = "id"
    else:
        name = "rowid" if connection.dialect.name == "sqlite" else "ctid::text"
    row_id: sa.ColumnElement[Any] = sa.literal_column(name)
    rows = connection.execute(sa.select(row_id).select_from(table).where(wrong))
    yield from _describe(f"{table.name}.{column}", list(rows.scalars()), problem)


def _invalid_texts(connection: sa.Connection, table: sa.Table, column: str) -> Iterator[str]:
    # As BLOBs: sqlite3 cannot read a text that is not UTF-8. SQLite itself has no function for it.
    values = connection.exec_driver_sql(
        f'SELECT rowid, CAST("{column}" AS BLOB) FROM "{table.name}"'  # noqa: S608 - our own names
        f" WHERE typeof(\"{column}\") = 'text'"
    )
    rows = [row_id for row_id, value in values if not _is_utf8(value)]
    yield from _describe(f"{table.name}.{column}", rows, "not valid UTF-8")


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _describe(column: str, rows: Sequence[object], problem: str) -> Iterator[str]:
    if rows:
        listed = ", ".join(map(str, rows[:_MAX_LISTED_ROWS]))
        more = ", ..." if len(rows) > _MAX_LISTED_ROWS else ""
        yield f"values: {len(rows)} in {column} are {problem}: rows {listed}{more}"


def autogenerate_options(dialect: str) -> dict[str, Any]:
    """
    Return the options for Alembic's comparison of a database with the mapping.

    It compares only our tables, their server defaults and the names of their check constraints.
    """

    def is_ours(name: str | None, kind: str, _parents: dict[str, str | None]) -> bool:
        return kind != "table" or name in Base.metadata.tables

    def is_not_added(_item: Any, _name: Any, kind: str, reflected: bool, ours: Any) -> bool:  # noqa: FBT001
        # Another program may have created an index on our tables.
        return not (kind == "index" and reflected and ours is None)

    def compare_sqlite_default(*arguments: Any) -> bool | None:
        # SQLite has no IDENTITY: such a column is an alias of the rowid.
        return False if arguments[2].identity is not None else None

    compare: bool | Callable[..., bool | None] = (
        compare_sqlite_default if dialect == "sqlite" else True
    )
    return {
        "include_name": is_ours,
        "include_object": is_not_added,
        "compare_server_default": compare,
        "autogenerate_plugins": ["alembic.autogenerate.*", "alembic.ext.checkconstraint_byname"],
    }
