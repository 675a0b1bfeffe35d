"""Recognizes the revision of catalog tables that have no version table, by their structure."""

from __future__ import annotations

from functools import cache
from typing import Any, Final, TypeAlias

import sqlalchemy as sa

from model_catalog.connection.database_info import catalog_schema
from model_catalog.mapping import added_objects
from model_catalog.mapping.added_objects import added_names
from model_catalog.mapping.base import Base
from model_catalog.mapping.revisions import head_revision
from model_catalog.schema.revision_runner import run_revisions

_MAX_DIFFERENCES: Final = 3
_ADDED: Final = "added object "
_KINDS: Final = {
    "integer": sa.Integer,
    "string": sa.String,
    "binary": sa.LargeBinary,
    "number": sa.Numeric,
    "datetime": sa.DateTime,
    "boolean": sa.Boolean,
}


_Structure: TypeAlias = dict[str, frozenset[str]]
"""The facts of each table that exists, one text a fact, the same on every dialect."""


def recognize_revision(connection: sa.Connection) -> tuple[str | None, str]:
    """
    Return the revision whose tables a database has, exactly; otherwise None and the differences.

    The differences are from the most similar revision, as text for an error message. Tables with
    other names are ignored. The first call creates every revision in a database in memory, which
    takes about half a second.
    """
    found = _structure(connection)
    is_sqlite = connection.dialect.name == "sqlite"
    differences = {
        revision: _differences(found, reference if is_sqlite else _without_added(reference))
        for revision, reference in _reference_structures().items()
    }
    # Of two equally similar revisions the newer one needs fewer migrations.
    nearest = min(reversed(differences), key=lambda revision: len(differences[revision]))
    listed = differences[nearest]
    if not listed:
        return nearest, ""
    more = ", ..." if listed[_MAX_DIFFERENCES:] else ""
    return None, f"most like revision {nearest}, but {', '.join(listed[:_MAX_DIFFERENCES])}{more}"


def _without_added(structure: _Structure) -> _Structure:
    """Return a structure without the objects that only SQLite has."""
    return {
        table: frozenset(fact for fact in facts if not fact.startswith(_ADDED))
        for table, facts in structure.items()
    }


def _differences(found: _Structure, reference: _Structure) -> list[str]:
    """Return what a database lacks, and what it has too much, compared with a revision."""
    missing = {f"table {table}" for table in reference.keys() - found.keys()}
    extra = {f"table {table}" for table in found.keys() - reference.keys()}
    for table in found.keys() & reference.keys():
        missing |= reference[table] - found[table]
        extra |= found[table] - reference[table]
    return [
        *(f"without {fact}" for fact in sorted(missing)),
        *(f"with {fact}" for fact in sorted(extra)),
    ]


@cache
def _reference_structures() -> dict[str, _Structure]:
    """Return the structure of the tables at each revision, oldest first."""
    structures: dict[str, _Structure] = {}
    engine = sa.create_engine("sqlite://")
    with engine.begin() as connection:
        run_revisions(
            connection,
            None,
            head_revision(),
            after_each=lambda revision: structures.update({revision: _structure(connection)}),
        )
    engine.dispose()
    return structures


def _structure(connection: sa.Connection) -> _Structure:
    inspector = sa.inspect(connection)
    schema = catalog_schema(connection)
    added = _added_facts(connection)
    return {
        table: frozenset(
            _column_facts(inspector, table, schema)
            | _constraint_facts(inspector, table, schema)
            | added.get(table, set())
        )
        for table in Base.metadata.tables
        if inspector.has_table(table, schema)
    }


def _added_facts(connection: sa.Connection) -> dict[str, set[str]]:
    """Return a fact for each object beyond the mapping that every SQLite database can have."""
    facts: dict[str, set[str]] = {}
    if connection.dialect.name == "sqlite":
        existing = set(connection.exec_driver_sql("SELECT name FROM sqlite_master").scalars())
        for each in added_objects.ADDED_OBJECTS:
            if each.dialect == "sqlite" and each.is_possible is None and each.name in existing:
                facts.setdefault(each.table, set()).add(f"{_ADDED}{each.name}")
    return facts


def _column_facts(inspector: sa.Inspector, table: str, schema: str | None) -> set[str]:
    facts = set()
    for column in inspector.get_columns(table, schema):
        # TEXT and VARCHAR are the same kind, and so are INTEGER and BIGINT.
        kind = next((name for name, base in _KINDS.items() if isinstance(column["type"], base)), "")
        null = "" if column["nullable"] else " not null"
        default = " with a default" if column.get("default") is not None else ""
        facts.add(f"column {table}.{column['name']} ({kind}{null}{default})")
    return facts


def _constraint_facts(inspector: sa.Inspector, table: str, schema: str | None) -> set[str]:
    key = inspector.get_pk_constraint(table, schema)
    facts = {f"primary key {key['name']} of {table} ({', '.join(key['constrained_columns'])})"}
    kinds: dict[str, Any] = {
        "check": inspector.get_check_constraints(table, schema),
        "unique constraint": inspector.get_unique_constraints(table, schema),
        "foreign key": inspector.get_foreign_keys(table, schema),
        "index": [
            index
            for index in inspector.get_indexes(table, schema)
            # PostgreSQL also lists the indexes of unique constraints.
            if not index.get("duplicates_constraint") and index["name"] not in added_names()
        ],
    }
    for kind, constraints in kinds.items():
        facts.update(f"{kind} {constraint['name']} of {table}" for constraint in constraints)
    return facts
