"""
Add a description that the user writes.

Revision ID: model_catalog_0004
"""

import sqlalchemy as sa
from alembic import op

revision = "model_catalog_0004"
down_revision = "model_catalog_0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("models", sa.Column("description", sa.Text()))


def downgrade() -> None:
    op.drop_column("models", "description")
