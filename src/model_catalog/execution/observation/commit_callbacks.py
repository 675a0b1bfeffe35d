"""The functions to call after the commit of an open transaction, our own or a host session's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, SessionTransaction

from model_catalog.execution.observation.hooks import Journal


class CommitCallbacks:
    """The functions to call after the commit of a transaction, in order."""

    def __init__(self) -> None:
        self._callbacks: list[Callable[[], None]] = []

    def add(self, callback: Callable[[], None]) -> None:
        """Add a function, whose operation was run in the transaction."""
        self._callbacks.append(callback)

    def __len__(self) -> int:
        return len(self._callbacks)

    def truncate(self, length: int) -> None:
        """Drop all but the first functions: a savepoint was rolled back."""
        del self._callbacks[length:]

    def prepare(self) -> None:
        """Tell the functions that the transaction is about to be committed."""
        for callback in self._callbacks:
            if isinstance(callback, Journal):
                callback.prepare()

    def call(self) -> None:
        """Call the functions: the transaction is committed."""
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def drop(self) -> None:
        """Drop the functions that were not called: the transaction was not committed."""
        for callback in self._callbacks:
            if isinstance(callback, Journal):
                callback.drop()


class _Pending(NamedTuple):
    callback: Callable[[], None]
    transactions: tuple[SessionTransaction, ...]
    """The savepoints and the transaction in which its operation was run; the inner one first."""


_INFO_KEY: Final = "model_catalog_commits"


def commits_of(session: AsyncSession) -> HostCommits:
    """Return the functions to call after the commit of a session; one object for all catalogs."""
    commits: HostCommits = session.info.setdefault(_INFO_KEY, HostCommits(session))
    return commits


class HostCommits(CommitCallbacks):
    """
    The functions to call after the commit of a host's session.

    They are dropped when the savepoint or the transaction is rolled back in which they were added.
    For a session that is bound to a connection they are dropped at once: if the host has begun a
    transaction on that connection, the session does not commit it.
    """

    def __init__(self, session: AsyncSession) -> None:
        super().__init__()
        self._session = session
        self._pending: list[_Pending] = []
        self._committed: SessionTransaction | None = None
        self._is_listening = False

    def add(self, callback: Callable[[], None]) -> None:
        """Add a function, whose operation was run in the transaction."""
        session = self._session.sync_session
        transaction = session.get_nested_transaction() or session.get_transaction()
        # A catalog of its own sessions does not need it.
        from model_catalog.execution.session_binds import find_bind  # noqa: PLC0415

        is_bound_to_connection = find_bind(self._session, writes=True).connection is not None
        if transaction is None or is_bound_to_connection:
            return
        if not self._is_listening:
            self._is_listening = True
            event.listen(session, "after_commit", self._on_commit)
            event.listen(session, "after_transaction_end", self._on_end)
        chain = [transaction]
        while chain[-1].parent is not None:
            chain.append(chain[-1].parent)
        self._pending.append(_Pending(callback, tuple(chain)))

    def __len__(self) -> int:
        return len(self._pending)

    def truncate(self, length: int) -> None:
        """Drop all but the first functions: a savepoint was rolled back."""
        del self._pending[length:]

    def _on_commit(self, session: Session) -> None:
        # The session tells of the end of a savepoint in the same way.
        nested = session.get_nested_transaction()
        self._committed = nested or session.get_transaction()
        if nested is None:
            pending, self._pending = self._pending, []
            for each in pending:
                each.callback()

    def _on_end(self, _session: Session, transaction: SessionTransaction) -> None:
        if transaction is self._committed:
            self._committed = None
            return
        self._pending = [each for each in self._pending if transaction not in each.transactions]
