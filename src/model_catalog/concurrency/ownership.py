"""Where a catalog lives: the process and the event loop it was opened in, until it is closed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager

from model_catalog.errors import CatalogClosedError, WrongLoopError


class LoopOwner:
    """The process and the loop that runs while it is made; over once it is closed."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._process = os.getpid()
        self._loop = asyncio.get_running_loop()
        self.is_closed = False
        self._calls = 0
        self._quiet: asyncio.Future[None] | None = None

    @contextmanager
    def call(self) -> Iterator[None]:
        """A call that is on its way. Raises what `require` raises."""
        self.require()
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1
            if self._quiet is not None and not self._calls and not self._quiet.done():
                self._quiet.set_result(None)

    async def until_quiet(self) -> None:
        """Wait for the calls that are on their way."""
        if self._calls:
            self._quiet = self._loop.create_future()
            await self._quiet

    @property
    def is_here(self) -> bool:
        """Whether this is still the process it was made in: a child has none of its threads."""
        return os.getpid() == self._process

    def require(self) -> None:
        """Raise WrongLoopError anywhere else, and CatalogClosedError once it is closed."""
        if os.getpid() != self._process:
            raise WrongLoopError(
                self._target,
                f"process {self._process}, of which this one ({os.getpid()}) is a child",
                "process",
            )
        if asyncio.get_running_loop() is not self._loop:
            raise WrongLoopError(self._target, "another event loop", "loop")
        if self.is_closed:
            raise CatalogClosedError(self._target)
