"""
Add an index of trigrams for the filter `search`, and fill it.

Revision ID: model_catalog_0028

A search for a rare word among a million models took 300 ms, and takes 1 ms with it. On SQLite it
is a table of FTS5 without content, with 52 bytes a model. It lists sets of trigrams of case-folded
texts, and a search compares the models that it proposes. Later writes do not write to it: that
would take 20 us a model. Triggers note what it does not have, and the catalog adds that in chunks.

On PostgreSQL it is three GIN indexes of the extension `pg_trgm`, which is created if the role may
do so. A database without FTS5 or `pg_trgm` has no index. A later `model-catalog db upgrade` adds
it, once the database can have it.
"""

import sqlalchemy as sa
from alembic import op

revision = "model_catalog_0028"
down_revision = "model_catalog_0027"
branch_labels = None
depends_on = None

SQLITE_TABLES = {
    "model_catalog_search_state": """\
CREATE TABLE model_catalog_search_state (
    id INTEGER NOT NULL PRIMARY KEY CHECK (id = 1), indexed_to INTEGER NOT NULL)""",
    "model_catalog_search_changes": """\
CREATE TABLE model_catalog_search_changes (id INTEGER NOT NULL PRIMARY KEY)""",
}
SQLITE_TRIGGERS = {
    "models_inserted": ("INSERT ON models", "id"),
    "models_updated": ("UPDATE OF id, reference_folded, description_folded ON models", "id"),
    "tags_inserted": ("INSERT ON model_tags", "model_id"),
    "tags_updated": ("UPDATE OF model_id, folded ON model_tags", "model_id"),
}
SQLITE_INDEX = """\
CREATE VIRTUAL TABLE model_catalog_search USING fts5(
    folded, content='', columnsize=0, detail=none, tokenize='trigram case_sensitive 1')"""
# Texts with a NUL, which only a plain program can write, are compared at each search.
HAS_NUL = """\
instr(reference_folded, char(0)) OR instr(description_folded, char(0)) OR EXISTS (
    SELECT 1 FROM model_tags WHERE model_id = models.id AND instr(folded, char(0)))"""
FILL_SQLITE_INDEX = [
    """\
INSERT INTO model_catalog_search (rowid, folded)
SELECT id, coalesce(reference_folded, '') || char(10) || coalesce(description_folded, '')
    || char(10) || coalesce(
        (SELECT group_concat(folded, char(10)) FROM model_tags WHERE model_id = models.id), '')
FROM models ORDER BY id""",
    f"INSERT INTO model_catalog_search_changes SELECT id FROM models WHERE {HAS_NUL}",
    """\
INSERT INTO model_catalog_search_state
SELECT 1, max(id) FROM models HAVING max(id) IS NOT NULL""",
]

CREATE_EXTENSION = """\
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
POSTGRESQL_INDEXES = {
    "ix_models_search_reference": ("models", "reference_folded"),
    "ix_models_search_description": ("models", "description_folded"),
    "ix_model_tags_search": ("model_tags", "folded"),
}


def upgrade() -> None:
    if op.get_context().dialect.name == "sqlite":
        _upgrade_sqlite()
        return
    run(CREATE_EXTENSION)
    for name, (table, column) in POSTGRESQL_INDEXES.items():
        run(f"""\
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
END $$""")


def _upgrade_sqlite() -> None:
    for sql in SQLITE_TABLES.values():
        run(sql)
    for name, (event, column) in SQLITE_TRIGGERS.items():
        # No INSERT OR IGNORE: the conflict clause of the statement that fires it would replace it.
        run(f"""\
CREATE TRIGGER model_catalog_search_{name} AFTER {event}
WHEN NEW.{column} <= (SELECT indexed_to FROM model_catalog_search_state) BEGIN
    INSERT INTO model_catalog_search_changes SELECT NEW.{column}
    WHERE NOT EXISTS (SELECT 1 FROM model_catalog_search_changes WHERE id = NEW.{column});
END""")
    # Printed SQL is for a SQLite that has FTS5.
    if op.get_context().as_sql or can_have_index():
        for sql in (SQLITE_INDEX, *FILL_SQLITE_INDEX):
            run(sql)


def can_have_index() -> bool:
    version, has_fts5 = (
        op.get_bind()
        .exec_driver_sql(
            "SELECT sqlite_version(), EXISTS (SELECT 1 FROM pragma_module_list WHERE name = 'fts5')"
        )
        .one()
    )
    return bool(has_fts5) and tuple(map(int, version.split(".")[:2])) >= (3, 34)


def downgrade() -> None:
    """Drop the index. The extension stays: other programs may use it."""
    if op.get_context().dialect.name != "sqlite":
        for name in POSTGRESQL_INDEXES:
            run(f"DROP INDEX IF EXISTS {name}")
        return
    for name in SQLITE_TRIGGERS:
        run(f"DROP TRIGGER model_catalog_search_{name}")
    for name in SQLITE_TABLES:
        run(f"DROP TABLE {name}")
    run("DROP TABLE IF EXISTS model_catalog_search")


def run(sql: str) -> None:
    op.execute(sa.text(sql.replace(":", "\\:")))
