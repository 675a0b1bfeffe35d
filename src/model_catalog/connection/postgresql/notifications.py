"""Receive notifications of a PostgreSQL server (LISTEN), over one connection while tasks wait."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from model_catalog.concurrency.completion import hold_cancellation
from model_catalog.concurrency.forks import start_task
from model_catalog.connection.postgresql.poolers import POOLER, is_direct

log = logging.getLogger("model_catalog.connection")


class NotificationListener:
    """
    Wakes up tasks when a notification arrives on a channel.

    Notifications only shorten a wait. None arrive while the connection is lost, or through a pooler
    that gives each transaction another session. So a task that waits must also ask the database.
    Through such a pooler nothing is sent: the session would listen for its later clients.
    """

    def __init__(self, engine: AsyncEngine, channel: str) -> None:
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._channel: Final = channel
        self._waiting_count = 0
        self._task: asyncio.Task[None] | None = None
        self._next: asyncio.Future[None] | None = None
        self.is_listening = False
        """Whether the server sends notifications now."""

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Listen during the block. All blocks share one connection of the engine's pool."""
        self._waiting_count += 1
        if self._task is None:
            self._task = start_task(self._listen())
        try:
            yield
        finally:
            self._waiting_count -= 1
            if not self._waiting_count:
                await self.close()

    async def wait(self, timeout_s: float) -> None:
        """Return at the next notification, and after a time at the latest."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        await asyncio.wait([self._next], timeout=timeout_s)

    async def close(self) -> None:
        """Give the connection back. Tasks that wait are not woken up any more."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    def _begin(self) -> None:
        self.is_listening = True
        # The task must ask the database for changes that were made before this.
        self._wake_up()

    def _wake_up(self, *_: Any) -> None:
        if self._next is not None and not self._next.done():
            self._next.set_result(None)
        self._next = None

    async def _listen(self) -> None:
        try:
            connecting = self._engine.connect().start()
            async with aclosing(
                await hold_cancellation(connecting, AsyncConnection.close)
            ) as connection:
                try:
                    raw: Any = (await connection.get_raw_connection()).driver_connection
                    if not await self._keeps_session(raw):
                        return
                    if hasattr(raw, "add_listener"):
                        await self._receive_from_asyncpg(raw)
                    else:
                        await self._receive_from_psycopg(raw)
                finally:
                    self.is_listening = False
                    # The server must not send notifications to the next user of the connection.
                    await connection.invalidate()
        # The drivers have no common base class of their errors. Tasks that wait ask the database
        # by themselves, so no error may reach the log of the event loop.
        except Exception as error:  # noqa: BLE001
            log.debug("no notifications of %s: %s", self._engine.url.database, error)

    async def _keeps_session(self, raw: Any) -> bool:
        """Return whether the connection has a session of the server for itself."""
        mode = self._engine.sync_engine.get_execution_options().get(POOLER)
        return mode == "session" or (mode is None and await is_direct(raw))

    async def _receive_from_asyncpg(self, raw: Any) -> None:
        ended = asyncio.get_running_loop().create_future()

        def end(_connection: object) -> None:
            if not ended.done():
                ended.set_result(None)

        raw.add_termination_listener(end)
        await raw.add_listener(self._channel, self._wake_up)
        self._begin()
        try:
            await ended
        finally:
            # asyncpg warns about a listener that is left on a closed connection.
            raw.remove_termination_listener(end)
            if not raw.is_closed():
                await raw.remove_listener(self._channel, self._wake_up)

    async def _receive_from_psycopg(self, raw: Any) -> None:
        await raw.execute(f'LISTEN "{self._channel}"')
        self._begin()
        async for _ in raw.notifies():
            self._wake_up()
