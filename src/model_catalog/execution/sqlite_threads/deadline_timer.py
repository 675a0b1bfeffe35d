"""When the time of calls is up: one timer for all that wait, and for each its own end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from model_catalog.execution.sqlite_threads.request import Request


class DeadlineTimer:
    """
    The ends of calls, each of which `expire` is told of that comes before its call has ended.

    A timer of its own for each would take as long as the call's way to its thread.
    """

    def __init__(self, expire: Callable[[Request[Any]], object]) -> None:
        self._expire = expire
        self._loop = asyncio.get_running_loop()
        self._ends: dict[Request[Any], float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def set(self, call: Request[Any], end: float) -> None:
        """Have a call expire at a time by the loop's clock."""
        self._ends[call] = end
        if self._timer is None or end < self._timer.when():
            self._watch(end)

    def drop(self, call: Request[Any]) -> None:
        """Forget a call; does nothing to one that has expired."""
        self._ends.pop(call, None)

    def close(self) -> None:
        """Forget all of them."""
        self._ends.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _watch(self, end: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(end, self._look, end)

    def _look(self, due: float) -> None:
        self._timer = None
        # A loop's timer may ring a moment before its time.
        now = max(self._loop.time(), due)
        for call in [call for call, end in self._ends.items() if end <= now]:
            del self._ends[call]
            self._expire(call)
        if self._ends:
            self._watch(min(self._ends.values()))
