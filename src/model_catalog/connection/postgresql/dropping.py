"""Drops connections to a server that has stopped answering, without waiting for the server."""

from __future__ import annotations

import os
import socket
from typing import Any, Final
from weakref import WeakKeyDictionary

from sqlalchemy import Engine, event
from sqlalchemy.exc import InvalidatePoolError

from model_catalog.connection.database_info import driver_connection


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
        # that task, which then sees the end of the stream.
        with socket.socket(fileno=os.dup(driver.fileno())) as copy:
            copy.shutdown(socket.SHUT_RDWR)


def close_without_waiting(engine: Engine) -> None:
    """
    Let an engine close its idle connections to PostgreSQL without waiting for the server's answer.

    asyncpg tells the server that it closes, and then waits for the server to close too. psycopg
    does not wait.
    """
    if engine.driver == "asyncpg" and not event.contains(engine, "close", _on_close):
        event.listen(engine, "close", _on_close)


def _on_close(connection: Any, record: Any) -> None:
    # A connection in use is closed because its statement was interrupted. asyncpg is then asking
    # the server to cancel the statement, which terminate() would prevent.
    if not record.in_use:
        drop_connection(driver_connection(connection))


class _PoolReplacement:
    """Invalidates the connections of one pool when the next one is taken from it."""

    def __init__(self) -> None:
        self.is_due = False

    def on_checkout(self, connection: Any, _record: Any, _proxy: Any) -> None:
        if self.is_due:
            self.is_due = False
            drop_connection(driver_connection(connection))
            # SQLAlchemy then replaces all connections that were made before.
            raise InvalidatePoolError


_replacements: Final[WeakKeyDictionary[Engine, _PoolReplacement]] = WeakKeyDictionary()


def replace_pooled_connections(engine: Engine) -> None:
    """
    Replace every connection of an engine's pool when it is next used, because one has gone silent.

    If a firewall has forgotten one idle connection, it has probably forgotten the others too.
    """
    replacement = _replacements.get(engine)
    if replacement is None:
        close_without_waiting(engine)
        replacement = _replacements[engine] = _PoolReplacement()
        event.listen(engine, "checkout", replacement.on_checkout)
    replacement.is_due = True
