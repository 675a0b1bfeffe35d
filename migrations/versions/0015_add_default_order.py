"""
Add the index that the default order of a listing is read from, one page as fast as another.

Revision ID: 0015

NULL comes last: to SQLite, which cannot be told so here, it is the least of all values anyway.
"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

NEWEST_FIRST = {"sqlite": "downloaded_at DESC", "postgresql": "downloaded_at DESC NULLS LAST"}


def upgrade() -> None:
    newest_first = sa.text(NEWEST_FIRST[op.get_context().dialect.name])
    columns = [newest_first, "provider", "reference", "version"]
    op.create_index("ix_models_newest_first", "models", columns)


def downgrade() -> None:
    op.drop_index("ix_models_newest_first", "models")
