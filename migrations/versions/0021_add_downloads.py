"""
Add the downloads: those that are running, and the history of those that have ended.

Revision ID: model_catalog_0021

`host` and `token` are those of the download's claim, and `holder_host` is the name of the machine
that downloads. A download whose claim has expired is not running any more,
whatever its state says. The times are milliseconds since 1970 of the database's clock.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "model_catalog_0021"
down_revision = "model_catalog_0020"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
KEY = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "model_downloads",
        sa.Column("id", BIG, sa.Identity(), nullable=False),
        sa.Column("host", KEY, nullable=False, server_default=sa.text("''")),
        sa.Column("provider", KEY, nullable=False),
        sa.Column("reference", KEY, nullable=False),
        sa.Column("version", KEY, nullable=False),
        sa.Column("token", KEY, nullable=False),
        sa.Column("state", KEY, nullable=False),
        sa.Column("holder_host", KEY, nullable=False),
        sa.Column("holder_process_id", BIG, nullable=False),
        sa.Column("done_bytes", BIG, nullable=False, server_default=sa.text("0")),
        sa.Column("total_bytes", BIG),
        sa.Column("queued_at_ms", BIG, nullable=False),
        sa.Column("started_at_ms", BIG),
        sa.Column("finished_at_ms", BIG),
        sa.Column("error", sa.Text()),
        sa.PrimaryKeyConstraint("id", name="pk_model_downloads"),
        sa.UniqueConstraint("token", name="uq_model_downloads_token"),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'done', 'failed')",
            name=op.f("ck_model_downloads_state"),
        ),
    )
    op.create_index(
        "ix_model_downloads_host_provider_reference_version",
        "model_downloads",
        ["host", "provider", "reference", "version"],
    )


def downgrade() -> None:
    """Drop the downloads. The models that they registered stay."""
    op.drop_table("model_downloads")
