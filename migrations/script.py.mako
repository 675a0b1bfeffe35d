"""
${message}.

Revision ID: model_catalog_${up_revision}
"""
<%doc>
Rules for a revision:
- It has one concern. `alembic revision --rev-id NNNN` names its file NNNN_verb_object.py and gives it
  the id model_catalog_NNNN.
- It is written by hand; a draft by autogenerate is only a start.
- It imports sqlalchemy and op, never the package's mapping, which will change after it.
- Every batch has copy_from=, because reflection loses what it does not support.
- It accesses no model files.
- Its test has rows, on both databases, and migrates up, down and up again.
- It is never edited once it has been released.
</%doc>
import sqlalchemy as sa
from alembic import op

revision = ${repr("model_catalog_" + up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
