"""
Add facts that a scan learns: the identity of a file, its bytes on the disk, and read headers.

Revision ID: model_catalog_0017

`file_id` is `st_dev:st_ino`, so that a file with several names is counted once. `disk_bytes` are
the bytes that the file takes on the disk. A scan reads the headers of a model again if
`headers_read_at` is NULL. Rows of older releases have NULL in all three, and the next scan fills
them in.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "model_catalog_0017"
down_revision = "model_catalog_0016"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
KEY = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    op.add_column("model_files", sa.Column("file_id", KEY))
    op.add_column("model_files", sa.Column("disk_bytes", BIG))
    op.add_column("models", sa.Column("headers_read_at", BIG))


def downgrade() -> None:
    """Drop the columns. A scan of the newer package fills them in again."""
    op.drop_column("models", "headers_read_at")
    op.drop_column("model_files", "disk_bytes")
    op.drop_column("model_files", "file_id")
