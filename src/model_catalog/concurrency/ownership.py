"""Checks that a catalog is used in the process and event loop it belongs to, and is not closed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from model_catalog.concurrency.forks import fork_count, separate_in_child
from model_catalog.errors import CatalogClosedError, WrongLoopError


def running_loop() -> asyncio.AbstractEventLoop:
    """Return the running event loop of asyncio. Raises WrongLoopError, for example under trio."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise WrongLoopError.without_asyncio() from None


class LoopOwner:
    """
    The process and the event loop that a catalog was opened in, and its calls in progress.

    Create it in the running loop. Set `is_closed` to refuse further calls.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._process_id = os.getpid()
        self._forks = fork_count()
        self._loop = running_loop()
        separate_in_child(self._loop)
        self.is_closed = False
        self._active_call_count = 0
        self._idle: asyncio.Future[None] | None = None

    @contextmanager
    def active_call(self) -> Iterator[None]:
        """Count a call as in progress while the block runs. Raises what `check_usable` raises."""
        self.check_usable()
        self._active_call_count += 1
        try:
            yield
        finally:
            self._active_call_count -= 1
            if self._idle is not None and not self._active_call_count and not self._idle.done():
                self._idle.set_result(None)

    async def wait_idle(self) -> None:
        """Wait until no call is in progress."""
        if self._active_call_count:
            self._idle = self._loop.create_future()
            await self._idle

    @property
    def is_in_owner_process(self) -> bool:
        """Whether this is the process that made it. A forked child has none of its threads."""
        return os.getpid() == self._process_id

    def check_usable(self) -> None:
        """
        Raise an error if a call must not be made here and now.

        Raises WrongLoopError in another event loop and in a forked child, and CatalogClosedError
        after the catalog was closed.
        """
        # A system call for the id of the process would take half a microsecond in some sandboxes.
        if fork_count() != self._forks:
            raise WrongLoopError(
                self._target,
                f"process {self._process_id}, the parent of this process ({os.getpid()})",
                "process",
            )
        if running_loop() is not self._loop:
            raise WrongLoopError(self._target, "another event loop", "loop")
        if self.is_closed:
            raise CatalogClosedError(self._target)

    def check_open(self) -> None:
        """Raise CatalogClosedError if the catalog was closed."""
        if self.is_closed:
            raise CatalogClosedError(self._target)


class HostOwner:
    """
    The owner of a catalog over a host's sessions: the host may use it in any loop and process.

    It has the methods of LoopOwner. `on_fork` is called before the first call in a forked child.
    """

    is_in_owner_process = True
    is_closed = False

    def __init__(self, on_fork: Callable[[], object] = lambda: None) -> None:
        self._process_id = os.getpid()
        self._on_fork = on_fork

    def active_call(self) -> AbstractContextManager[None]:
        """Return a block for one call. `wait_idle` does not wait for its end."""
        self.check_usable()
        return nullcontext()

    async def wait_idle(self) -> None:
        """Return at once."""

    def check_usable(self) -> None:
        """
        Call `on_fork` if this process is a new child of the process that made the owner.

        Raises WrongLoopError if no event loop of asyncio is running.
        """
        running_loop()
        if os.getpid() != self._process_id:
            self._process_id = os.getpid()
            self._on_fork()

    def check_open(self) -> None:
        """Do nothing: a host's catalog is never closed."""
