"""
Add the right of one process to download or to evict a model, for a limited time.

Revision ID: model_catalog_0020

A claim is unique for the name of a model on one host. The host is `""` for a catalog without one,
and `*` for a claim on a disk that all hosts share. `holder_host` is the name of the machine whose
process holds it. `token` is random and names the holder, so that a holder that lost its claim
cannot write any more. The times are milliseconds since 1970 of the database's clock.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "model_catalog_0020"
down_revision = "model_catalog_0019"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
KEY = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "model_claims",
        sa.Column("host", KEY, nullable=False, server_default=sa.text("''")),
        sa.Column("provider", KEY, nullable=False),
        sa.Column("reference", KEY, nullable=False),
        sa.Column("version", KEY, nullable=False),
        sa.Column("purpose", KEY, nullable=False),
        sa.Column("token", KEY, nullable=False),
        sa.Column("holder_host", KEY, nullable=False),
        sa.Column("holder_process_id", BIG, nullable=False),
        sa.Column("renewed_at_ms", BIG, nullable=False),
        sa.Column("expires_at_ms", BIG, nullable=False),
        sa.PrimaryKeyConstraint("host", "provider", "reference", "version", name="pk_model_claims"),
        sa.UniqueConstraint("token", name="uq_model_claims_token"),
    )


def downgrade() -> None:
    """Drop the claims. Downloads of the newer package that are running end with an error."""
    op.drop_table("model_claims")
