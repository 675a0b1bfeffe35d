"""
Add the folder in which the catalog may delete the files of a model.

Revision ID: model_catalog_0023

It is NULL for all models of an older release: nothing tells who owns their files.
"""

import sqlalchemy as sa
from alembic import op

revision = "model_catalog_0023"
down_revision = "model_catalog_0022"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("models", sa.Column("managed_root", sa.Text()))


def downgrade() -> None:
    op.drop_column("models", "managed_root")
