"""
Add case-folded copies of the reference and the description, for searching.

Revision ID: model_catalog_0009

SQLite and PostgreSQL fold case differently, so Python folds it, here and at every write. Printed
SQL (`alembic upgrade --sql`) can only use the database's `lower`. The next registration of a model
corrects its text.
"""

import unicodedata

import sqlalchemy as sa
from alembic import op

revision = "model_catalog_0009"
down_revision = "model_catalog_0008"
branch_labels = None
depends_on = None

BATCH = 1000


def folded(text: object) -> str | None:
    # SQLite allows a BLOB in a text column. It is not searched.
    if not isinstance(text, str):
        return None
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def upgrade() -> None:
    op.add_column("models", sa.Column("reference_folded", sa.Text()))
    op.add_column("models", sa.Column("description_folded", sa.Text()))
    if op.get_context().as_sql:
        op.execute(
            "UPDATE models SET reference_folded = lower(reference),"
            " description_folded = lower(description)"
        )
        return
    connection = op.get_bind()
    page = sa.text(
        "SELECT id, reference, description FROM models WHERE id > :last ORDER BY id LIMIT :batch"
    )
    change = sa.text(
        "UPDATE models SET reference_folded = :reference, description_folded = :description"
        " WHERE id = :id"
    )
    last = -(2**63)
    while rows := connection.execute(page, {"last": last, "batch": BATCH}).all():
        connection.execute(
            change,
            [
                {"id": id_, "reference": folded(reference), "description": folded(description)}
                for id_, reference, description in rows
            ],
        )
        last = rows[-1].id


def downgrade() -> None:
    op.drop_column("models", "description_folded")
    op.drop_column("models", "reference_folded")
