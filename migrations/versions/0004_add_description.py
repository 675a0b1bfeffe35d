"""
Add a description that the user writes.

Revision ID: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("models", sa.Column("description", sa.Text()))


def downgrade() -> None:
    op.drop_column("models", "description")
