"""Drops connections to a server that has stopped answering, without waiting for the server."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from typing import Any, Final
from weakref import WeakKeyDictionary

from sqlalchemy import Engine, event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import Pool

from model_catalog.connection.database_info import driver_connection
from model_catalog.connection.interruption.forked_connections import prepare_for_fork

# Keys of Connection.info: when the connection was made, and whether it was not yet used.
_CONNECTED_AT: Final = "model_catalog_connected_at"
_IS_NEW: Final = "model_catalog_is_new"


def drop_connection(driver: Any) -> None:
    """
    Close the socket of a driver's connection to PostgreSQL at once. Safe to call twice.

    Whatever waits for the server then fails with an error of the driver. The server rolls back when
    it notices that the connection is closed.
    """
    if hasattr(driver, "terminate"):
        # asyncpg. Its close() waits for the server.
        driver.terminate()
    elif not driver.closed:
        # psycopg. Its close() also closes the file descriptor. The event loop may be watching it
        # for another task, and the next connection would get the same number. shutdown() wakes
        # that task, which then sees the end of the stream. The server may have closed it before.
        with socket.socket(fileno=os.dup(driver.fileno())) as copy, suppress(OSError):
            copy.shutdown(socket.SHUT_RDWR)


def is_closed(driver: Any) -> bool:
    """Return whether a driver's connection to PostgreSQL is closed, also if it was lost."""
    return bool(driver.is_closed() if hasattr(driver, "is_closed") else driver.closed)


def close_without_waiting(engine: Engine) -> None:
    """
    Let an engine close its idle connections to PostgreSQL without waiting for the server's answer.

    asyncpg tells the server that it closes, and then waits for the server to close too. psycopg
    does not wait.
    """
    if engine.driver == "asyncpg" and not event.contains(engine.pool, "close", _on_close):
        event.listen(engine.pool, "close", _on_close)


def _on_close(connection: Any, record: Any) -> None:
    # A connection in use is closed because its statement was interrupted. asyncpg is then asking
    # the server to cancel the statement, which terminate() would prevent.
    if not record.in_use:
        drop_connection(driver_connection(connection))


class _PoolReplacement:
    """Replaces the connections of one pool that are older than `silent_at` when they are taken."""

    def __init__(self) -> None:
        self.silent_at = 0.0

    def on_connect(self, _connection: Any, record: Any) -> None:
        record.info[_CONNECTED_AT] = time.monotonic()
        record.info[_IS_NEW] = True

    def on_checkout(self, connection: Any, record: Any, _proxy: Any) -> None:
        # SQLAlchemy replaces a connection only once while it is taken from the pool.
        if record.info.pop(_IS_NEW, False):
            return
        if record.info.get(_CONNECTED_AT, 0.0) < self.silent_at:
            drop_connection(driver_connection(connection))
            raise DisconnectionError


# By pool, because an engine with other execution options shares the pool of the first.
_replacements: Final[WeakKeyDictionary[Pool, _PoolReplacement]] = WeakKeyDictionary()


def prepare_replacement(engine: Engine) -> None:
    """
    Listen to the pool of an engine, so that `replace_pooled_connections` can replace connections.

    Call it before the engine is used. SQLAlchemy fails if a listener is added while another task
    connects, because it is then iterating over the listeners. Safe to call twice.
    """
    if engine.dialect.name != "postgresql" or engine.pool in _replacements:
        return
    close_without_waiting(engine)
    replacement = _replacements[engine.pool] = _PoolReplacement()
    event.listen(engine.pool, "connect", replacement.on_connect)
    prepare_for_fork(engine)
    event.listen(engine.pool, "checkout", replacement.on_checkout)


def replace_pooled_connections(engine: Engine) -> None:
    """
    Replace every connection of an engine's pool when it is next used, because one has gone silent.

    If a firewall has forgotten one idle connection, it has probably forgotten the others too.
    """
    prepare_replacement(engine)
    _replacements[engine.pool].silent_at = time.monotonic()
