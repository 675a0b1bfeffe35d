"""Schema and contents of a database as a plain driver reads them, in a comparable form."""

import hashlib
import re
import sqlite3
from contextlib import closing

import postgres
import psycopg
from conftest import Database

_COLUMNS = """
    SELECT c.relname, row_number() OVER (PARTITION BY c.oid ORDER BY a.attnum), a.attname,
           format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity,
           pg_get_expr(d.adbin, d.adrelid), l.collname
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
    LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
    LEFT JOIN pg_collation l ON l.oid = a.attcollation
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'v')
      AND NOT a.attisdropped
    ORDER BY 1, 2"""
_CONSTRAINTS = """
    SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid)
    FROM pg_constraint WHERE connamespace = 'public'::regnamespace ORDER BY 1, 2"""
_INDEXES = "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1"
_SEQUENCES = """
    SELECT sequencename, data_type::text, start_value, increment_by
    FROM pg_sequences WHERE schemaname = 'public' ORDER BY 1"""

_TRIGGERS = """
    SELECT tgrelid::regclass::text, tgname, pg_get_triggerdef(oid)
    FROM pg_trigger WHERE NOT tgisinternal AND tgrelid IN (
        SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace)
    ORDER BY 1, 2"""
# Without the functions of extensions.
_FUNCTIONS = """
    SELECT p.oid::regprocedure::text, pg_get_functiondef(p.oid)
    FROM pg_proc p LEFT JOIN pg_depend d ON d.objid = p.oid AND d.deptype = 'e'
    WHERE p.pronamespace = 'public'::regnamespace AND p.prokind IN ('f', 'p') AND d.objid IS NULL
    ORDER BY 1"""

_STATISTICS = """
    SELECT stxname, pg_get_statisticsobjdef(oid) FROM pg_statistic_ext
    WHERE stxnamespace = 'public'::regnamespace ORDER BY 1"""


def shape(database: Database, *, leave_out: str = "") -> dict[str, object]:
    """
    Return every table, column, constraint, index, statistics, trigger and function by name.

    Everything of the table `leave_out` is left out.
    """
    if database.path is not None:
        with closing(sqlite3.connect(database.path)) as raw:
            return _sqlite_shape(raw, leave_out)
    with psycopg.connect(postgres.dsn(database.url)) as raw:
        return _postgresql_shape(raw, leave_out)


def dump(database: Database) -> dict[str, object]:
    """Return the schema and every row of every table."""
    if database.path is not None:
        with closing(sqlite3.connect(database.path)) as raw:
            found = _sqlite_shape(raw, "")
            for mark in ("application_id", "user_version"):
                found[mark] = raw.execute(f"PRAGMA {mark}").fetchall()
            # A table of FTS5 without content cannot be read.
            return found | _rows(
                raw,
                "SELECT name FROM sqlite_master WHERE type = 'table'"
                " AND sql NOT LIKE 'CREATE VIRTUAL TABLE%'",
            )
    with psycopg.connect(postgres.dsn(database.url)) as raw:
        return _postgresql_shape(raw, "") | _rows(
            raw, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        )


def _rows(raw, tables: str) -> dict[str, object]:
    return {
        f"rows of {table}": sorted(map(repr, raw.execute(f'SELECT * FROM "{table}"').fetchall()))
        for (table,) in raw.execute(tables).fetchall()
    }


def _postgresql_shape(raw: psycopg.Connection, leave_out: str) -> dict[str, object]:
    return {
        name: [
            row
            for row in raw.execute(query).fetchall()
            if not leave_out or leave_out not in str(row)
        ]
        for name, query in {
            "columns": _COLUMNS,
            "constraints": _CONSTRAINTS,
            "indexes": _INDEXES,
            "sequences": _SEQUENCES,
            "triggers": _TRIGGERS,
            "functions": _FUNCTIONS,
            "statistics": _STATISTICS,
        }.items()
    }


def _sqlite_shape(raw: sqlite3.Connection, leave_out: str) -> dict[str, object]:
    found: dict[str, object] = {}
    for kind, name, table, sql in raw.execute(
        "SELECT type, name, tbl_name, sql FROM sqlite_master"
    ).fetchall():
        if leave_out in (table, name):
            continue
        # A renamed table is quoted, and Alembic writes constraints in any order. Neither makes a
        # difference. The order of the columns is compared by table_xinfo.
        plain = re.sub(r"\s+", " ", (sql or "").replace('"', ""))
        found[f"{kind} {name}"] = sorted(_items(plain))
        if kind == "table":
            found[f"columns of {name}"] = raw.execute(f'PRAGMA table_xinfo("{name}")').fetchall()
            # Sorted by name: SQLAlchemy creates a table's indexes in any order.
            found[f"indexes of {name}"] = sorted(
                (index, raw.execute(f'PRAGMA index_xinfo("{index}")').fetchall(), kind)
                for _, index, *kind in raw.execute(f'PRAGMA index_list("{name}")').fetchall()
            )
            found[f"references of {name}"] = raw.execute(
                f'PRAGMA foreign_key_list("{name}")'
            ).fetchall()
    return found


def _items(sql: str) -> list[str]:
    """Split a CREATE TABLE statement at its outer parentheses and the commas within them."""
    items, depth, item = [], 0, ""
    for character in sql:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if (character, depth) in ((",", 1), ("(", 1), (")", 0)):
            items.append(item.strip())
            item = ""
        else:
            item += character
    return [*items, item.strip()]


def digest(database: Database) -> object:
    """Return digests of a SQLite file and its sidecar files, or a dump on PostgreSQL."""
    if database.path is None:
        return dump(database)
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in database.path.parent.glob(database.path.name + "*")
    }
