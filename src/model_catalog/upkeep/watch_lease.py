"""Let one of several watches of a database work at a time, by a lease in the database."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final
from uuid import uuid4

from model_catalog.errors import CatalogError
from model_catalog.repository.model_catalog import ModelCatalog
from model_catalog.upkeep.queries.lease_queries import (
    LeaseClaim,
    release_lease,
    remaining_time,
    take_lease,
)

log = logging.getLogger("model_catalog.upkeep")

MAX_LEASE_S: Final = 60.0
"""How long a lease lasts, so that another watch takes over a minute after a process was killed."""
_MIN_LEASE_S: Final = 2.0
"""A shorter lease could expire while the event loop or the database is busy."""
_RENEWALS: Final = 3
"""How often a lease is renewed in its time."""
_RELEASE_TIMEOUT_S: Final = 2.0


class WatchLease:
    """The lease of one watch: it waits for the lease, works while it holds it, and releases it."""

    def __init__(self, catalog: ModelCatalog, interval_s: float) -> None:
        self._catalog: Final = catalog
        self._interval_s: Final = interval_s
        self._duration_s: Final = min(MAX_LEASE_S, max(_MIN_LEASE_S, interval_s))
        self._claim: Final = LeaseClaim("watch", uuid4().hex, int(self._duration_s * 1000))
        self._renewed_at = 0.0
        self.is_held = False
        self.wait_s = interval_s
        """How many seconds to wait before the next attempt to take the lease."""

    async def take(self) -> None:
        """
        Take the lease if it is free. Otherwise only read, and set `wait_s`.

        Raises CatalogError.
        """
        self.wait_s = self._interval_s
        remaining_s = await remaining_time(self._catalog, self._claim)
        if not remaining_s:
            await self._renew()
        # Of the watches that wait, one takes the lease and the others see it.
        spread = random.uniform(1.0, 1.1)  # noqa: S311 - not for cryptography
        self.wait_s = min(remaining_s or self._duration_s, self._interval_s) * spread

    async def hold_during(self, work: Callable[[], Awaitable[None]]) -> None:
        """
        Renew the lease while some work runs; cancel the work and return if the lease is lost.

        Raises what the work raises.
        """
        task = asyncio.ensure_future(work())
        try:
            while self.is_held:
                done, _ = await asyncio.wait([task], timeout=self._duration_s / _RENEWALS)
                if done:
                    task.result()
                    return
                await self._renew_or_expire()
        finally:
            task.cancel()
            # `await task` could not tell a cancellation of this task from that of the work.
            await asyncio.wait([task])
        log.info("another process watches the catalog now")

    async def _renew_or_expire(self) -> None:
        try:
            await self._renew()
        except (CatalogError, OSError) as error:
            # The database may be busy for a moment. The lease is held until it expires.
            self.is_held = time.monotonic() - self._renewed_at < self._duration_s
            log.debug("the lease of the watch could not be renewed: %s", error)

    async def _renew(self) -> None:
        began_at = time.monotonic()
        self.is_held = await take_lease(self._catalog, self._claim)
        if self.is_held:
            self._renewed_at = began_at

    async def release(self) -> None:
        """Release the lease, so that another watch takes it at its next attempt."""
        if self.is_held:
            self.is_held = False
            # Otherwise it expires.
            with suppress(CatalogError, OSError):
                await release_lease(self._catalog, self._claim, _RELEASE_TIMEOUT_S)
