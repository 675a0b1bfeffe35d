"""
Add the files of a model, when they were listed, and why a model is incomplete.

Revision ID: model_catalog_0012

The rows of `model_files` are valid only while `inventoried_at` is set. A registration with another
size or digest is a single statement. It sets `inventoried_at` to NULL and leaves the rows for the
next listing to replace.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "model_catalog_0012"
down_revision = "model_catalog_0011"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
KEY = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    op.add_column("models", sa.Column("inventoried_at", BIG))
    op.add_column("models", sa.Column("incomplete_reason", sa.Text()))
    op.create_table(
        "model_files",
        sa.Column("model_id", BIG, nullable=False),
        sa.Column("path", KEY, nullable=False),
        sa.Column("role", KEY, nullable=False),
        sa.Column("size_bytes", BIG, nullable=False),
        sa.Column("digest", KEY),
        sa.Column("found_digest", KEY),
        sa.Column("fingerprint", KEY),
        sa.Column("hashed_at", BIG),
        sa.PrimaryKeyConstraint("model_id", "path", name="pk_model_files"),
        sa.ForeignKeyConstraint(
            ["model_id"], ["models.id"], name="fk_model_files_model_id_models", ondelete="CASCADE"
        ),
        sa.CheckConstraint(
            "size_bytes BETWEEN 0 AND 9223372036854775807", name=op.f("ck_model_files_size_bytes")
        ),
    )
    op.create_index("ix_model_files_digest", "model_files", ["digest"])


def downgrade() -> None:
    """Drop the lists of files. The files on the disk are not changed."""
    op.drop_table("model_files")
    for column in ("incomplete_reason", "inventoried_at"):
        op.drop_column("models", column)
