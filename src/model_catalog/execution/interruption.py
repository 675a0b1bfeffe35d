"""One try at what a call does with a session, which can be stopped from outside."""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar, cast

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from model_catalog.connection.database_info import driver_connection
from model_catalog.connection.error_mapping import map_errors
from model_catalog.errors import CatalogBusyError, CatalogUnavailableError

T = TypeVar("T")


class InterruptibleRun:
    """
    What it does, and how that is ended before its time.

    A statement of SQLite's is interrupted where it runs, in its thread. A server's driver, and
    whatever waits for a connection, is cancelled: the driver then tells the server.
    """

    SLOW: Final = "its statements took longer than they were given"
    _UNCONNECTED: Final = "no connection was free, or could be made, in the time given"

    def __init__(self, target: str) -> None:
        self._target = target
        self._task: asyncio.Task[Any] | None = None
        self._connection: AsyncConnection | None = None
        self._interrupting: asyncio.Future[Any] | None = None
        self._is_stopped = False
        self.is_committing = False
        """Whether a server was asked for COMMIT, or is about to be."""
        self._is_kept = False
        self._has_read = False
        self._result: Any = None

    async def run(self, step: Callable[[], Awaitable[T]]) -> T:
        """
        What a step returns; only the catalog's own errors are raised.

        Raises CatalogBusyError where it was stopped, and CatalogUnavailableError where that was
        during a server's COMMIT: nobody knows then whether it was kept. What was kept is returned,
        though it was stopped on the way back.
        """
        self._task = asyncio.current_task()
        try:
            with map_errors(self._target):
                return await step()
        except asyncio.CancelledError as error:
            if not self._is_stopped:
                raise
            if self._is_kept:
                return cast("T", self._result)
            if self.is_committing:
                raise CatalogUnavailableError(
                    self._target,
                    "the server gave no answer to COMMIT in time: whether the call was kept is "
                    "not known, look before you repeat it",
                ) from error
            if self._connection is None:
                # psycopg leaves a connection that was being made to whatever still knows of it, and
                # that is this error: to the server it would be open for as long as it is kept.
                traceback.clear_frames(error.__traceback__)
            reason = self.SLOW if self._connection else self._UNCONNECTED
            raise CatalogBusyError(self._target, reason) from error
        except CatalogBusyError as error:
            if not self._is_stopped:
                raise
            raise CatalogBusyError(self._target, self.SLOW) from error

    def works_on(self, connection: AsyncConnection | None) -> None:
        """It has its connection, if any: from here on SQLite's statements are interrupted."""
        self._connection = connection

    def has_read(self) -> None:
        """It has what it was to read, and is on its way back."""
        self._has_read = True

    def commits(self, session: AsyncSession, result: object = None) -> None:
        """It is going to ask for the commit of a session, and has a result if that is kept."""
        self.is_committing = True
        self._result = result
        event.listen(session.sync_session, "after_commit", self._on_commit, once=True)

    def _on_commit(self, _session: Session) -> None:
        # Giving the connection back comes after it, and may take a while as well.
        self._is_kept = True

    def stop(self) -> None:
        """Have it end soon, also if it was told so before; by its error it tells who waits."""
        connection = self._connection
        if connection is not None and connection.dialect.name == "sqlite":
            # One that falls between two statements stops neither.
            self._interrupting = asyncio.ensure_future(_interrupt(connection))
        elif self._task is not None and not self._is_stopped:
            # Once: what the driver does then to leave the server is not to be cancelled as well.
            self._task.cancel()
        self._is_stopped = True

    def stop_reading(self) -> None:
        """
        Stop it, where it only reads and nobody wants it any more.

        Not while it connects: a driver that is cancelled there leaves a connection nobody knows of.
        Nor on its way back, where a connection is closed that the pool has no room for: SQLAlchemy
        would report that as an error.
        """
        if self._connection is not None and not self._has_read:
            self.stop()


async def _interrupt(connection: AsyncConnection) -> None:
    # It may be closed by now, and then nothing runs in it.
    with contextlib.suppress(Exception):
        await driver_connection(connection).interrupt()
