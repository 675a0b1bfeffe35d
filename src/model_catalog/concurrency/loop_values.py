"""One value for each object and event loop, for state that belongs to the tasks of a loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

from model_catalog.concurrency.forks import fork_count
from model_catalog.concurrency.ownership import running_loop

K = TypeVar("K")
V = TypeVar("V")


class LoopValues(Generic[K, V]):
    """
    Makes a value for each object and running event loop, and keeps it while both exist.

    A host may use a catalog in several threads, each with a loop. An event of one loop cannot wake
    a task of another one. A forked child gets new values: the tasks of its parent do not end there.
    """

    def __init__(self, make: Callable[[K], V]) -> None:
        self._make = make
        self._forks = fork_count()
        self._values: WeakKeyDictionary[K, WeakKeyDictionary[asyncio.AbstractEventLoop, V]] = (
            WeakKeyDictionary()
        )

    def get(self, owner: K) -> V:
        """Return the value of an object in the running loop. Raises WrongLoopError."""
        loop = running_loop()
        if self._forks != fork_count():
            self._forks = fork_count()
            self._values = WeakKeyDictionary()
        of_loops = self._values.setdefault(owner, WeakKeyDictionary())
        if loop not in of_loops:
            of_loops[loop] = self._make(owner)
        return of_loops[loop]
