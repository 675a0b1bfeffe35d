"""Runs the migrations of the catalog, and then those of the service."""

import asyncio
import os

from alembic import context
from sqlalchemy import Connection

from model_catalog import upgrade_connection
from model_catalog.alembic import include_name, include_object
from placements.database import Base, create_engine


def run_migrations(connection: Connection) -> None:
    """Bring the catalog's tables up to date, and then run the command of Alembic."""
    upgrade_connection(connection)
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        include_name=include_name,
        include_object=include_object,
    )
    with context.begin_transaction():
        context.run_migrations()


async def connect_and_run() -> None:
    """Run the migrations in the database of the tests, or in DATABASE_URL."""
    engine = create_engine(context.config.attributes.get("url") or os.environ["DATABASE_URL"])
    async with engine.connect() as connection:
        await connection.run_sync(run_migrations)
    await engine.dispose()


asyncio.run(connect_and_run())
