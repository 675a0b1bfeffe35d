"""Finds the engine or connection to which a host's session sends a read or a write."""

from __future__ import annotations

import logging
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Engine, select, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session

from model_catalog.connection.error_mapping import NEEDS_ROLLBACK, map_errors
from model_catalog.connection.target import wrong_object
from model_catalog.errors import TransactionError
from model_catalog.mapping.tables import Model

SESSION_NAME: Final = "the host's session"

_OWN_MODULES: Final = f"{__name__.partition('.')[0]}."

# A host may bind each of its mappings to a database of its own, and send statements that write to
# another server than SELECTs. SQLAlchemy's example sends an Update to its leader, but no Insert.
_READ: Final[dict[str, Any]] = {"mapper": Model.__mapper__, "clause": select(Model)}
_WRITE: Final[dict[str, Any]] = {"mapper": Model.__mapper__, "clause": update(Model)}

# Events of a host that see the catalog's statements, its transactions, or its use of connections.
# A tracer or row security set for each transaction listens to them. The catalog itself listens to
# "begin" of an engine, and to "reset" and "checkout" of a pool, so these are checked apart.
_ENGINE_EVENTS: Final = (
    "before_execute",
    "after_execute",
    "before_cursor_execute",
    "after_cursor_execute",
    "engine_connect",
    "commit",
    "rollback",
)
_DIALECT_EVENTS: Final = ("do_execute", "do_executemany", "do_execute_no_params", "handle_error")
_SESSION_EVENTS: Final = (
    "after_begin",
    "after_commit",
    "after_rollback",
    "after_soft_rollback",
    "after_transaction_create",
    "after_transaction_end",
    "before_commit",
)


class SessionBind(NamedTuple):
    """What a session sends the catalog's statements to."""

    source: Engine | Connection
    """The engine, or the connection that the host has bound the session to."""

    @property
    def engine(self) -> Engine:
        """The engine, or the engine of the connection."""
        return self.source.engine

    @property
    def arguments(self) -> dict[str, Any]:
        """The `bind_arguments` with which `session.connection()` uses this bind."""
        return {"bind": self.source}

    @property
    def connection(self) -> Connection | None:
        """The host's own connection, which no other connection may replace; None for an engine."""
        return self.source if isinstance(self.source, Connection) else None

    @property
    def joined(self) -> Connection | None:
        """
        The host's own connection if the host has begun a transaction on it.

        Raises TransactionError if that transaction has ended and is not rolled back yet.
        """
        connection = self.connection
        if connection is None or connection.get_transaction() is None:
            return None
        if not connection.in_transaction():
            raise TransactionError(NEEDS_ROLLBACK)
        return connection

    def require_transactions(self) -> None:
        """Raise TransactionError if the host's own connection commits every statement."""
        connection = self.connection
        if connection is None:
            return
        dbapi_connection: Any = connection.connection.dbapi_connection
        if connection.dialect.detect_autocommit_setting(dbapi_connection):
            raise TransactionError(
                "the session is bound to a connection with the isolation level AUTOCOMMIT, in "
                "which nothing can be rolled back: bind it to an engine"
            )


def find_bind(session: AsyncSession, *, writes: bool) -> SessionBind:
    """
    Return what a session sends a SELECT of models to, or with `writes` an UPDATE of models.

    Asks `get_bind` of the session, which may answer differently each time. Raises SQLAlchemyError
    if the session has no bind.
    """
    # The method of AsyncSession would pass an argument that a router need not take.
    return SessionBind(session.sync_session.get_bind(**(_WRITE if writes else _READ)))


def find_first_bind(session: AsyncSession) -> SessionBind:
    """Return what a session sends writes to. Raises CatalogError if the session has no bind."""
    with map_errors(SESSION_NAME):
        return find_bind(session, writes=True)


def new_session(sessions: async_sessionmaker[AsyncSession]) -> AsyncSession:
    """
    Return a new session of a host's factory.

    Raises InvalidTargetError if its engine is synchronous, and CatalogError for other settings that
    SQLAlchemy refuses.
    """
    bind = sessions.kw.get("bind")
    if isinstance(bind, Engine | Connection):
        raise wrong_object(bind)
    with map_errors(SESSION_NAME):
        return sessions()


class PlainFactory:
    """
    A host's session factory, which may be found to do nothing but connect to one engine.

    Then the catalog needs none of its sessions, and calls may share a connection and a transaction.
    """

    def __init__(self, sessions: async_sessionmaker[AsyncSession]) -> None:
        """Make a session of the factory, to see its class, its options and its listeners."""
        self._sessions = sessions
        self._session = session = new_session(sessions)
        sync_session = session.sync_session
        bind: object = sessions.kw.get("bind")
        self._engine: AsyncEngine | None = None
        if (
            type(sessions) is async_sessionmaker
            and isinstance(bind, AsyncEngine)
            and type(session) is AsyncSession
            and type(sync_session) is Session
            and not sessions.kw.get("binds")
            and not sync_session.execution_options
            and not sync_session.twophase
        ):
            self._engine = bind

    def first_bind(self) -> SessionBind:
        """Return what a session sends writes to. Raises CatalogError if there is no bind."""
        return find_first_bind(self._session)

    def find_engine(self) -> AsyncEngine | None:
        """
        Return the engine if sessions and engine do nothing of their own now, and otherwise None.

        They do something if the host listens to statements, transactions or connections, or logs
        statements with `echo` or through `logging`. A tracer listens too, and so does a host that
        sets the tenant of a transaction. `configure` may have given the factory another engine.
        """
        engine = self._engine
        bind: object = self._sessions.kw.get("bind")
        if engine is None or engine is not bind:
            return None
        sync_engine = engine.sync_engine
        is_watched = (
            sync_engine.logger.isEnabledFor(logging.INFO)
            or _has_listeners(sync_engine.dispatch, _ENGINE_EVENTS)
            or _has_listeners(sync_engine.dialect.dispatch, _DIALECT_EVENTS)
            or sync_engine.pool.dispatch.checkin
            or _has_listeners(self._session.sync_session.dispatch, _SESSION_EVENTS)
            or not _has_only_own_listeners(sync_engine)
        )
        return None if is_watched else engine


def _has_listeners(dispatch: Any, names: tuple[str, ...]) -> bool:
    # `event.contains` would need the function that listens. A collection of `dispatch` is true if
    # it has any, also of the class. (A generator with any() would take three times as long.)
    for name in names:  # noqa: SIM110
        if getattr(dispatch, name):
            return True
    return False


def _has_only_own_listeners(engine: Engine) -> bool:
    """Return whether only the catalog sees transactions begin, and connections leave the pool."""
    # `event.contains` would take 4 us for each of our own listeners, of the 200 us of a find.
    pool = engine.pool.dispatch
    return (
        all(map(_is_own, engine.dispatch.begin))
        and all(map(_is_own, pool.reset))
        and all(map(_is_own, pool.checkout))
    )


def _is_own(listener: object) -> bool:
    return str(getattr(listener, "__module__", "")).startswith(_OWN_MODULES)
