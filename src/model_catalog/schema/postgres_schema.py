"""The PostgreSQL schema of a catalog: its lock, its creation, and its use in a migration."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import sqlalchemy as sa

from model_catalog.connection.database_info import catalog_schema
from model_catalog.errors import CatalogUnavailableError, MissingPrivilegeError, command, shown

ADVISORY_LOCK: Final = 0x4D436174616C6F67
"""`MCatalog` in ASCII: an arbitrary number that no other program should use."""


def take_advisory_lock(connection: sa.Connection, function: str) -> Any:
    """Call a function of PostgreSQL, such as `pg_advisory_xact_lock`, with the migration lock."""
    # Catalogs in two schemas are migrated independently. Release 0.1.0 knows only the plain number,
    # which stays the lock of the schema `public`.
    statement = f"""\
        SELECT {function}(
            CASE schema WHEN 'public' THEN CAST(:lock AS bigint)
            ELSE hashtextextended(schema, CAST(:lock AS bigint)) END
        )
        FROM coalesce(
            CAST(:schema AS text), CAST(current_schema() AS text), 'public'
        ) AS schema"""  # noqa: S608 - the name of a function
    values = {"lock": ADVISORY_LOCK, "schema": catalog_schema(connection)}
    return connection.execute(sa.text(statement), values).scalar()


def require_schema(connection: sa.Connection, name: str) -> None:
    """Raise CatalogUnavailableError if the catalog's schema was given and does not exist."""
    schema = catalog_schema(connection)
    if schema is not None and not _exists(connection, schema):
        raise CatalogUnavailableError(
            name,
            f"the schema {shown(schema)} does not exist; create it with "
            f"upgrade(target, schema=...) or {command('db', 'upgrade', '--schema', schema)}",
        )


def require_usable_schema(connection: sa.Connection, name: str) -> None:
    """
    Raise MissingPrivilegeError if the role may use no schema of its search path.

    PostgreSQL hides the tables of other schemas, as if they did not exist.
    """
    if connection.dialect.name != "postgresql" or catalog_schema(connection) is not None:
        return
    if connection.scalar(sa.text("SELECT current_schema()")) is None:
        path = connection.exec_driver_sql("SHOW search_path").scalar_one()
        raise MissingPrivilegeError(
            name,
            f"no schema of its search_path {path} exists and may be used by {_role(connection)}",
        )


def enter_schema(connection: sa.Connection, name: str, *, create: bool = True) -> None:
    """
    Make the catalog's schema the default schema until the open transaction ends.

    The revisions name tables without a schema, so they find only those of this schema. With
    `create` a missing schema is created. Does nothing if no schema was given, and on SQLite.

    Raises CatalogUnavailableError if the schema is missing and is not, or cannot be, created.
    """
    schema = catalog_schema(connection)
    if schema is None:
        return
    if create and not _exists(connection, schema):
        _create(connection, name, schema)
    require_schema(connection, name)
    # No other schema, in which a host may have tables of the same names. PostgreSQL would search
    # temporary tables first if they were not named.
    _set_search_path(connection, f"{quote_name(schema)}, pg_temp")
    if connection.scalar(sa.text("SELECT current_schema()")) != schema:
        # PostgreSQL skips such a schema, and would create temporary tables.
        raise CatalogUnavailableError(
            name,
            f"the role may not use the schema {shown(schema)}; let its owner run: "
            f"GRANT USAGE, CREATE ON SCHEMA {quote_name(schema)} TO {_role(connection)}",
        )


@contextmanager
def schema_as_default(
    connection: sa.Connection, name: str, *, create: bool = True
) -> Iterator[None]:
    """Make the catalog's schema the default schema in a block of a transaction."""
    if catalog_schema(connection) is None:
        yield
        return
    path = connection.exec_driver_sql("SHOW search_path").scalar_one()
    enter_schema(connection, name, create=create)
    yield
    # After an error, the rollback restores it.
    _set_search_path(connection, path)


def quote_name(name: str) -> str:
    """Quote a name for PostgreSQL. The quoting of a dialect may double percent signs as well."""
    return '"' + name.replace('"', '""') + '"'


def _set_search_path(connection: sa.Connection, path: str) -> None:
    # For this transaction only: a pool, or PgBouncer, gives the connection to other users.
    connection.execute(sa.text("SELECT set_config('search_path', :path, true)"), {"path": path})


def _exists(connection: sa.Connection, schema: str) -> bool:
    statement = sa.text("SELECT EXISTS (SELECT 1 FROM pg_namespace WHERE nspname = :schema)")
    return bool(connection.execute(statement, {"schema": schema}).scalar())


def _create(connection: sa.Connection, name: str, schema: str) -> None:
    if not connection.scalar(
        sa.text("SELECT has_database_privilege(current_database(), 'CREATE')")
    ):
        raise CatalogUnavailableError(
            name,
            f"the schema {shown(schema)} does not exist, and the role may not create it; let the "
            f"owner of the database run: CREATE SCHEMA {quote_name(schema)} "
            f"AUTHORIZATION {_role(connection)}",
        )
    connection.execute(sa.schema.CreateSchema(schema))


def _role(connection: sa.Connection) -> str:
    role: str = connection.exec_driver_sql("SELECT quote_ident(current_user)").scalar_one()
    return role
