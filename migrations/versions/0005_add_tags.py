"""
Add tags.

Revision ID: model_catalog_0005

A tag is stored as the user wrote it. Tags that differ only in case are the same tag, so the primary
key contains the case-folded text.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "model_catalog_0005"
down_revision = "model_catalog_0004"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
KEY = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "model_tags",
        sa.Column("model_id", BIG, nullable=False),
        sa.Column("folded", KEY, nullable=False),
        sa.Column("tag", KEY, nullable=False),
        sa.PrimaryKeyConstraint("model_id", "folded", name="pk_model_tags"),
        sa.ForeignKeyConstraint(
            ["model_id"], ["models.id"], name="fk_model_tags_model_id_models", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_model_tags_folded", "model_tags", ["folded"])


def downgrade() -> None:
    op.drop_table("model_tags")
