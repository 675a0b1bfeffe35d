"""Renew the leases that this process holds: claims of downloads, and models in use."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Final, Protocol, TypeVar

from model_catalog.concurrency.forks import start_task
from model_catalog.concurrency.loop_values import LoopValues
from model_catalog.domain import validation
from model_catalog.downloads.queries.claim_queries import renew_claims, save_progress
from model_catalog.downloads.queries.use_queries import HeldUse, renew_uses
from model_catalog.errors import CatalogError, InvalidModelError, TransactionError
from model_catalog.execution.executor import Executor, write
from model_catalog.repository.model_catalog import ModelCatalog, executor_of

T = TypeVar("T")

log = logging.getLogger("model_catalog.downloads")

DEFAULT_LEASE_S: Final = 30.0
MIN_LEASE_S: Final = 1.0
"""A shorter lease could expire while the event loop or the database is busy."""
MAX_LEASE_S: Final = 86_400.0
RENEWALS: Final = 3
"""How often a lease is renewed in its time."""
_PROGRESS_INTERVAL_S: Final = 1.0
"""How often the reported bytes of downloads are written."""
_BATCH_SIZE: Final = 500
"""Leases in one transaction, so that no other writer waits for longer than for a statement."""


def validate_lease(lease_s: float) -> float:
    """Return a duration in seconds. Raises InvalidModelError if it is out of range."""
    if not MIN_LEASE_S <= validation.seconds("lease_s", lease_s) <= MAX_LEASE_S:
        problem = f"is out of range: give {MIN_LEASE_S:g} to {MAX_LEASE_S:g} seconds"
        raise InvalidModelError("lease_s", lease_s, problem)
    return lease_s


def require_no_transaction(catalog: ModelCatalog, function: str) -> None:
    """Raise TransactionError if a catalog is that of an open transaction."""
    if executor_of(catalog).is_in_transaction:
        raise TransactionError(
            f"{function} commits, so it cannot be part of a transaction: call it with the catalog "
            "itself, outside of transaction()"
        )


class Lease(Protocol):
    """A lease that this process holds until it is released or lost."""

    renewed_at: float
    """The time of `time.monotonic` before the last successful renewal was sent."""

    @property
    def token(self) -> str: ...

    @property
    def lease_s(self) -> float: ...

    def lose(self) -> None:
        """Called once, in the event loop, when another process has the lease or may take it."""


class ClaimLease(Lease, Protocol):
    """The lease of a download, with the bytes that were reported since the last call."""

    def take_progress(self) -> tuple[int, int | None] | None:
        """Return the done and the total bytes, or None if they were not reported again."""


class UseLease(Lease, Protocol):
    """The lease of a model in use."""

    @property
    def held(self) -> HeldUse: ...


class LeaseKeeper:
    """
    Renews all leases of a catalog in one task, which runs while there are any.

    A lease is renewed three times in its duration. Leases are renewed together, 500 in a statement,
    so their cost does not grow with the number of tasks. A lease that could not be renewed is
    considered lost when its duration has passed on this machine, before another process takes it.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor: Final = executor
        self._claims: Final[dict[str, ClaimLease]] = {}
        self._uses: Final[dict[str, UseLease]] = {}
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    def add_claim(self, claim: ClaimLease) -> None:
        """Renew a claim that was just taken."""
        self._claims[claim.token] = claim
        self._wake()

    def add_use(self, use: UseLease) -> None:
        """Renew a use that has just begun."""
        self._uses[use.token] = use
        self._wake()

    def remove(self, token: str) -> None:
        """Renew a lease no more."""
        self._claims.pop(token, None)
        self._uses.pop(token, None)
        if not self._claims and not self._uses and self._task is not None:
            self._task.cancel()
            self._task = None

    def _wake(self) -> None:
        self._changed.set()
        if self._task is None or self._task.done():
            self._task = start_task(self._run())

    async def _run(self) -> None:
        next_renewal = time.monotonic() + self._interval_s()
        while self._claims or self._uses:
            self._changed.clear()
            remaining_s = next_renewal - time.monotonic()
            wait_s = min(remaining_s, _PROGRESS_INTERVAL_S) if self._claims else remaining_s
            await _wait_for(self._changed, max(0.0, wait_s))
            # A new lease may be shorter than all others.
            next_renewal = min(next_renewal, time.monotonic() + self._interval_s())
            is_due = time.monotonic() >= next_renewal
            if is_due:
                next_renewal = time.monotonic() + self._interval_s()
                await self.renew()
            await self._save_progress()
            self._drop_expired()

    async def renew(self) -> None:
        """Renew all leases now. Raises nothing if the database is busy or not there."""
        await self._renew_claims()
        await self._renew_uses()

    def _interval_s(self) -> float:
        leases = (*self._claims.values(), *self._uses.values())
        return min((lease.lease_s for lease in leases), default=DEFAULT_LEASE_S) / RENEWALS

    async def _renew_claims(self) -> None:
        for claims in _batches(list(self._claims.values())):
            durations_ms = {claim.token: int(claim.lease_s * 1000) for claim in claims}
            await self._renew(claims, renew_claims, durations_ms)

    async def _save_progress(self) -> None:
        for claims in _batches(list(self._claims.values())):
            reported = ((claim.token, claim.take_progress()) for claim in claims)
            progress = [(token, *each) for token, each in reported if each is not None]
            if progress:
                await self._write(save_progress, progress)

    async def _renew_uses(self) -> None:
        for uses in _batches(list(self._uses.values())):
            await self._renew(uses, renew_uses, [use.held for use in uses])

    async def _renew(
        self, leases: Sequence[Lease], function: Callable[..., set[str]], value: object
    ) -> None:
        began_at = time.monotonic()
        held = await self._write(function, value)
        if held is None:
            return
        for lease in leases:
            if lease.token in held:
                lease.renewed_at = began_at
            else:
                self._lose(lease)

    async def _write(self, function: Callable[..., T], value: object) -> T | None:
        """Run a function in a transaction, and return its result, or None if it failed."""
        timeout_s = min(self._interval_s(), self._executor.timeout_s)
        try:
            return await self._executor.run(write(function, value, timeout_s=timeout_s))
        except (CatalogError, OSError) as error:
            # The database may be busy for a moment. The leases are held until they expire.
            log.debug(
                "the leases of models could not be renewed: %s",
                error,
                extra={"model_catalog_url": self._executor.database.name},
            )
            return None

    def _drop_expired(self) -> None:
        now = time.monotonic()
        for lease in [*self._claims.values(), *self._uses.values()]:
            if now - lease.renewed_at > lease.lease_s:
                self._lose(lease)

    def _lose(self, lease: Lease) -> None:
        # A lease that was released while it was renewed is not lost.
        if self._claims.pop(lease.token, None) or self._uses.pop(lease.token, None):
            lease.lose()


async def _wait_for(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        pass


def _batches(items: Sequence[T]) -> Iterator[list[T]]:
    remaining = iter(items)
    while batch := list(islice(remaining, _BATCH_SIZE)):
        yield batch


_keepers: Final = LoopValues[ModelCatalog, LeaseKeeper](
    lambda catalog: LeaseKeeper(executor_of(catalog))
)


def keeper_of(catalog: ModelCatalog) -> LeaseKeeper:
    """Return the keeper of a catalog's leases in the running loop."""
    return _keepers.get(catalog)
