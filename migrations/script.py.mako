"""
${message}.

Revision ID: ${up_revision}
"""
<%doc>
The house rules of a revision. One concern; the file is named NNNN_verb_object.py and its id is the
number. Written by hand: what autogenerate proposes is a draft. It imports sqlalchemy and op, never
the package's mapping: it describes the past, and the mapping moves on. copy_from= in every batch,
because reflection loses what it does not know. It touches no model file. Rows in its test, on both
databases, up, down and up again. Once released it is never edited.
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
