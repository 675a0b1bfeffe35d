"""Alembic's environment for the `alembic` command in a checkout. The package does not use it."""

import asyncio
import os
from logging.config import fileConfig
from typing import Any

from alembic import context
from alembic.util import CommandError
from sqlalchemy import Connection
from sqlalchemy.exc import InvalidRequestError

from model_catalog.connection.open_database import open_database
from model_catalog.connection.target import (
    TARGET_VARIABLE,
    default_schema,
    resolve_target,
    validate_schema,
)
from model_catalog.errors import CatalogError
from model_catalog.mapping.revisions import VERSION_TABLE, head_revision
from model_catalog.mapping.tables import Base
from model_catalog.schema.diagnosis import autogenerate_options
from model_catalog.schema.host_objects import keep_host_objects
from model_catalog.schema.migrate import backup_if_needed, set_application_id
from model_catalog.schema.migration_lock import migration_transaction
from model_catalog.schema.postgres_schema import quote_name
from model_catalog.schema.revision import (
    current_revision,
    detect_revision,
    require_known_revision,
)
from model_catalog.schema.revision_runner import record_revision

config = context.config


def is_shared() -> bool:
    given = context.get_x_argument(as_dictionary=True).get("shared", "no")
    if given not in ("yes", "no"):
        raise CommandError(f"-x shared={given}: give `yes` or `no`")
    return given == "yes"


def target() -> str | None:
    given = context.get_x_argument(as_dictionary=True).get("url")
    return given or os.environ.get(TARGET_VARIABLE) or config.get_main_option("sqlalchemy.url")


def schema() -> str | None:
    arguments = context.get_x_argument(as_dictionary=True)
    return arguments.get("schema") or default_schema(arguments.get("url"))


def options(dialect: str) -> dict[str, Any]:
    return {
        "target_metadata": Base.metadata,
        "version_table": VERSION_TABLE,
        "render_as_batch": True,
        **autogenerate_options(dialect),
    }


def run(connection: Connection, name: str) -> None:
    context.configure(connection=connection, **options(connection.dialect.name))
    with keep_host_objects(connection, name, "that revision"), context.begin_transaction():
        try:
            context.run_migrations()
        except InvalidRequestError as error:
            # A revision refuses, for example a downgrade with the models of several hosts.
            raise CommandError(str(error)) from error


async def run_from_the_shell() -> None:
    # Only a command that writes a schema may create the file.
    command = config.cmd_opts.cmd[0].__name__ if config.cmd_opts is not None else ""
    try:
        async with open_database(
            target(),
            create=command in ("upgrade", "stamp"),
            shared=is_shared(),
            schema=schema(),
        ) as database:
            # Refuses another program's database before the lock writes to it.
            before = await current_revision(database)
            is_at_head = before.recorded == head_revision()
            async with migration_transaction(
                database.engine,
                database.name,
                create=database.create,
                locks_tables=command == "downgrade" or (command == "upgrade" and not is_at_head),
            ) as connection:
                current = await connection.run_sync(
                    detect_revision, database.name, shared=database.shared
                )
                if command in ("upgrade", "downgrade"):
                    await backup_if_needed(connection, database, config.cmd_opts.revision)
                if current.revision != current.recorded:
                    # Alembic knows neither an id of release 0.1.0 nor tables without an id.
                    require_known_revision(current.revision, database.name)
                    await connection.run_sync(record_revision, current.revision)
                await connection.run_sync(run, database.name)
                if command == "upgrade":
                    await connection.run_sync(set_application_id, database)
    except CatalogError as error:
        raise CommandError(str(error)) from error


def print_sql() -> None:
    location = resolve_target(target())
    url = location.url
    dialect = url.get_backend_name()
    validate_schema(schema(), dialect, location.name)
    context.configure(
        url=url,
        literal_binds=True,
        dialect_opts={"paramstyle": "named"},
        transactional_ddl=True,
        **options(dialect),
    )
    if dialect == "sqlite":
        # Inside the transaction it would have no effect: see migration_lock.py.
        context.execute("PRAGMA foreign_keys = OFF")
    with context.begin_transaction():
        if (name := schema()) is not None:
            quoted = quote_name(name)
            context.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted}")
            context.execute(f"SET LOCAL search_path = {quoted}, pg_temp")
        context.run_migrations()


if context.is_offline_mode():
    print_sql()
else:
    if config.config_file_name is not None and config.file_config.has_section("loggers"):
        fileConfig(config.config_file_name, disable_existing_loggers=False)
    asyncio.run(run_from_the_shell())
