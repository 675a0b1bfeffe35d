"""
Sessions of a PostgreSQL server that belong to the catalog alone, with limits of their own.

A session is the catalog's own if `open_catalog` connected to the server by a URL, and no pooler is
in between. No other program uses it, so its limits are set once and not in each transaction. Then
a statement needs no BEGIN, no SET LOCAL and no COMMIT. The server still ends a statement, and a
wait for a lock, although the caller has gone.
"""

from __future__ import annotations

import select
import time
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Engine

from model_catalog.concurrency.retry import MIN_TIMEOUT_S
from model_catalog.connection.database_info import driver_connection
from model_catalog.connection.interruption.interruptible_run import InterruptibleRun
from model_catalog.connection.interruption.running import SERVER_GRACE_S
from model_catalog.connection.postgresql.dropping import is_closed
from model_catalog.connection.postgresql.poolers import POOLER
from model_catalog.execution.postgresql.driver_statements import IS_OWN, execute_on_driver

# Key of Connection.info: when the server last answered, by the monotonic clock.
_ANSWERED_AT: Final = "model_catalog_answered_at"

# The lock timeout of a statement without a transaction: the shortest that PostgreSQL has. A
# statement that meets a lock is repeated in a transaction, which waits. So it returns tags that
# were committed while it waited.
_LOCK_WAIT_MS: Final = 1

# The server gets this long to say that it has stopped a statement.
_ANSWER_S: Final = 0.02

# For so long after an answer the server is taken to be there. A write without a transaction that
# is sent to a lost connection has an unknown outcome. After a longer pause, the server is asked
# first. Firewalls forget a connection after minutes.
_FRESH_S: Final = 1.0


class OwnSessions(NamedTuple):
    """The sessions of an engine that no other program uses."""

    engine: Engine
    """The engine, in the mode AUTOCOMMIT."""
    statement_timeout_s: float
    """The longest time that the server works on a statement, in seconds."""

    @property
    def are_possible(self) -> bool:
        """Whether the URL of the engine names no pooler."""
        return self.engine.get_execution_options().get(POOLER) is None

    def limit_within(self, remaining_s: float) -> bool:
        """Return whether the server stops a statement itself before the call's time is up."""
        return self.statement_timeout_s + _ANSWER_S <= remaining_s + SERVER_GRACE_S

    def connect(self, run: InterruptibleRun, *, writes: bool) -> Connection | None:
        """
        Return a connection whose session is the catalog's own; None behind a pooler.

        It costs a round trip on a connection that was not used before. For a write it also does
        if the server has not answered on the connection for a second. A connection that is dead is
        then replaced, as in `begin_transaction`. Call it in a greenlet of SQLAlchemy.
        """
        try:
            return self._connect_once(run, writes=writes)
        except BaseException as error:
            if not run.reconnects_after(error):
                raise
        return self._connect_once(run, writes=writes)

    def _connect_once(self, run: InterruptibleRun, *, writes: bool) -> Connection | None:
        connection = self.engine.connect()
        run.set_connection(connection)
        try:
            info = connection.info
            is_own = info.get(IS_OWN)
            if is_own is None or (is_own and writes and not _is_fresh(connection)):
                is_own = info[IS_OWN] = self._set_limits(connection)
                mark_used(connection)
        except BaseException:
            connection.close()
            raise
        if is_own:
            if writes:
                run.mark_answered()
            return connection
        connection.close()
        run.set_connection(None)
        return None

    def _set_limits(self, connection: Connection) -> bool:
        """Set the limits of a session if that is the catalog's own; return whether it is."""
        driver = driver_connection(connection)
        is_asyncpg = connection.dialect.driver == "asyncpg"
        process_id = driver.get_server_pid() if is_asyncpg else driver.info.backend_pid
        timeout_s = max(self.statement_timeout_s, MIN_TIMEOUT_S)
        return execute_on_driver(connection, _limits(process_id, timeout_s))


def mark_used(connection: Connection) -> None:
    """Record that the server has just answered on a connection."""
    connection.info[_ANSWERED_AT] = time.monotonic()


def _limits(process_id: int, statement_timeout_s: float) -> str:
    """Return a query that sets the limits and returns a row, if no pooler is in between."""
    # PostgreSQL stores the milliseconds in a 32-bit signed integer.
    statement_ms = int(min(statement_timeout_s, 2_000_000) * 1000)
    settings = {
        "lock_timeout": _LOCK_WAIT_MS,
        "statement_timeout": statement_ms,
        # As the transactions of the catalog have it.
        "default_transaction_isolation": "read committed",
    }
    calls = (f"set_config('{name}', '{value}', false)" for name, value in settings.items())
    # A pooler invents the process ID, and then nothing is set. See `poolers.is_direct`.
    return f"SELECT {', '.join(calls)} WHERE pg_backend_pid() = {process_id}"


def _is_fresh(connection: Connection) -> bool:
    """Return whether the server has answered lately, and has sent nothing since."""
    if time.monotonic() - connection.info.get(_ANSWERED_AT, -_FRESH_S) >= _FRESH_S:
        return False
    # A server that ends a session sends a message and closes the connection. The event loop may
    # not have seen that yet.
    driver = driver_connection(connection)
    return not (is_closed(driver) or _has_unread_data(driver))


def _has_unread_data(driver: Any) -> bool:
    # asyncpg has no public name for its transport.
    transport = getattr(driver, "_transport", None)
    source = driver if transport is None else transport.get_extra_info("socket")
    poll = select.poll()
    poll.register(source.fileno(), select.POLLIN)
    return bool(poll.poll(0))
