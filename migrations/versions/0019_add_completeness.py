"""
Divide the reasons why a model is incomplete by what they were found in.

Revision ID: model_catalog_0019

`listing_reason` comes from file names and from the lists of a store, and `content_reason` from what
was read of the files: one reason a line. `unknown_reason` says what could not be judged. So a scan
that reads no file keeps what a verification has found in the same bytes.

Reasons of models that were never verified come from file names. Reasons of other models may come
from either, and the next scan or verification divides them.
"""

import sqlalchemy as sa
from alembic import op

revision = "model_catalog_0019"
down_revision = "model_catalog_0018"
branch_labels = None
depends_on = None

COLUMNS = ("unknown_reason", "listing_reason", "content_reason")


def upgrade() -> None:
    for name in COLUMNS:
        op.add_column("models", sa.Column(name, sa.Text()))
    models = sa.table(
        "models",
        *map(sa.column, ("listing_reason", "incomplete_reason", "store", "verified_at")),
    )
    op.execute(
        models.update()
        .where(models.c.store.is_not(None), models.c.verified_at.is_(None))
        .values(listing_reason=models.c.incomplete_reason)
    )


def downgrade() -> None:
    """Drop the columns. `incomplete_reason` still has all reasons."""
    for name in reversed(COLUMNS):
        op.drop_column("models", name)
