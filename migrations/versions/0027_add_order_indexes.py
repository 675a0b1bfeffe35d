"""
Add the indexes of listings that are sorted by size, last use, use count and name.

Revision ID: model_catalog_0027

`ix_models_newest_first` is read backwards now. A new model is the newest one, so it was inserted at
the front of the index, whose pages stayed half empty: it took 136 bytes a row, and takes 67 bytes
at the end. The index of digests no longer has the models without a digest. The index of the sizes
has the models without a host too.
"""

import sqlalchemy as sa
from alembic import op

revision = "model_catalog_0027"
down_revision = "model_catalog_0026"
branch_labels = None
depends_on = None

KEY = ("provider", "reference", "version")
KEY_BACKWARDS = tuple(sa.text(f"{name} DESC") for name in KEY)
OLDEST = {"sqlite": "downloaded_at ASC", "postgresql": "downloaded_at ASC NULLS FIRST"}
NEWEST = {"sqlite": "downloaded_at DESC", "postgresql": "downloaded_at DESC NULLS LAST"}
BY_NAME = "CREATE INDEX ix_models_name ON models (host, reference, provider, version)"

PARTIAL_INDEXES = {
    "ix_models_unsized": (("host", *KEY), "size_bytes IS NULL"),
    "ix_models_last_used": (
        ("host", "last_used_at", *KEY_BACKWARDS),
        "last_used_at IS NOT NULL",
    ),
    "ix_models_most_used": (("host", "use_count", *KEY_BACKWARDS), "use_count <> 0"),
    "ix_models_store": (("host", "store"), "store IS NOT NULL"),
    "ix_models_digest": (("digest",), "digest IS NOT NULL"),
}

# Without them the planner takes one model in 200 to have the value of a filter. It needs
# PostgreSQL 14; an older server plans as before.
EFFECTIVE = ("format", "architecture", "quantization")
ADD_STATISTICS = """\
DO $$
BEGIN
    IF current_setting('server_version_num')::int >= 140000 THEN
        EXECUTE 'CREATE STATISTICS ix_models_effective_{name}'
            || ' ON (coalesce({name}, claimed_{name})) FROM models';
    END IF;
END $$"""


def create_partial_index(name: str, columns: tuple, condition: str) -> None:
    where = sa.text(condition)
    op.create_index(name, "models", list(columns), sqlite_where=where, postgresql_where=where)


def upgrade() -> None:
    dialect = op.get_context().dialect.name
    for name in ("ix_models_newest_first", "ix_models_digest", "ix_models_host_sizes"):
        op.drop_index(name, "models")
    op.create_index(
        "ix_models_newest_first", "models", ["host", sa.text(OLDEST[dialect]), *KEY_BACKWARDS]
    )
    op.create_index("ix_models_host_sizes", "models", ["host", "size_bytes"])
    for name, (columns, condition) in PARTIAL_INDEXES.items():
        create_partial_index(name, columns, condition)
    if dialect == "postgresql":
        # A SQLite file merges the models of each provider, which the index of the key has in this
        # order. Another index would make a registration in bulk half as long again.
        op.execute(BY_NAME)
        for name in EFFECTIVE:
            op.execute(ADD_STATISTICS.format(name=name))


def downgrade() -> None:
    dialect = op.get_context().dialect.name
    if dialect == "postgresql":
        for name in EFFECTIVE:
            op.execute(f"DROP STATISTICS IF EXISTS ix_models_effective_{name}")
        op.drop_index("ix_models_name", "models")
    for name in reversed(PARTIAL_INDEXES):
        op.drop_index(name, "models")
    for name in ("ix_models_host_sizes", "ix_models_newest_first"):
        op.drop_index(name, "models")
    create_partial_index("ix_models_host_sizes", ("host", "size_bytes"), "host <> ''")
    op.create_index("ix_models_digest", "models", ["digest"])
    op.create_index("ix_models_newest_first", "models", ["host", sa.text(NEWEST[dialect]), *KEY])
