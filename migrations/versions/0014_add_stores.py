"""
Add the external store that contains a model, and the store that created an alias.

Revision ID: model_catalog_0014

Existing models were registered by a user and belong to no store. Existing aliases belong to the
user.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "model_catalog_0014"
down_revision = "model_catalog_0013"
branch_labels = None
depends_on = None

KEY = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    op.add_column("models", sa.Column("store", KEY))
    op.add_column("models", sa.Column("store_root", sa.Text()))
    op.add_column("model_aliases", sa.Column("store", KEY))


def downgrade() -> None:
    """Drop the store columns. The models and the aliases stay."""
    op.drop_column("model_aliases", "store")
    for column in ("store_root", "store"):
        op.drop_column("models", column)
