"""
Add the processes that use a model, so that a model in use is not removed.

Revision ID: model_catalog_0022

The foreign key does not cascade: the database itself refuses to delete a model with a use. A use
ends at `expires_at_ms` unless its process renews it. The times are milliseconds since 1970 of the
database's clock.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "model_catalog_0022"
down_revision = "model_catalog_0021"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
KEY = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "model_uses",
        sa.Column("token", KEY, nullable=False),
        sa.Column("model_id", BIG, nullable=False),
        sa.Column("holder_host", KEY, nullable=False),
        sa.Column("holder_process_id", BIG, nullable=False),
        sa.Column("started_at_ms", BIG, nullable=False),
        sa.Column("renewed_at_ms", BIG, nullable=False),
        sa.Column("expires_at_ms", BIG, nullable=False),
        sa.PrimaryKeyConstraint("token", name="pk_model_uses"),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_model_uses_model_id_models"),
    )
    op.create_index("ix_model_uses_model_id", "model_uses", ["model_id"])


def downgrade() -> None:
    """Drop the uses. Models that a process of the newer package uses can be removed again."""
    op.drop_table("model_uses")
