"""
Add the results of checks: a model's state, since when it is missing, and its mount point.

Revision ID: model_catalog_0010

Existing models have the state `unchecked`.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "model_catalog_0010"
down_revision = "model_catalog_0009"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
KEY = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    op.add_column(
        "models", sa.Column("state", KEY, nullable=False, server_default=sa.text("'unchecked'"))
    )
    op.add_column("models", sa.Column("state_detail", sa.Text()))
    op.add_column("models", sa.Column("checked_at", BIG))
    op.add_column("models", sa.Column("missing_since", BIG))
    op.add_column("models", sa.Column("mount_point", sa.Text()))


def downgrade() -> None:
    for column in ("mount_point", "missing_since", "checked_at", "state_detail", "state"):
        op.drop_column("models", column)
