"""
Create the table of the Rust hive, or adopt an existing one.

Revision ID: model_catalog_0001

The Rust hive declared `size_bytes` and `downloaded_at` NOT NULL, although its documentation calls
them nullable. Its first releases had the reference alone as the primary key. SQLite cannot change
either in place, so the table is rebuilt. In a new database the table is empty.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "model_catalog_0001"
down_revision = None
branch_labels = ("model_catalog",)
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
KEY = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def hive() -> list[sa.schema.SchemaItem]:
    return [
        sa.Column("reference", KEY, nullable=False),
        sa.Column("provider", KEY, nullable=False),
        sa.Column("local_path", sa.Text(), nullable=False),
        sa.Column("size_bytes", BIG),
        sa.Column("downloaded_at", BIG),
        sa.PrimaryKeyConstraint("reference", "provider", name="pk_models"),
    ]


def upgrade() -> None:
    op.create_table("models", *hive(), if_not_exists=True)
    if op.get_context().dialect.name == "sqlite":
        table = sa.Table("models", sa.MetaData(), *hive())
        with op.batch_alter_table("models", copy_from=table, recreate="always"):
            pass


def downgrade() -> None:
    """Drop the table with all of its rows."""
    op.drop_table("models")
