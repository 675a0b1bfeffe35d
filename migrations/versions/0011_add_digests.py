"""
Add a model's expected digest, a different digest that was found, and the time of verification.

Revision ID: model_catalog_0011
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "model_catalog_0011"
down_revision = "model_catalog_0010"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
KEY = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    op.add_column("models", sa.Column("digest", KEY))
    op.add_column("models", sa.Column("found_digest", KEY))
    op.add_column("models", sa.Column("verified_at", BIG))
    op.create_index("ix_models_digest", "models", ["digest"])


def downgrade() -> None:
    op.drop_index("ix_models_digest", "models")
    for column in ("verified_at", "found_digest", "digest"):
        op.drop_column("models", column)
