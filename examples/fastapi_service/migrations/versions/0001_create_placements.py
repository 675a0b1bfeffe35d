"""
Create the table of placements.

Revision ID: 0001
Revises:
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# The type of the catalog's `models.id`, as autogenerate writes it.
MODEL_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "placements",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("model_id", MODEL_ID, nullable=False),
        sa.Column("host", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_placements_model_id_models"),
        sa.PrimaryKeyConstraint("id", name="pk_placements"),
    )
    op.create_index("ix_placements_model_id", "placements", ["model_id"])


def downgrade() -> None:
    op.drop_table("placements")
