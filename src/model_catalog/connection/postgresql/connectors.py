"""Connect to PostgreSQL with asyncpg and psycopg, so that a URL means the same with both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final
from weakref import WeakSet

from model_catalog.connection.postgresql.commit_warnings import watch_warnings
from model_catalog.connection.postgresql.poolers import PoolMode, is_direct
from model_catalog.connection.postgresql.url_parameters import asyncpg_arguments


class AsyncpgConnector:
    """Connects with asyncpg."""

    # asyncpg has error codes for refused connections.
    has_open_connection: Final = False

    def __init__(self, pooler: PoolMode | None) -> None:
        self._pooler: PoolMode | None = pooler

    async def connect(self, **options: Any) -> Any:
        """Connect, and connect again without prepared statements if that was to a pooler."""
        connection = await self._connect(options)
        watch_warnings(connection)
        return connection

    async def _connect(self, options: dict[str, Any]) -> Any:
        arguments = asyncpg_arguments(options)
        chooses = "statement_cache_size" not in arguments and self._pooler != "session"
        if not (chooses and self._pooler == "transaction"):
            connection = await _connect_to_one(arguments)
            if not chooses or await is_direct(connection):
                return connection
            connection.terminate()
            self._pooler = "transaction"
        # With 0, asyncpg sends a statement and its values in one message. It does so also for the
        # statements that SQLAlchemy keeps, so these save the round trip in which it is described.
        return await _connect_to_one({**arguments, "statement_cache_size": 0})


async def _connect_to_one(arguments: dict[str, Any]) -> Any:
    """
    Connect with asyncpg to the first of several hosts that answers and is as asked for.

    asyncpg tries several hosts too, but all within one timeout. psycopg gives each the whole time.
    """
    # Imported here because only one of the drivers need be installed.
    import asyncpg  # type: ignore[import-untyped]  # noqa: PLC0415

    if not isinstance(arguments.get("host"), Sequence) or isinstance(arguments["host"], str):
        return await asyncpg.connect(**arguments)
    errors: list[Exception] = []
    reasons = []
    for attempt in _attempts(arguments):
        try:
            return await asyncpg.connect(**attempt)
        # The last is for a server that is not what `target_session_attrs` asks for.
        except (OSError, asyncpg.PostgresError, asyncpg.InternalClientError) as error:
            errors.append(error)
            reason = f"{error}" or "no answer in time"
            reasons.append(f"{attempt['host']}:{attempt['port']}: {reason}")
    # An error of a server has a code, which says more.
    for found in errors:
        if isinstance(found, asyncpg.PostgresError):
            raise found
    raise ConnectionError("; ".join(reasons))


def _attempts(arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Return the arguments for each host; for `prefer-standby`, first as a standby only."""
    hosts = list(zip(arguments["host"], arguments["port"], strict=True))
    wanted = arguments.get("target_session_attrs")
    for each in ("standby", "any") if wanted == "prefer-standby" else (wanted,):
        for host, port in hosts:
            yield {**arguments, "host": host, "port": port, "target_session_attrs": each}


class PsycopgConnector:
    """Connects with psycopg."""

    def __init__(self, pooler: PoolMode | None) -> None:
        self._pooler: PoolMode | None = pooler
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
        if "prepare_threshold" not in options and not await self._keeps_session(connection):
            connection.prepare_threshold = None
        connection.adapters.register_dumper(list, ArrayDumper)
        watch_warnings(connection)
        await connection.set_autocommit(False)
        self._connections.add(connection)
        return connection

    async def _keeps_session(self, connection: Any) -> bool:
        if self._pooler is not None:
            return self._pooler == "session"
        return await is_direct(connection)
