"""
Add the hosts of a fleet: how to reach them, their space, and when they last sent a heartbeat.

Revision ID: model_catalog_0024

A model may be recorded for a host that is not in this table, so nothing refers to it. There is no
index beside the primary key: a heartbeat then changes no index, and PostgreSQL updates the row in
place (a heap-only tuple). The times are milliseconds since 1970 of the database's clock.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "model_catalog_0024"
down_revision = "model_catalog_0023"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
KEY = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "model_hosts",
        sa.Column("name", KEY, nullable=False),
        sa.Column("address", sa.Text()),
        sa.Column("labels", sa.Text()),
        sa.Column("ssh_user", sa.Text()),
        sa.Column("ssh_host", sa.Text()),
        sa.Column("ssh_port", BIG),
        sa.Column("ssh_key_path", sa.Text()),
        sa.Column("capacity_bytes", BIG),
        sa.Column("free_bytes", BIG),
        sa.Column("registered_at_ms", BIG, nullable=False),
        sa.Column("heartbeat_at_ms", BIG),
        sa.PrimaryKeyConstraint("name", name="pk_model_hosts"),
    )


def downgrade() -> None:
    """Drop the hosts. No model refers to them; the newer package lets them register again."""
    op.drop_table("model_hosts")
