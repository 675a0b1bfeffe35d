"""
Add the signer of a model, and the time, verdict and detail of the signature check.

Revision ID: model_catalog_0013
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "model_catalog_0013"
down_revision = "model_catalog_0012"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
KEY = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    op.add_column("models", sa.Column("signed_by", KEY))
    op.add_column("models", sa.Column("signature_verdict", KEY))
    op.add_column("models", sa.Column("signature_detail", sa.Text()))
    op.add_column("models", sa.Column("signature_checked_at", BIG))


def downgrade() -> None:
    for column in (
        "signature_checked_at",
        "signature_detail",
        "signature_verdict",
        "signed_by",
    ):
        op.drop_column("models", column)
