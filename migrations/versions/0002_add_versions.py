"""
Add versions, so that a reference can have more than one model.

Revision ID: model_catalog_0002

An invalid size or time (negative, text, or milliseconds) becomes NULL. Its row is kept, and the
number of such rows is logged.
"""

import logging

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "model_catalog_0002"
down_revision = "model_catalog_0001"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
KEY = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")

SIZES = "size_bytes BETWEEN 0 AND 9223372036854775807"
TIMES = "downloaded_at BETWEEN -62135596800 AND 253402300799"

log = logging.getLogger("model_catalog.migrations")


def hive() -> sa.Table:
    return sa.Table(
        "models",
        sa.MetaData(),
        sa.Column("reference", KEY, nullable=False),
        sa.Column("provider", KEY, nullable=False),
        sa.Column("local_path", sa.Text(), nullable=False),
        sa.Column("size_bytes", BIG),
        sa.Column("downloaded_at", BIG),
        sa.PrimaryKeyConstraint("reference", "provider", name="pk_models"),
    )


def versioned() -> sa.Table:
    return sa.Table(
        "models",
        sa.MetaData(),
        sa.Column("reference", KEY, nullable=False),
        sa.Column("provider", KEY, nullable=False),
        sa.Column("local_path", sa.Text(), nullable=False),
        sa.Column("size_bytes", BIG),
        sa.Column("downloaded_at", BIG),
        sa.Column("id", BIG, sa.Identity(), nullable=False),
        sa.Column("version", KEY, nullable=False, server_default=sa.text("''")),
        sa.PrimaryKeyConstraint("id", name="pk_models"),
        sa.UniqueConstraint(
            "provider", "reference", "version", name="uq_models_provider_reference_version"
        ),
        sa.CheckConstraint(SIZES, name="ck_models_size_bytes"),
        sa.CheckConstraint(TIMES, name="ck_models_downloaded_at"),
    )


def forget_odd(column: str, sound: str) -> None:
    # SQLite does not enforce a column's type: a REAL or a BLOB could pass BETWEEN.
    whole = (
        f"typeof({column}) = 'integer' AND " if op.get_context().dialect.name == "sqlite" else ""
    )
    statement = sa.text(
        f"UPDATE models SET {column} = NULL WHERE {column} IS NOT NULL AND NOT ({whole}{sound})"
    )
    if op.get_context().as_sql:
        op.execute(statement)
    elif odd := op.get_bind().execute(statement).rowcount:
        log.warning("%d rows had an invalid %s; it was set to NULL", odd, column)


def read_blobs_as_text() -> None:
    """Convert BLOBs in SQLite's text columns to text, because a search for text finds no BLOB."""
    if op.get_context().dialect.name == "sqlite":
        for column in ("reference", "provider"):
            op.execute(
                f"UPDATE OR IGNORE models SET {column} = CAST({column} AS TEXT)"
                f" WHERE typeof({column}) = 'blob'"
            )


def upgrade() -> None:
    read_blobs_as_text()
    forget_odd("size_bytes", SIZES)
    forget_odd("downloaded_at", TIMES)
    with op.batch_alter_table("models", copy_from=hive()) as models:
        models.drop_constraint("pk_models", type_="primary")
        models.add_column(sa.Column("id", BIG, sa.Identity(), nullable=False))
        models.add_column(sa.Column("version", KEY, nullable=False, server_default=sa.text("''")))
        models.create_primary_key("pk_models", ["id"])
        models.create_unique_constraint(
            "uq_models_provider_reference_version", ["provider", "reference", "version"]
        )
        models.create_check_constraint(op.f("ck_models_size_bytes"), SIZES)
        models.create_check_constraint(op.f("ck_models_downloaded_at"), TIMES)


def downgrade() -> None:
    """Restore the table of the Rust hive. Only the newest version of each model is kept."""
    op.execute(
        "DELETE FROM models WHERE EXISTS (SELECT 1 FROM models AS newer"
        " WHERE newer.provider = models.provider AND newer.reference = models.reference"
        " AND (coalesce(newer.downloaded_at, -62135596801), newer.id)"
        " > (coalesce(models.downloaded_at, -62135596801), models.id))"
    )
    with op.batch_alter_table("models", copy_from=versioned()) as models:
        models.drop_constraint("uq_models_provider_reference_version", type_="unique")
        models.drop_constraint(op.f("ck_models_size_bytes"), type_="check")
        models.drop_constraint(op.f("ck_models_downloaded_at"), type_="check")
        models.drop_constraint("pk_models", type_="primary")
        models.drop_column("id")
        models.drop_column("version")
        models.create_primary_key("pk_models", ["reference", "provider"])
