"""The turns of calls that share the writer of a host's engine, or one connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TypeAlias
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine

from model_catalog.concurrency.context_managers import inner_contextmanager
from model_catalog.errors import CatalogBusyError
from model_catalog.execution.executor import OTHER_CALL, forbid_nested_write, transaction_context

# SQLite has one writer. A queue in the process is fair, and a wait in it can be cancelled. SQLite's
# own busy handler blocks a thread, and serves waiting writers at random.
# A lock belongs to one event loop, and an engine may be used in one loop after another.
_WriteLocks: TypeAlias = WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock]
_write_locks: WeakKeyDictionary[Engine, _WriteLocks] = WeakKeyDictionary()

_connection_locks: WeakKeyDictionary[Connection, asyncio.Lock] = WeakKeyDictionary()


def write_lock(engine: Engine) -> asyncio.Lock:
    """Return the lock of the writers of an engine in the running event loop."""
    locks = _write_locks.setdefault(engine, WeakKeyDictionary())
    return locks.setdefault(asyncio.get_running_loop(), asyncio.Lock())


@inner_contextmanager
async def hold(
    lock: asyncio.Lock, target: str, reason: str, timeout_s: float
) -> AsyncIterator[None]:
    """Hold a lock. Raises CatalogBusyError with this reason after `timeout_s` seconds."""
    try:
        async with asyncio.timeout(timeout_s):
            await lock.acquire()
    except TimeoutError as error:
        raise CatalogBusyError(target, reason, timeout_s) from error
    try:
        yield
    finally:
        lock.release()


@inner_contextmanager
async def connection_turn(
    connection: Connection | None, target: str, timeout_s: float
) -> AsyncIterator[None]:
    """
    Let only one call or transaction use a host's own connection; do nothing for None.

    Savepoints end in a fixed order. Without one, a call would take the transaction of another for
    the host's, and the end of one would end both. Another call waits for at most `timeout_s`
    seconds. Raises TransactionError for a call inside a transaction of the same task.
    """
    if connection is None:
        yield
        return
    forbid_nested_write(connection)
    lock = _connection_locks.setdefault(connection, asyncio.Lock())
    async with hold(lock, target, OTHER_CALL, timeout_s):
        with transaction_context(connection):
            yield
