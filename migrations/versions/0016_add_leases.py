"""
Add the leases of background tasks, so that one of several processes does a task at a time.

Revision ID: model_catalog_0016

A lease names its task and its holder. It begins at `renewed_at_ms` and ends at `expires_at_ms`, in
milliseconds since 1970 of the database's clock.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "model_catalog_0016"
down_revision = "model_catalog_0015"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
KEY = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "model_catalog_leases",
        sa.Column("name", KEY, nullable=False),
        sa.Column("holder", KEY, nullable=False),
        sa.Column("renewed_at_ms", BIG, nullable=False),
        sa.Column("expires_at_ms", BIG, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_model_catalog_leases"),
    )


def downgrade() -> None:
    """Drop the leases. Tasks of the newer package that are running stop at their next renewal."""
    op.drop_table("model_catalog_leases")
