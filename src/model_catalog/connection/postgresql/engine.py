"""Creates our own engines for PostgreSQL."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import event
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from model_catalog.connection.postgresql.dropping import close_without_waiting
from model_catalog.connection.target import DatabaseLocation
from model_catalog.errors import InvalidTargetError

# The parameters that each driver gets unless the URL has them.
_DEFAULTS: Final[dict[str, dict[str, object]]] = {
    "asyncpg": {"timeout": 10},
    "psycopg": {
        "connect_timeout": 10,
        # psycopg follows the encoding of the database. From SQL_ASCII it would return bytes, which
        # SQLAlchemy cannot read. asyncpg always asks for UTF-8.
        "client_encoding": "utf8",
        # Many firewalls forget a connection that was idle for five minutes.
        "keepalives_idle": 60,
    },
}


def create_postgresql_engine(location: DatabaseLocation) -> AsyncEngine:
    """
    Create an async engine for PostgreSQL. Does not connect.

    Parameters of the URL that the driver does not accept raise InvalidTargetError, here or when the
    engine connects.
    """
    driver = location.url.get_driver_name()
    query = location.url.query
    try:
        engine = create_async_engine(
            location.url,
            connect_args={
                name: value for name, value in _DEFAULTS[driver].items() if name not in query
            },
            hide_parameters=True,
        )
    except (ArgumentError, TypeError, ValueError) as error:
        raise _bad_parameters(location, error) from error

    # asyncpg takes the URL's parameters as function arguments. An unknown argument, or text instead
    # of a number, raises a Python error.
    @event.listens_for(engine.sync_engine, "do_connect")
    def connect(dialect: Any, _record: Any, args: list[Any], options: dict[str, Any]) -> object:
        try:
            if "timeout" in options:
                options["timeout"] = float(options["timeout"])
            return dialect.connect(*args, **options)
        except (TypeError, ValueError, OverflowError) as error:
            raise _bad_parameters(location, error) from error

    close_without_waiting(engine.sync_engine)
    return engine


def _bad_parameters(location: DatabaseLocation, error: Exception) -> InvalidTargetError:
    return InvalidTargetError(location.name, f"the driver does not accept its parameters: {error}")
