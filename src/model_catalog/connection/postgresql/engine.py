"""Creates our own engines for PostgreSQL, which are also safe behind a connection pooler."""

from __future__ import annotations

from typing import Any

from sqlalchemy import event
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from model_catalog.connection.postgresql.connectors import AsyncpgConnector, PsycopgConnector
from model_catalog.connection.postgresql.dropping import prepare_replacement
from model_catalog.connection.postgresql.poolers import POOLER
from model_catalog.connection.postgresql.url_parameters import connect_arguments
from model_catalog.connection.target import DatabaseLocation
from model_catalog.errors import CatalogBusyError, InvalidTargetError


def create_postgresql_engine(location: DatabaseLocation) -> AsyncEngine:
    """
    Create an async engine for PostgreSQL. Does not connect. Raises InvalidTargetError.

    Behind a pooler its connections use no prepared statements, unless the URL asks for them.
    """
    arguments = connect_arguments(location)
    pooler = arguments.pop(POOLER, None)
    is_asyncpg = location.url.get_driver_name() == "asyncpg"
    connector: AsyncpgConnector | PsycopgConnector = (
        AsyncpgConnector(pooler) if is_asyncpg else PsycopgConnector(pooler)
    )
    try:
        engine = create_async_engine(
            location.url,
            connect_args={**arguments, "async_creator_fn": connector.connect},
            execution_options={POOLER: pooler},
            hide_parameters=True,
        )
    except (ArgumentError, TypeError, ValueError) as error:
        raise _bad_parameters(location, error) from error

    # asyncpg takes the URL's parameters as function arguments, so an unknown one raises TypeError.
    @event.listens_for(engine.sync_engine, "do_connect")
    def connect(dialect: Any, _record: Any, args: list[Any], options: dict[str, Any]) -> object:
        options.pop(POOLER, None)
        try:
            return dialect.connect(*args, **options)
        except OSError:
            # Also that of a certificate, which is a ValueError as well.
            raise
        except (TypeError, ValueError, OverflowError) as error:
            raise _bad_parameters(location, error) from error
        except dialect.loaded_dbapi.OperationalError as error:
            if getattr(error, "sqlstate", None) is None and connector.has_open_connection:
                raise CatalogBusyError(location.name, f"{error}".strip()) from error
            raise

    prepare_replacement(engine.sync_engine)
    return engine


def _bad_parameters(location: DatabaseLocation, error: Exception) -> InvalidTargetError:
    return InvalidTargetError(location.name, f"the driver does not accept its parameters: {error}")
