"""Creates our own engines for PostgreSQL, which are also safe behind a connection pooler."""

from __future__ import annotations

import asyncio
from typing import Any, Final
from weakref import WeakSet

from sqlalchemy import event
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from model_catalog.connection.postgresql.dropping import (
    drop_connection,
    prepare_replacement,
)
from model_catalog.connection.postgresql.url_parameters import connect_arguments
from model_catalog.connection.target import DatabaseLocation
from model_catalog.errors import CatalogBusyError, InvalidTargetError

# The seconds that a new connection gets to answer whether it goes through a pooler.
_PROBE_TIMEOUT_S: Final = 10


def create_postgresql_engine(location: DatabaseLocation) -> AsyncEngine:
    """
    Create an async engine for PostgreSQL. Does not connect. Raises InvalidTargetError.

    Behind a pooler its connections use no prepared statements, unless the URL asks for them.
    """
    arguments = connect_arguments(location)
    is_asyncpg = location.url.get_driver_name() == "asyncpg"
    connector: _AsyncpgConnector | _PsycopgConnector = (
        _AsyncpgConnector() if is_asyncpg else _PsycopgConnector()
    )
    try:
        engine = create_async_engine(
            location.url,
            connect_args={**arguments, "async_creator_fn": connector.connect},
            hide_parameters=True,
        )
    except (ArgumentError, TypeError, ValueError) as error:
        raise _bad_parameters(location, error) from error

    # asyncpg takes the URL's parameters as function arguments, so an unknown one raises TypeError.
    @event.listens_for(engine.sync_engine, "do_connect")
    def connect(dialect: Any, _record: Any, args: list[Any], options: dict[str, Any]) -> object:
        try:
            return dialect.connect(*args, **options)
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


# A pooler such as PgBouncer may give each transaction another session of the server. Prepared
# statements belong to a session, and both drivers number their names. So a client would execute the
# statement of another client, with its own values. Without them the server parses each statement
# again, so they are avoided only behind a pooler. A pooler invents the process ID that it sends to
# a new client, so it differs from that of the session.
def _is_direct_query(process_id: int) -> str:
    """Return a query with one row if the session has this process ID, and none otherwise."""
    # In the simple query protocol, which needs no prepared statement.
    return f"SELECT 1 WHERE pg_backend_pid() = {process_id}"


class _AsyncpgConnector:
    """Connects with asyncpg."""

    # asyncpg has error codes for refused connections.
    has_open_connection: Final = False

    def __init__(self) -> None:
        self._found_pooler = False

    async def connect(self, **options: Any) -> Any:
        """Connect, and connect again without prepared statements if that was to a pooler."""
        # Imported here because only one of the drivers need be installed.
        import asyncpg  # type: ignore[import-untyped]  # noqa: PLC0415

        chooses = "statement_cache_size" not in options
        if not (chooses and self._found_pooler):
            connection = await asyncpg.connect(**options)
            if not chooses or await self._is_direct(connection):
                return connection
            connection.terminate()
            self._found_pooler = True
        # With 0, asyncpg sends a statement and its values in one message. It does so also for the
        # statements that SQLAlchemy keeps, so these save the round trip in which it is described.
        return await asyncpg.connect(**options, statement_cache_size=0)

    @staticmethod
    async def _is_direct(connection: Any) -> bool:
        try:
            query = _is_direct_query(connection.get_server_pid())
            status = await connection.execute(query, timeout=_PROBE_TIMEOUT_S)
        except BaseException:
            connection.terminate()
            raise
        return bool(status == "SELECT 1")


class _PsycopgConnector:
    """Connects with psycopg."""

    def __init__(self) -> None:
        self._connections: WeakSet[Any] = WeakSet()

    @property
    def has_open_connection(self) -> bool:
        """
        Whether another connection of the engine is open.

        psycopg has no error code for a refused connection. While another one is open, the server is
        there, and has no room for one more: the call may wait until the other one is free.
        """
        return any(not connection.closed for connection in self._connections)

    async def connect(self, *args: Any, **options: Any) -> Any:
        """Connect, and turn prepared statements off if that was to a pooler."""
        import psycopg  # noqa: PLC0415 - as above

        from model_catalog.connection.postgresql.array_dumper import ArrayDumper  # noqa: PLC0415

        # In autocommit, the query is not followed by a transaction that would have to be ended.
        connection = await psycopg.AsyncConnection.connect(*args, **options, autocommit=True)
        if "prepare_threshold" not in options and not await self._is_direct(connection):
            connection.prepare_threshold = None
        connection.adapters.register_dumper(list, ArrayDumper)
        await connection.set_autocommit(False)
        self._connections.add(connection)
        return connection

    @staticmethod
    async def _is_direct(connection: Any) -> bool:
        # A cancellation of psycopg would wait for the server.
        timer = asyncio.get_running_loop().call_later(_PROBE_TIMEOUT_S, drop_connection, connection)
        try:
            query = _is_direct_query(connection.info.backend_pid)
            cursor = await connection.execute(query, prepare=False)
        except BaseException:
            drop_connection(connection)
            await connection.close()
            raise
        finally:
            timer.cancel()
        return bool(cursor.rowcount)
