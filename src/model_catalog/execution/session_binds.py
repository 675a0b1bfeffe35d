"""Finds the engine or connection to which a host's session sends a read or a write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Engine, select, update
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session

from model_catalog.connection.error_mapping import NEEDS_ROLLBACK, map_errors
from model_catalog.connection.target import wrong_object
from model_catalog.errors import TransactionError
from model_catalog.mapping.tables import Model

SESSION_NAME: Final = "the host's session"

# A host may bind each of its mappings to a database of its own, and send statements that write to
# another server than SELECTs. SQLAlchemy's example sends an Update to its leader, but no Insert.
_READ: Final[dict[str, Any]] = {"mapper": Model.__mapper__, "clause": select(Model)}
_WRITE: Final[dict[str, Any]] = {"mapper": Model.__mapper__, "clause": update(Model)}

# Listeners of a session that see its connection and its transaction. A tracer or row security set
# for each transaction needs them.
_SESSION_EVENTS: Final = (
    "after_begin",
    "after_commit",
    "after_rollback",
    "after_soft_rollback",
    "after_transaction_create",
    "after_transaction_end",
    "before_commit",
)


@dataclass(frozen=True, slots=True)
class SessionBind:
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


def may_bypass(session: AsyncSession, bind: SessionBind) -> bool:
    """
    Return whether the catalog may use a connection of the bind's engine without the session.

    That is so if the session does nothing of its own. It is not so for a subclass of AsyncSession
    or Session, for a session with listeners for its transactions, with execution options or with
    two-phase commits, and for one that is bound to a connection.
    """
    sync_session = session.sync_session
    return (
        bind.connection is None
        and type(session) is AsyncSession
        and type(sync_session) is Session
        and not sync_session.execution_options
        and not sync_session.twophase
        and not any(getattr(sync_session.dispatch, event) for event in _SESSION_EVENTS)
    )
