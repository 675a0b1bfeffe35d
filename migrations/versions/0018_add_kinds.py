"""
Add the kind of a model: the user's word, and what its files say.

Revision ID: model_catalog_0018

A row of an older release has NULL in both, because nothing has looked for its kind. A scan, `add`
and `accept` set `claimed_kind`. The downgrade deletes both.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "model_catalog_0018"
down_revision = "model_catalog_0017"
branch_labels = None
depends_on = None

KEY = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    op.add_column("models", sa.Column("kind", KEY))
    op.add_column("models", sa.Column("claimed_kind", KEY))


def downgrade() -> None:
    op.drop_column("models", "claimed_kind")
    op.drop_column("models", "kind")
