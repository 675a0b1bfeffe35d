"""A queued request: an operation, its result, and the state that task and thread share."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from model_catalog.execution.executor import Operation

T = TypeVar("T")


class TransactionHandle:
    """Identifies the transaction that a connection thread keeps open between requests."""

    is_ending = False


class Request(Generic[T]):
    """An operation that is queued for a connection thread, and its outcome."""

    __slots__ = (
        "_has_started",
        "_lock",
        "done",
        "ends_transaction",
        "error",
        "is_answered",
        "is_cancelled",
        "is_completed",
        "is_dropped",
        "is_timed_out",
        "opens_transaction",
        "operation",
        "result",
        "start",
    )

    def __init__(self, operation: Operation[Any, T], start: float) -> None:
        self.operation = operation
        self.start = start
        """When it was made, by the loop's clock."""
        self.opens_transaction = False
        """Whether the transaction it begins stays open for further requests."""
        self.ends_transaction = False
        """Whether it ends the transaction that is open."""
        self.result: T | None = None
        self.error: BaseException | None = None
        self.done: asyncio.Future[None]
        """The future that the waiting task awaits."""
        self.is_answered = False
        """Whether the waiting task has its outcome; set in the event loop only."""
        self.is_completed = False
        """Whether its outcome is certain, whatever becomes of its batch; set in the thread only."""
        self.is_timed_out = False
        """Whether it has to be interrupted: it has timed out, or is a read that was cancelled."""
        self.is_cancelled = False
        """Whether its task was cancelled after it had started."""
        self.is_dropped = False
        """Whether it will never be run."""
        # Between try_start() in the thread and cancel_if_queued() in the loop. Each request has its
        # own lock: a forked child would find a common one locked for ever.
        self._lock = threading.Lock()
        self._has_started = False

    def try_start(self) -> bool:
        """Start it, unless it was dropped; return whether it has to be run."""
        with self._lock:
            self._has_started = not self.is_dropped
            return self._has_started

    def requeue(self, error: BaseException) -> bool:
        """
        Return it to the queue after a rollback; return whether it has to be run again.

        One that was cancelled or has timed out meanwhile is dropped with `error`.
        """
        with self._lock:
            self._has_started = False
            if self.is_cancelled or self.is_timed_out:
                self.is_dropped = True
                self.error = error
            return not self.is_dropped

    def cancel_if_queued(self) -> bool:
        """Drop it if it has not started; return whether it was dropped."""
        with self._lock:
            if self._has_started or self.is_answered:
                return False
            self.is_dropped = True
            return True


class DeadlineTimer:
    """
    The deadlines of pending requests. Calls `expire(request)` when one passes.

    All requests share one timer of the loop. A timer for each would take as long as handing the
    request to its thread.
    """

    def __init__(self, expire: Callable[[Request[Any]], object]) -> None:
        self._expire = expire
        self._loop = asyncio.get_running_loop()
        self._deadlines: dict[Request[Any], float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def set(self, request: Request[Any], deadline: float) -> None:
        """Call `expire(request)` at `deadline`, a time of the loop's clock in seconds."""
        self._deadlines[request] = deadline
        if self._timer is None or deadline < self._timer.when():
            self._schedule(deadline)

    def discard(self, request: Request[Any]) -> None:
        """Remove the deadline of a request. Does nothing if it has none, or has expired."""
        self._deadlines.pop(request, None)

    def close(self) -> None:
        """Cancel the timer: no request expires any more."""
        self._deadlines.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(deadline, self._expire_due, deadline)

    def _expire_due(self, scheduled: float) -> None:
        self._timer = None
        # The loop may call a timer a moment before its time.
        now = max(self._loop.time(), scheduled)
        due = [request for request, deadline in self._deadlines.items() if deadline <= now]
        for request in due:
            del self._deadlines[request]
            self._expire(request)
        if self._deadlines:
            self._schedule(min(self._deadlines.values()))
