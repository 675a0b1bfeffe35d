"""Creates the tables of a new database in one step, without the chain of migrations."""

from __future__ import annotations

import sqlalchemy as sa

from model_catalog.mapping.base import Base
from model_catalog.mapping.revisions import VERSION_TABLE, head_revision


def create_tables(connection: sa.Connection) -> None:
    """
    Create the tables of the newest revision in the connection's transaction, and record it.

    The database has none of the catalog's tables yet, except perhaps the version table without a
    row. The caller holds the migration lock, and commits. The result equals that of all revisions
    in `migrations/`, which takes four times as long and needs Alembic.
    """
    Base.metadata.create_all(connection, checkfirst=False)
    # As Alembic creates it, which uses it in every later migration.
    versions = sa.Table(
        VERSION_TABLE,
        sa.MetaData(),
        sa.Column("version_num", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("version_num", name=f"{VERSION_TABLE}_pkc"),
    )
    # A downgrade to "base" leaves it.
    versions.create(connection, checkfirst=True)
    connection.execute(versions.delete())
    connection.execute(versions.insert().values(version_num=head_revision()))
