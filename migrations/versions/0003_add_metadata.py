"""
Add metadata: format, architecture, quantization, license, context length and more.

Revision ID: model_catalog_0003

Values from a file's header have their own columns, so that they never overwrite a user's values.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "model_catalog_0003"
down_revision = "model_catalog_0002"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
KEY = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")

WORDS = ("format", "architecture", "quantization", "license")
NUMBERS = ("context_length", "parameter_count")


def versioned() -> sa.Table:
    return sa.Table(
        "models",
        sa.MetaData(),
        sa.Column("reference", KEY, nullable=False),
        sa.Column("provider", KEY, nullable=False),
        sa.Column("local_path", sa.Text(), nullable=False),
        sa.Column("size_bytes", BIG),
        sa.Column("downloaded_at", BIG),
        sa.Column("id", BIG, sa.Identity(), nullable=False),
        sa.Column("version", KEY, nullable=False, server_default=sa.text("''")),
        sa.PrimaryKeyConstraint("id", name="pk_models"),
        sa.UniqueConstraint(
            "provider", "reference", "version", name="uq_models_provider_reference_version"
        ),
        sa.CheckConstraint(
            "size_bytes BETWEEN 0 AND 9223372036854775807", name="ck_models_size_bytes"
        ),
        sa.CheckConstraint(
            "downloaded_at BETWEEN -62135596800 AND 253402300799", name="ck_models_downloaded_at"
        ),
    )


def columns() -> list[sa.Column]:
    said = [*(sa.Column(name, KEY) for name in WORDS), *(sa.Column(name, BIG) for name in NUMBERS)]
    claimed = [sa.Column(f"claimed_{column.name}", column.type) for column in said]
    return [*said, sa.Column("source_url", sa.Text()), *claimed]


def checks() -> dict[str, str]:
    names = [*NUMBERS, *(f"claimed_{name}" for name in NUMBERS)]
    return {f"ck_models_{name}": f"{name} BETWEEN 0 AND 9223372036854775807" for name in names}


def upgrade() -> None:
    with op.batch_alter_table("models", copy_from=versioned()) as models:
        for column in columns():
            models.add_column(column)
        for name, condition in checks().items():
            models.create_check_constraint(op.f(name), condition)


def downgrade() -> None:
    """Drop the metadata columns and their values."""
    described = versioned()
    for column in columns():
        described.append_column(column)
    for name, condition in checks().items():
        described.append_constraint(sa.CheckConstraint(condition, name=name))
    with op.batch_alter_table("models", copy_from=described) as models:
        for name in checks():
            models.drop_constraint(op.f(name), type_="check")
        for column in columns():
            models.drop_column(column.name)
