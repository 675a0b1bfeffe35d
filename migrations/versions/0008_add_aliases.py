"""
Add aliases: names of a reference that each point to one of its versions.

Revision ID: model_catalog_0008
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "model_catalog_0008"
down_revision = "model_catalog_0007"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
KEY = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "model_aliases",
        sa.Column("provider", KEY, nullable=False),
        sa.Column("reference", KEY, nullable=False),
        sa.Column("alias", KEY, nullable=False),
        sa.Column("model_id", BIG, nullable=False),
        sa.PrimaryKeyConstraint("provider", "reference", "alias", name="pk_model_aliases"),
        sa.ForeignKeyConstraint(
            ["model_id"], ["models.id"], name="fk_model_aliases_model_id_models", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_model_aliases_model_id", "model_aliases", ["model_id"])


def downgrade() -> None:
    op.drop_table("model_aliases")
