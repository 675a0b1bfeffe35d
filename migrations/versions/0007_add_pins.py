"""
Add pins: when a model was pinned, and the reason.

Revision ID: model_catalog_0007
"""

import sqlalchemy as sa
from alembic import op

revision = "model_catalog_0007"
down_revision = "model_catalog_0006"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("models", sa.Column("pinned_at", BIG))
    op.add_column("models", sa.Column("pin_reason", sa.Text()))


def downgrade() -> None:
    op.drop_column("models", "pin_reason")
    op.drop_column("models", "pinned_at")
