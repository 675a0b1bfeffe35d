"""
${message}.

Revision ID: ${up_revision}
"""
<%doc>
Rules for a revision:
- It has one concern. Its file is named NNNN_verb_object.py, and its id is the number.
- It is written by hand; a draft by autogenerate is only a start.
- It imports sqlalchemy and op, never the package's mapping, which will change after it.
- Every batch has copy_from=, because reflection loses what it does not support.
- It accesses no model files.
- Its test has rows, on both databases, and migrates up, down and up again.
- It is never edited once it has been released.
</%doc>
import sqlalchemy as sa
from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
