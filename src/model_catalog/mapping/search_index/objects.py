"""
The SQL of the search index: trigrams of the case-folded reference, description and tags.

On SQLite it is a table of FTS5, which the catalog fills late: see `indexing`. On PostgreSQL it is
three GIN indexes of the extension `pg_trgm`. A database that can have neither is searched row by
row. Revision 0028 creates the same objects.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Connection, text

INDEX: Final = "model_catalog_search"
"""The table of FTS5: the rowid of an entry is the id of a model."""
STATE: Final = "model_catalog_search_state"
"""A table with one row, or none before the first filling: all models up to `indexed_to` are in."""
CHANGES: Final = "model_catalog_search_changes"
"""The ids of models at or below `indexed_to` whose text has changed since."""
INDEX_TABLES: Final = frozenset({INDEX, *(f"{INDEX}_{part}" for part in ("config", "data", "idx"))})
"""The table of FTS5 and its shadow tables."""

# `detail=none`: an entry is a set of trigrams. So the table only proposes models, with 52 bytes for
# each instead of 300.
CREATE_INDEX: Final = f"""\
CREATE VIRTUAL TABLE {INDEX} USING fts5(
    folded, content='', columnsize=0, detail=none, tokenize='trigram case_sensitive 1')"""
CREATE_STATE: Final = f"""\
CREATE TABLE {STATE} (
    id INTEGER NOT NULL PRIMARY KEY CHECK (id = 1), indexed_to INTEGER NOT NULL)"""
CREATE_CHANGES: Final = f"CREATE TABLE {CHANGES} (id INTEGER NOT NULL PRIMARY KEY)"

_TRIGGERS: Final = {
    # An id is used again after the newest model was deleted, and by REPLACE.
    "models_inserted": ("INSERT ON models", "id"),
    "models_updated": ("UPDATE OF id, reference_folded, description_folded ON models", "id"),
    "tags_inserted": ("INSERT ON model_tags", "model_id"),
    "tags_updated": ("UPDATE OF model_id, folded ON model_tags", "model_id"),
}
# No INSERT OR IGNORE: the conflict clause of the statement that fires a trigger replaces it.
CREATE_TRIGGERS: Final = {
    f"{INDEX}_{name}": f"""\
CREATE TRIGGER {INDEX}_{name} AFTER {event}
WHEN NEW.{column} <= (SELECT indexed_to FROM {STATE}) BEGIN
    INSERT INTO {CHANGES} SELECT NEW.{column}
    WHERE NOT EXISTS (SELECT 1 FROM {CHANGES} WHERE id = NEW.{column});
END"""
    for name, (event, column) in _TRIGGERS.items()
}
"""By name. They write plain tables only, so that a SQLite without FTS5 can write models."""

POSTGRESQL_INDEXES: Final = {
    "ix_models_search_reference": ("models", "reference_folded"),
    "ix_models_search_description": ("models", "description_folded"),
    "ix_model_tags_search": ("model_tags", "folded"),
}
"""The table and the column of each GIN index."""

# A trusted extension may be created by who may create schemas. In `public`, because other programs
# of the database may use it, and a catalog's own schema may be dropped.
CREATE_EXTENSION: Final = """\
DO $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM pg_extension WHERE extname = 'pg_trgm')
        AND EXISTS (SELECT 1 FROM pg_available_extensions WHERE name = 'pg_trgm')
    THEN
        BEGIN
            CREATE EXTENSION IF NOT EXISTS pg_trgm SCHEMA public;
        EXCEPTION
            WHEN insufficient_privilege OR invalid_schema_name OR undefined_file
                OR feature_not_supported OR unique_violation OR duplicate_object
            THEN NULL;
        END;
    END IF;
END $$"""
CREATE_POSTGRESQL_INDEXES: Final = {
    name: f"""\
DO $$
DECLARE
    schema text;
BEGIN
    SELECT quote_ident(nspname) INTO schema
    FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace WHERE extname = 'pg_trgm';
    IF schema IS NOT NULL THEN
        EXECUTE 'CREATE INDEX IF NOT EXISTS {name} ON {table} USING gin ({column} '
            || schema || '.gin_trgm_ops)';
    END IF;
END $$"""
    for name, (table, column) in POSTGRESQL_INDEXES.items()
}
"""By name. Each does nothing if the extension is not there."""


def can_have_index(connection: Connection) -> bool:
    """Return whether this build of SQLite has FTS5 with the tokenizer `trigram`: 3.34 or newer."""
    # The answer is that of the driver. It is kept with its connection.
    info: dict[str, Any] = connection.info
    if INDEX not in info:
        version, has_fts5 = connection.exec_driver_sql(
            "SELECT sqlite_version(), EXISTS (SELECT 1 FROM pragma_module_list WHERE name = 'fts5')"
        ).one()
        info[INDEX] = bool(has_fts5) and tuple(map(int, version.split(".")[:2])) >= (3, 34)
    return bool(info[INDEX])


def has_index(connection: Connection, schema: str | None = None) -> bool:
    """
    Return whether the database has the index, and this connection can use it.

    `schema` is that of the catalog's tables on PostgreSQL; None is the default schema.
    """
    if connection.dialect.name != "sqlite":
        return set(POSTGRESQL_INDEXES) == _valid_indexes(connection, schema)
    exists = connection.exec_driver_sql(
        f"SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = '{INDEX}'"
    ).scalar()
    return exists is not None and can_have_index(connection)


def _valid_indexes(connection: Connection, schema: str | None) -> set[str]:
    statement = text(
        "SELECT c.relname FROM pg_index JOIN pg_class c ON c.oid = indexrelid"
        " JOIN pg_namespace n ON n.oid = relnamespace"
        " WHERE indisvalid AND nspname = coalesce(CAST(:schema AS text), current_schema())"
        " AND c.relname = ANY(CAST(:names AS text[]))"
    )
    values = {"schema": schema, "names": list(POSTGRESQL_INDEXES)}
    return set(connection.execute(statement, values).scalars())


def could_have_index(connection: Connection) -> bool:
    """Return whether the database may have the index: an upgrade then creates it."""
    if connection.dialect.name == "sqlite":
        return can_have_index(connection)
    return bool(
        connection.exec_driver_sql(
            "SELECT EXISTS (SELECT 1 FROM pg_extension WHERE extname = 'pg_trgm') OR EXISTS ("
            "SELECT 1 FROM pg_available_extension_versions WHERE name = 'pg_trgm' AND (trusted"
            " AND has_database_privilege(current_database(), 'CREATE')"
            " OR (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)))"
        ).scalar()
    )


def create_index(connection: Connection) -> None:
    """Create what is missing of the index, as far as the database can have it."""
    statements = [CREATE_EXTENSION, *CREATE_POSTGRESQL_INDEXES.values()]
    if connection.dialect.name == "sqlite":
        statements = (
            [] if has_index(connection) or not can_have_index(connection) else [CREATE_INDEX]
        )
    for statement in statements:
        connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
