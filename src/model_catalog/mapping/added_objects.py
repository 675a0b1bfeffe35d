"""
The objects of a catalog's database that the mapping of tables cannot describe.

These are triggers, functions, virtual tables and counter tables without a class. A revision in
migrations/ creates each of them in an existing database, with the same statement. A new database
gets them when `Base.metadata.create_all` has created their table. `tests/schema` compares both.

To add one: append an `AddedObject` to `ADDED_OBJECTS`, in the order of creation, and write the same
SQL in a revision. Nothing else lists the names: the upgrade, `db check`, the recognition of another
program's objects and the filters for a host's Alembic ask `added_names` and `added_tables`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Table

from model_catalog.mapping.search_index import objects


class AddedObject(NamedTuple):
    """A trigger, a function, a table or an index that one statement creates."""

    name: str
    """The name in the database, which no object of another program has."""

    table: str
    """The mapped table after whose creation it is created. Its columns may be used in `sql`."""

    dialect: str
    """`sqlite` or `postgresql`."""

    sql: str
    """The statement. It is sent without parameters, so that `%` and `:` have no meaning."""

    tables: frozenset[str] = frozenset()
    """The tables that exist because of it, with the shadow tables of a virtual table."""

    is_possible: Callable[[Connection], bool] | None = None
    """Whether the database can have it, as an extension that is not everywhere; None: always."""


def _search_objects() -> Iterator[AddedObject]:
    tables = {objects.STATE: objects.CREATE_STATE, objects.CHANGES: objects.CREATE_CHANGES}
    for name, sql in tables.items():
        yield AddedObject(name, "models", "sqlite", sql, frozenset({name}))
    for name, sql in objects.CREATE_TRIGGERS.items():
        yield AddedObject(name, "models", "sqlite", sql)
    can_have_index = objects.can_have_index
    created = objects.INDEX_TABLES
    yield AddedObject(
        objects.INDEX, "models", "sqlite", objects.CREATE_INDEX, created, can_have_index
    )
    yield AddedObject("pg_trgm", "models", "postgresql", objects.CREATE_EXTENSION)
    for name, sql in objects.CREATE_POSTGRESQL_INDEXES.items():
        yield AddedObject(name, "models", "postgresql", sql)


COUNTED_KEY: Final = "host, provider, format, architecture, quantization, store"
"""The columns that have a counter for each combination of their values, in `model_totals`."""

_WATCHED: Final = (
    "id, host, provider, format, claimed_format, architecture, claimed_architecture,"
    " quantization, claimed_quantization, store, size_bytes"
)
_IS_COUNTED: Final = "<= (SELECT counted_to FROM model_totals_progress)"


def counted_values(row: str) -> str:
    """
    Return the SQL of the values of COUNTED_KEY in a row of `models`, with 0 in place of NULL.

    No value of a column of type TEXT is the number 0.
    """
    effective = (
        f"coalesce({row}.{name}, {row}.claimed_{name}, 0)"
        for name in ("format", "architecture", "quantization")
    )
    return ", ".join((f"{row}.host", f"{row}.provider", *effective, f"coalesce({row}.store, 0)"))


def _change_counter(row: str, sign: str, condition: str) -> str:
    return (
        f"UPDATE model_totals SET models = models {sign} 1,"  # noqa: S608
        f" high = high {sign} (coalesce({row}.size_bytes, 0) >> 32),"
        f" low = low {sign} (coalesce({row}.size_bytes, 0) & 4294967295)"
        f" WHERE ({COUNTED_KEY}) = ({counted_values(row)}){condition};"
    )


def _add_to_counter(condition: str = "") -> str:
    return (
        f"INSERT INTO model_totals ({COUNTED_KEY}, models, high, low)"  # noqa: S608
        f" SELECT {counted_values('NEW')}, 0, 0, 0 WHERE NOT EXISTS"
        f" (SELECT 1 FROM model_totals WHERE ({COUNTED_KEY}) = ({counted_values('NEW')}))"
        f"{condition}; {_change_counter('NEW', '+', condition)}"
    )


def _subtract_from_counter(condition: str = "") -> str:
    return (
        f"{_change_counter('OLD', '-', condition)}"  # noqa: S608
        f" DELETE FROM model_totals WHERE ({COUNTED_KEY}) = ({counted_values('OLD')})"
        " AND models = 0;"
    )


def _counter_trigger(event: str, what: str, condition: str, body: str) -> AddedObject:
    name = f"model_totals_{event.lower()}"
    sql = f"CREATE TRIGGER {name} AFTER {event}{what} ON models WHEN {condition} BEGIN {body} END"
    return AddedObject(name=name, table="models", dialect="sqlite", sql=sql)


# The columns of the key have no type: with one, SQLite would convert the number 0 to text. There
# is no other constraint: with one, SQLite would keep a journal for each INSERT into `models`, which
# makes a bulk registration twice as slow.
_COUNTERS: Final = (
    AddedObject(
        name="model_totals",
        table="models",
        dialect="sqlite",
        sql=f"CREATE TABLE model_totals ({COUNTED_KEY}, models INTEGER, high INTEGER, low INTEGER,"
        f" PRIMARY KEY ({COUNTED_KEY})) WITHOUT ROWID",
        tables=frozenset({"model_totals"}),
    ),
    AddedObject(
        name="model_totals_progress",
        table="models",
        dialect="sqlite",
        sql="CREATE TABLE model_totals_progress (id INTEGER PRIMARY KEY, counted_to INTEGER)",
        tables=frozenset({"model_totals_progress"}),
    ),
    # A model with a larger id is not counted yet. Ids below are inserted only by other programs,
    # or after the model with the largest id was removed.
    _counter_trigger("INSERT", "", f"NEW.id {_IS_COUNTED}", _add_to_counter()),
    _counter_trigger(
        "DELETE",
        "",
        f"OLD.id {_IS_COUNTED}",
        f"{_subtract_from_counter()} UPDATE model_totals_progress"  # noqa: S608
        " SET counted_to = (SELECT coalesce(max(id), 0) FROM models)"
        " WHERE counted_to > (SELECT coalesce(max(id), 0) FROM models);",
    ),
    _counter_trigger(
        "UPDATE",
        f" OF {_WATCHED}",
        " OR ".join(f"OLD.{name} IS NOT NEW.{name}" for name in _WATCHED.split(", ")),
        f"{_subtract_from_counter(f' AND OLD.id {_IS_COUNTED}')}"
        f" {_add_to_counter(f' AND NEW.id {_IS_COUNTED}')}",
    ),
)

# An older server than PostgreSQL 14 has no statistics of one expression.
_CREATE_STATISTICS: Final = """\
DO $$
BEGIN
    IF current_setting('server_version_num')::int >= 140000 THEN
        EXECUTE 'CREATE STATISTICS ix_models_effective_{name}'
            || ' ON (coalesce({name}, claimed_{name})) FROM models';
    END IF;
END $$"""

ADDED_OBJECTS: Final[tuple[AddedObject, ...]] = (
    # A SQLite file lists by name without it, see repository/statements/index_ranges.py.
    AddedObject(
        name="ix_models_name",
        table="models",
        dialect="postgresql",
        sql="CREATE INDEX ix_models_name ON models (host, reference, provider, version)",
    ),
    # Statistics of the values that the filters compare. Without them the planner takes one model in
    # 200 to have the value of a filter, whatever it is.
    *(
        AddedObject(
            name=f"ix_models_effective_{name}",
            table="models",
            dialect="postgresql",
            sql=_CREATE_STATISTICS.format(name=name),
        )
        for name in ("format", "architecture", "quantization")
    ),
    *_search_objects(),
    *_COUNTERS,
)
"""All of them, in the order of their creation."""


def added_names() -> frozenset[str]:
    """Return the names of all added objects, on every database."""
    return frozenset(each.name for each in ADDED_OBJECTS)


def added_tables(dialect: str | None = None) -> frozenset[str]:
    """Return the names of the tables without a class, on one kind of database or on every one."""
    listed = (each for each in ADDED_OBJECTS if dialect in (None, each.dialect))
    return frozenset().union(*(each.tables for each in listed))


def create_added_objects(
    _target: object, connection: Connection, *, tables: Collection[Table] | None = None, **_: Any
) -> None:
    """Create the objects of the tables that were just created; a listener of `after_create`."""
    created = {table.name for table in tables or ()}
    for each in ADDED_OBJECTS:
        if each.dialect != connection.dialect.name or each.table not in created:
            continue
        if each.is_possible is None or each.is_possible(connection):
            connection.exec_driver_sql(each.sql, execution_options={"no_parameters": True})
