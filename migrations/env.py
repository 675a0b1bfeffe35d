"""How Alembic reaches a catalog: lent a connection by the package, or from the command line."""

import asyncio
import os
from logging.config import fileConfig
from typing import Any

from alembic import context
from alembic.util import CommandError
from sqlalchemy import Connection

from model_catalog.connection.open_database import opened
from model_catalog.connection.target import ENVIRONMENT, locate
from model_catalog.errors import CatalogError
from model_catalog.mapping.tables import Base
from model_catalog.schema.migrate import (
    VERSION_TABLE,
    comparison,
    current_revision,
    keep_copy,
    mark,
    recognise,
)
from model_catalog.schema.migration_lock import exclusive

config = context.config


def target() -> str | None:
    given = context.get_x_argument(as_dictionary=True).get("url")
    return given or os.environ.get(ENVIRONMENT) or config.get_main_option("sqlalchemy.url")


def options(dialect: str) -> dict[str, Any]:
    return {
        "target_metadata": Base.metadata,
        "version_table": VERSION_TABLE,
        "render_as_batch": True,
        **comparison(dialect),
    }


def run(connection: Connection) -> None:
    context.configure(connection=connection, **options(connection.dialect.name))
    with context.begin_transaction():
        context.run_migrations()


async def run_from_the_shell() -> None:
    # Only what is about to write a schema may make a file to write it in.
    command = config.cmd_opts.cmd[0].__name__ if config.cmd_opts is not None else ""
    try:
        async with opened(target(), create=command in ("upgrade", "stamp")) as database:
            # The lock writes to a file; another program's is refused before that.
            await current_revision(database)
            async with exclusive(database.engine, database.name) as connection:
                await connection.run_sync(recognise, database)
                if command in ("upgrade", "downgrade"):
                    await keep_copy(connection, database, config.cmd_opts.revision)
                await connection.run_sync(run)
                if command == "upgrade":
                    await connection.run_sync(mark, database)
    except CatalogError as error:
        raise CommandError(str(error)) from error


def print_sql() -> None:
    url = locate(target()).url
    dialect = url.get_backend_name()
    context.configure(
        url=url,
        literal_binds=True,
        dialect_opts={"paramstyle": "named"},
        transactional_ddl=True,
        **options(dialect),
    )
    if dialect == "sqlite":
        # See exclusive.py: within the transaction it would do nothing.
        context.execute("PRAGMA foreign_keys = OFF")
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    print_sql()
elif (lent := config.attributes.get("connection")) is not None:
    run(lent)
else:
    # A host that calls upgrade() has logging of its own, which fileConfig would take away.
    if config.config_file_name is not None and config.file_config.has_section("loggers"):
        fileConfig(config.config_file_name, disable_existing_loggers=False)
    asyncio.run(run_from_the_shell())
