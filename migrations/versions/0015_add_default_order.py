"""
Add an index for the default order of listings, so that every page is read equally fast.

Revision ID: model_catalog_0015

NULL sorts last. SQLite rejects NULLS LAST in an index, but there NULL is the smallest value, so it
comes last in descending order.
"""

import sqlalchemy as sa
from alembic import op

revision = "model_catalog_0015"
down_revision = "model_catalog_0014"
branch_labels = None
depends_on = None

NEWEST_FIRST = {"sqlite": "downloaded_at DESC", "postgresql": "downloaded_at DESC NULLS LAST"}


def upgrade() -> None:
    newest_first = sa.text(NEWEST_FIRST[op.get_context().dialect.name])
    columns = [newest_first, "provider", "reference", "version"]
    op.create_index("ix_models_newest_first", "models", columns)


def downgrade() -> None:
    op.drop_index("ix_models_newest_first", "models")
