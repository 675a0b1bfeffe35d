"""
Count downloads and uses.

Revision ID: model_catalog_0006

An existing model counts as downloaded once.
"""

import sqlalchemy as sa
from alembic import op

revision = "model_catalog_0006"
down_revision = "model_catalog_0005"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column(
        "models", sa.Column("download_count", BIG, nullable=False, server_default=sa.text("1"))
    )
    op.add_column(
        "models", sa.Column("use_count", BIG, nullable=False, server_default=sa.text("0"))
    )
    op.add_column("models", sa.Column("last_used_at", BIG))


def downgrade() -> None:
    for column in ("last_used_at", "use_count", "download_count"):
        op.drop_column("models", column)
