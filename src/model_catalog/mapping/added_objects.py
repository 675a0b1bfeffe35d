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
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Table

from model_catalog.mapping.search_index import objects


@dataclass(frozen=True, slots=True)
class AddedObject:
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


ADDED_OBJECTS: Final[tuple[AddedObject, ...]] = (
    # A SQLite file lists by name without it, see repository/statements/index_ranges.py.
    AddedObject(
        name="ix_models_name",
        table="models",
        dialect="postgresql",
        sql="CREATE INDEX ix_models_name ON models (host, reference, provider, version)",
    ),
    *_search_objects(),
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
