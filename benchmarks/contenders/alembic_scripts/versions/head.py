"""The revision of the benchmark's databases: an upgrade has nothing to do."""

from model_catalog.mapping.revisions import head_revision

revision = head_revision()
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    pass


def downgrade() -> None:
    pass
