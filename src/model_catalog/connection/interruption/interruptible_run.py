"""One attempt at a step on an async connection, which a deadline or a cancellation can end."""

from __future__ import annotations

import asyncio
import contextlib
import time
import traceback as tracebacks
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final

from sqlalchemy import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncConnection

from model_catalog.concurrency.completion import INTERRUPT_RETRY_S
from model_catalog.concurrency.forks import start_task
from model_catalog.connection.database_info import driver_connection
from model_catalog.connection.error_mapping import (
    catalog_error_of,
    is_answer_lost,
    is_connection_lost,
)
from model_catalog.connection.postgresql.dropping import (
    drop_connection,
    replace_pooled_connections,
)
from model_catalog.errors import (
    CatalogBusyError,
    CatalogError,
    CatalogUnavailableError,
    InvalidTargetError,
)

SLOW_STATEMENTS: Final = "its statements took longer than its timeout"
"""The reason of a CatalogBusyError: the call itself needed too long."""

NO_CONNECTION: Final = "no connection was free, or could be made, within the timeout"
"""The reason of a CatalogBusyError: the call waited for a connection."""

# An interrupted step gets this long to end: the driver asks the server to cancel the statement.
# Then its connection is dropped, because the server does not answer.
_DROP_AFTER_S: Final = 0.25

# A step whose connection was dropped gets this long to end. Then its task is cancelled.
_CANCEL_AFTER_S: Final = 0.05

# A write gets this long on a server after its caller was cancelled. Then it is interrupted too.
_CANCELLED_WRITE_S: Final = 1.0

# A firewall may have forgotten a pooled connection. It gets a third of the time that is left, and
# at most 2 s, for its first answer. Below 0.2 s a busy machine would look like a silent server.
_FIRST_ANSWER_SHARE: Final = 1 / 3
_MAX_FIRST_ANSWER_S: Final = 2.0
_MIN_FIRST_ANSWER_S: Final = 0.2

# Without client_encoding, psycopg returns texts of a database in SQL_ASCII as bytes. SQLAlchemy
# then fails when it connects. Our own engines set it.
_NO_TEXT: Final = (
    "the driver failed to connect. If the encoding of the database is SQL_ASCII, create the engine "
    "with connect_args={'client_encoding': 'utf8'}"
)
_SILENT: Final = "the server did not answer in time"


class InterruptibleRun:
    """
    One attempt at a step on a connection, as a context manager around the step.

    Use it in the task that runs the step: `with run: ...; return result`, then `return run.result`.
    `interrupt` may be called from anywhere in the loop. It interrupts a statement of SQLite in the
    driver's thread. For PostgreSQL, and while the step waits for a connection, it cancels the task:
    the driver then cancels the statement on the server. If the server does not answer, the
    connection is dropped 0.25 s later.

    Errors of SQLAlchemy and of drivers are raised as the catalog's own. An interrupted step raises
    CatalogBusyError, also if its connection was dropped. If the answer to a commit was lost,
    CatalogUnavailableError says that the outcome is unknown. If the step was
    interrupted after the commit, the block ends without an error, and `result` is the result.
    """

    __slots__ = (
        "_connection",
        "_driver",
        "_dropped_at",
        "_entered_at",
        "_has_answered",
        "_has_ended",
        "_has_read",
        "_has_reconnected",
        "_interrupt_task",
        "_interrupted_at",
        "_is_committed",
        "_is_committing",
        "_is_late",
        "_limits_statements",
        "_own_cancellations",
        "_remaining_s",
        "_target",
        "_task",
        "_timers",
        "on_commit",
        "result",
    )

    def __init__(
        self, target: str, remaining_s: float = 0.0, *, limits_statements: bool = True
    ) -> None:
        """
        Make a run on the database that messages call `target`.

        `remaining_s` is the time that is left to the call. A connection gets a part of it for
        its first answer; see `reconnects_after`. `limits_statements` says whether the step sets the
        statement timeout of PostgreSQL. If not, the server's own setting may stop a statement.
        """
        self._limits_statements = limits_statements
        self._target = target
        self._remaining_s = remaining_s
        self._own_cancellations = 0
        self._task: asyncio.Task[Any] | None = None
        self._entered_at = 0.0
        self._connection: AsyncConnection | Connection | None = None
        self._driver: Any = None
        self._interrupt_task: asyncio.Future[Any] | None = None
        self._interrupted_at: float | None = None
        self._dropped_at: float | None = None
        self._timers: dict[Callable[[], None], asyncio.TimerHandle] = {}
        self._is_committing = False
        self._is_committed = False
        self._has_read = False
        self._has_ended = False
        self._has_reconnected = False
        self._has_answered = False
        self._is_late = False
        self.result: Any = None
        """The result of a write, from `mark_committing` on."""
        self.on_commit: Callable[[], None] | None = None
        """Called by `mark_committed`."""

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        self._entered_at = time.monotonic()

    def __exit__(
        self, _kind: object, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._has_ended = True
        self._stop_timers()
        try:
            return error is not None and self._ends_without_error(error, traceback)
        finally:
            # The task may run another attempt.
            self._forget_cancellations()

    def _ends_without_error(self, error: BaseException, traceback: TracebackType | None) -> bool:
        """Return whether the block ends without an error after this one; raise another instead."""
        if isinstance(error, asyncio.CancelledError):
            if self._interrupted_at is None or self._is_cancelled_by_loop:
                return False
            if self._driver is not None and not self._is_returned:
                # The task that returns it to the pool was left behind, and must end too.
                drop_connection(self._driver)
            if self._is_committed:
                return True
            raise self._error_of_cancelled_task(traceback) from error
        mapped = self._map_error(error)
        if mapped is None or mapped is error:
            return False
        if self._is_committed:
            return True
        raise mapped from error

    def _map_error(self, error: BaseException) -> CatalogError | None:
        """Return the CatalogError to raise for an error; None if it is not one of the database."""
        mapped = catalog_error_of(error, self._target)
        if mapped is None:
            if self._connection is None and isinstance(error, TypeError):
                return InvalidTargetError(self._target, f"{_NO_TEXT}: {error}")
            return None
        if self._is_committing and is_answer_lost(error):
            return CatalogUnavailableError(
                self._target, getattr(mapped, "reason", f"{mapped}"), outcome_unknown=True
            )
        if self._dropped_at is not None and is_connection_lost(error):
            return self._busy_error(_SILENT)
        if self._interrupted_at is not None and isinstance(mapped, CatalogBusyError):
            return self._busy_error(SLOW_STATEMENTS)
        return self._with_own_limit(mapped)

    def _with_own_limit(self, error: CatalogError) -> CatalogError:
        """Return the error for a statement that PostgreSQL stopped at the timeout of this call."""
        is_stopped = isinstance(error, CatalogBusyError) and error.is_interrupted
        if not (is_stopped and self._limits_statements) or self._connection is None:
            return error
        if self._connection.dialect.name == "sqlite":
            return error
        found = self._busy_error(SLOW_STATEMENTS)
        found.is_interrupted = True
        return found

    def _busy_error(self, reason: str) -> CatalogBusyError:
        return CatalogBusyError(self._target, reason, time.monotonic() - self._entered_at)

    def _error_of_cancelled_task(self, traceback: TracebackType | None) -> CatalogError:
        if self._is_committing:
            return CatalogUnavailableError(self._target, _SILENT, outcome_unknown=True)
        if self._dropped_at is not None and self._connection is not None:
            return self._busy_error(_SILENT)
        if self._connection is not None:
            return self._busy_error(SLOW_STATEMENTS)
        # psycopg closes a connection that was being made when its last reference goes. This error
        # holds one: without this, the server would keep the connection for as long as the error.
        tracebacks.clear_frames(traceback)
        return self._busy_error(NO_CONNECTION)

    def reconnects_after(self, error: BaseException) -> bool:
        """
        Return whether the step may go on with another connection after an error.

        That is so if the connection was dead, or gave no first answer in time. Nothing was
        done on it by then. It works once in a run, and only in the task of the step.
        """
        is_dead = self._is_late or (self._interrupted_at is None and is_connection_lost(error))
        if not is_dead or self._connection is None or self._has_reconnected:
            return False
        if self._has_answered or self._is_committing:
            return False
        self._stop_timers()
        replace_pooled_connections(_sync_engine(self._connection))
        if self._driver is not None:
            drop_connection(self._driver)
        self._forget_cancellations()
        self._connection = self._driver = self._interrupted_at = self._dropped_at = None
        self._is_late = False
        self._has_reconnected = True
        self._remaining_s = 0.0
        return True

    def _forget_cancellations(self) -> None:
        while self._own_cancellations and self._task is not None:
            self._task.uncancel()
            self._own_cancellations -= 1

    def _stop_timers(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def set_connection(self, connection: AsyncConnection | Connection | None) -> None:
        """Set the connection that the step uses; from here on its statements can be stopped."""
        self._connection = connection
        self._driver = None
        if connection is None or connection.dialect.name == "sqlite":
            return
        first_answer_s = min(self._remaining_s * _FIRST_ANSWER_SHARE, _MAX_FIRST_ANSWER_S)
        if first_answer_s >= _MIN_FIRST_ANSWER_S:
            self._call_later(first_answer_s, self._on_late_first_answer)

    def mark_answered(self) -> None:
        """Record that the server has answered on the connection."""
        self._has_answered = True
        if (timer := self._timers.pop(self._on_late_first_answer, None)) is not None:
            timer.cancel()

    def _on_late_first_answer(self) -> None:
        self._is_late = True
        self._interrupt_until_ended()

    def mark_read_done(self) -> None:
        """Record that a step that reads has its rows, and is about to return its connection."""
        self._has_read = True
        self.mark_answered()

    def mark_committing(self, result: object = None) -> None:
        """Record that the step is about to commit, and its result if that succeeds."""
        self._is_committing = True
        self.result = result

    def mark_committed(self, *_: object) -> None:
        """Record that the commit succeeded. Returning the connection may still take a while."""
        self._is_committed = True
        if self.on_commit is not None:
            self.on_commit()

    def interrupt(self) -> None:
        """Make the step end soon. Call it again until the step has ended."""
        connection = self._connection
        now = time.monotonic()
        if connection is not None and connection.dialect.name == "sqlite":
            self._interrupted_at = now
            self._interrupt_task = start_task(_interrupt(connection))
        elif self._interrupted_at is None:
            self._interrupted_at = now
            self._find_driver()
            # Only once: the driver's own clean-up after it gets some time.
            if not self._is_cancelled_by_loop:
                self._cancel_task()
        elif now - self._interrupted_at >= _DROP_AFTER_S:
            self.drop()

    def drop(self) -> None:
        """Close the connection to the server at once. Call it again until the step has ended."""
        now = time.monotonic()
        if self._interrupted_at is None:
            self._interrupted_at = now
        if self._dropped_at is None:
            self._dropped_at = now
            self._find_driver()
            # A connection that was returned to its pool may be in use by another call.
            if self._connection is not None and not self._is_returned:
                replace_pooled_connections(_sync_engine(self._connection))
                if self._driver is not None:
                    drop_connection(self._driver)
        if self._driver is None or now - self._dropped_at >= _CANCEL_AFTER_S:
            self._cancel_task()

    @property
    def _is_cancelled_by_loop(self) -> bool:
        """Whether the task was also cancelled from outside: the end of a loop cancels all tasks."""
        return self._task is not None and self._task.cancelling() > self._own_cancellations

    def _cancel_task(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._own_cancellations += 1

    def cancel_read(self) -> None:
        """
        Make a step that only reads end soon, because its caller was cancelled.

        A step that connects or has its rows gets a moment to end by itself. A driver that is
        cancelled while it connects may leak a connection. If the pool is full, the connection is
        being closed, and SQLAlchemy would report the cancellation of that as an error.
        """
        if self._connection is not None and not self._has_read:
            self.interrupt()
        self._call_later(_DROP_AFTER_S, self._interrupt_until_ended)

    def cancel_write(self) -> None:
        """
        Make a write end in about a second, because its caller was cancelled.

        On SQLite it is completed: its database does not fall silent.
        """
        connection = self._connection
        if connection is None or connection.dialect.name != "sqlite":
            self._call_later(_CANCELLED_WRITE_S, self._interrupt_until_ended)

    def _interrupt_until_ended(self) -> None:
        self.interrupt()
        self._call_later(INTERRUPT_RETRY_S, self._interrupt_until_ended)

    def _call_later(self, delay_s: float, function: Callable[[], None]) -> None:
        """Call a function once, unless the step has ended by then."""
        if not self._has_ended:
            self._timers[function] = asyncio.get_running_loop().call_later(delay_s, function)

    def _find_driver(self) -> None:
        connection = self._connection
        if connection is not None and not connection.closed and not connection.invalidated:
            self._driver = driver_connection(connection)

    @property
    def _is_returned(self) -> bool:
        return self._connection is None or self._connection.closed


def _sync_engine(connection: AsyncConnection | Connection) -> Engine:
    return connection.engine if isinstance(connection, Connection) else connection.sync_engine


async def _interrupt(connection: AsyncConnection | Connection) -> None:
    # The connection may be closed by now. No statement runs on it then.
    with contextlib.suppress(Exception):
        await driver_connection(connection).interrupt()
