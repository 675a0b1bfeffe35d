"""Makes the open connections of a parent process harmless in its forked child."""

from __future__ import annotations

import os
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final
from weakref import WeakSet

from sqlalchemy import Engine, event
from sqlalchemy.pool import Pool

from model_catalog.concurrency.forks import files_of_parent, keep_forever

_NO_SERVER: Final = os.devnull
_DEFAULT_PORT: Final = 5432

_engines: Final[WeakSet[Engine]] = WeakSet()
_records: Final[WeakSet[Any]] = WeakSet()
_pools_of_parent: Final[list[Pool]] = []


def prepare_for_fork(engine: Engine) -> None:
    """
    Let each forked child start with an empty pool, and leave the connections to its parent.

    A child shares the socket of a connection to PostgreSQL. If it closes the connection, also when
    it exits, the driver tells the server to end the parent's session. So the socket is replaced
    by one without a peer in the child.

    If a child closes a connection to SQLite, that rolls back the parent's transaction in the file,
    though the locks are the parent's. To close one of aiosqlite would wait for its thread, which
    the child does not have. So these are never closed in the child.

    Call it before the engine is used. Safe to call twice.
    """
    _engines.add(engine)
    if not event.contains(engine.pool, "connect", _on_connect):
        event.listen(engine.pool, "connect", _on_connect)


def _on_connect(_connection: Any, record: Any) -> None:
    _records.add(record)


def _after_fork_in_child() -> None:
    for engine in list(_engines):
        _pools_of_parent.append(engine.pool)
        engine.dispose(close=False)
    records = [record for record in list(_records) if record.dbapi_connection is not None]
    dead, peer = socket.socketpair()
    peer.close()
    with dead:
        for opening in _connections_being_opened():
            os.dup2(dead.fileno(), opening, inheritable=False)
        for record in records:
            # The task that has taken the connection holds a proxy of it. SQLAlchemy has no public
            # name for the proxy.
            user = record.fairy_ref and record.fairy_ref()
            for each in (record, record.dbapi_connection, user):
                keep_forever(each)
            driver = record.driver_connection
            descriptor = _socket_of(driver)
            if descriptor is not None:
                os.dup2(dead.fileno(), descriptor, inheritable=False)
            if hasattr(driver, "_addr"):
                # When a task is cancelled, asyncpg connects to this address, and asks the server
                # there to cancel the statement of the parent's session.
                driver._addr = _NO_SERVER  # noqa: SLF001 - it has no public name


def _connections_being_opened() -> Iterator[int]:
    """
    Yield the descriptors that the parent's loops watch, and whose peer is a server of an engine.

    The pool has no record of a connection before the driver has opened it.
    """
    ports = {
        engine.url.port or _DEFAULT_PORT
        for engine in list(_engines)
        if engine.dialect.name == "postgresql"
    }
    for descriptor in files_of_parent() if ports else ():
        # Not a socket, or not connected.
        with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as connection:
            peer = connection.getpeername()
            if isinstance(peer, tuple):
                is_server = peer[1] in ports
            else:
                # The path of a Unix socket. Its name ends with the port.
                is_server = str(peer).rpartition(".")[2] in map(str, ports)
            if is_server:
                yield descriptor


def _socket_of(driver: Any) -> int | None:
    """Return the descriptor of a connection to PostgreSQL; None for SQLite, or if it is closed."""
    if isinstance(driver, sqlite3.Connection):
        return None
    # A driver that is closed raises an error of its own.
    with suppress(Exception):
        # asyncpg has no public name for its transport.
        transport = getattr(driver, "_transport", None)
        if transport is None:
            descriptor = driver.fileno()
        else:
            descriptor = transport.get_extra_info("socket").fileno()
        return descriptor if descriptor >= 0 else None
    return None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
