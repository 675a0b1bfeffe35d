"""Whether a connection to PostgreSQL goes through a pooler, and what that pooler does with it."""

from __future__ import annotations

import asyncio
from typing import Any, Final, Literal, TypeAlias

from model_catalog.connection.postgresql.dropping import drop_connection

PoolMode: TypeAlias = Literal["transaction", "session"]
"""How long a pooler leaves a session of the server to one client."""

POOLER: Final = "pooler"
"""The parameter of a URL, and the execution option of an engine, with the mode of its pooler."""
POOL_MODES: Final[tuple[PoolMode, ...]] = ("transaction", "session")

# The seconds that a new connection gets to answer whether it goes through a pooler.
_PROBE_TIMEOUT_S: Final = 10


# A pooler such as PgBouncer may give each transaction another session of the server. Prepared
# statements belong to a session, and both drivers number their names. So a client would execute the
# statement of another client, with its own values. Without them the server parses each statement
# again, so they are avoided only behind a pooler. A pooler invents the process ID that it sends to
# a new client, so it differs from that of the session.
async def is_direct(driver: Any) -> bool:
    """Ask whether the connection of a driver goes to the server itself, without a pooler."""
    if hasattr(driver, "get_server_pid"):
        return await _is_direct_with_asyncpg(driver)
    return await _is_direct_with_psycopg(driver)


def _query(process_id: int) -> str:
    """Return a query with one row if the session has this process ID, and none otherwise."""
    # In the simple query protocol, which needs no prepared statement.
    return f"SELECT 1 WHERE pg_backend_pid() = {process_id}"


async def _is_direct_with_asyncpg(driver: Any) -> bool:
    try:
        status = await driver.execute(_query(driver.get_server_pid()), timeout=_PROBE_TIMEOUT_S)
    except BaseException:
        driver.terminate()
        raise
    return bool(status == "SELECT 1")


async def _is_direct_with_psycopg(driver: Any) -> bool:
    # A cancellation of psycopg would wait for the server.
    timer = asyncio.get_running_loop().call_later(_PROBE_TIMEOUT_S, drop_connection, driver)
    try:
        cursor = await driver.execute(_query(driver.info.backend_pid), prepare=False)
    except BaseException:
        drop_connection(driver)
        await driver.close()
        raise
    finally:
        timer.cancel()
    return bool(cursor.rowcount)
