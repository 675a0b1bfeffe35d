"""
Add in which other program's store a model lies, and which aliases the refs of a store have made.

Revision ID: 0014

What is recorded already was registered by hand and is in no store; its aliases are the user's own.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

KEY = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    op.add_column("models", sa.Column("store", KEY))
    op.add_column("models", sa.Column("store_root", sa.Text()))
    op.add_column("model_aliases", sa.Column("store", KEY))


def downgrade() -> None:
    """Forget whose models they are; they stay recorded, and so do the aliases."""
    op.drop_column("model_aliases", "store")
    for column in ("store_root", "store"):
        op.drop_column("models", column)
