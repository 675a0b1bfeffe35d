"""The revision that the databases are at; there is nothing left to do."""

from model_catalog.mapping.revisions import head_revision

revision = head_revision()
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    pass


def downgrade() -> None:
    pass
