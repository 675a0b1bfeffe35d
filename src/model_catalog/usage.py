"""How often and when a model was used: counted without loss, in few transactions."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextvars import Context
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, case, literal, or_, update
from sqlalchemy.sql.dml import ReturningUpdate

from model_catalog import rules
from model_catalog.errors import CatalogBusyError, ModelNotFoundError
from model_catalog.query import MODELS, C
from model_catalog.records import Key, Records, one_more

I = TypeVar("I")  # noqa: E741 - an item
R = TypeVar("R")


class Together(Generic[I, R]):
    """
    One write for all calls of an event loop that arrive while another one runs.

    Each waits for the write it is part of, and no longer than it may: a write is given the time
    that is left to the first of its calls, and those that have more are part of the next. One that
    is cancelled before its write began is left out of it, and one that is cancelled during it
    learns of it afterwards.
    """

    def __init__(self, write: Callable[[Sequence[I], float], Awaitable[Sequence[R]]]) -> None:
        self._write = write
        self._waiting: dict[asyncio.Future[R], tuple[I, float]] = {}
        self._running: asyncio.Task[None] | None = None

    async def submit(self, item: I, timeout_s: float) -> R:
        """Have an item written; return what the write says of it, or raise what it raised."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        done: asyncio.Future[R] = loop.create_future()
        self._waiting[done] = (item, start + timeout_s)
        if self._running is None:
            # In a context of its own: what is true of the first caller is not true of the others.
            self._running = asyncio.create_task(self._run(), context=Context())
        try:
            # Not shield(): see `to_its_end`.
            await asyncio.wait([done])
        except asyncio.CancelledError:
            if self._waiting.pop(done, None) is None:
                while not done.done():
                    try:
                        await asyncio.wait([done])
                    except asyncio.CancelledError:
                        continue
                if not done.cancelled():
                    done.exception()
            raise
        try:
            return done.result()
        except CatalogBusyError as error:
            # It may have waited for another write first.
            raise CatalogBusyError(error.target, error.reason, loop.time() - start) from error

    async def _run(self) -> None:
        now = asyncio.get_running_loop().time
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, {}
                end = min(deadline for _, deadline in batch.values())
                try:
                    results = await self._write([item for item, _ in batch.values()], end - now())
                except CatalogBusyError as error:
                    later = {done: call for done, call in batch.items() if call[1] > end}
                    self._waiting = later | self._waiting
                    _raise(error, batch.keys() - later.keys())
                except Exception as error:  # noqa: BLE001 - it belongs to those who wait
                    _raise(error, batch)
                else:
                    for done, result in zip(batch, results, strict=True):
                        done.set_result(result)
                finally:
                    for done in batch.keys() - self._waiting.keys():
                        done.cancel()
        finally:
            self._running = None


def _raise(error: Exception, waiting: Iterable[asyncio.Future[Any]]) -> None:
    for done in waiting:
        done.set_exception(error)


class Usage(Records):
    """The operation that counts uses."""

    _uses: WeakKeyDictionary[asyncio.AbstractEventLoop, Together[tuple[Key, int], bool]]

    async def record_use(
        self, reference: str, provider: str, version: str | None = None, count: int = 1
    ) -> None:
        """
        Count a use of a model, and remember that it was now; return when it is stored.

        Calls that come together share a transaction, and none is lost. `last_used_at` never goes
        back, whatever the clock does. Raises ModelNotFoundError and InvalidModelError.
        """
        key = Key.of(reference, provider, version)
        self._work.ensure_outside()
        use = (key, rules.count("count", count))
        loop = asyncio.get_running_loop()
        together = self._uses.get(loop)
        if together is None:
            together = self._uses[loop] = Together(self._record_uses)
        if not await together.submit(use, self._work.timeout_s):
            raise ModelNotFoundError(key.reference, key.provider, key.version)

    async def _record_uses(self, uses: Sequence[tuple[Key, int]], timeout_s: float) -> list[bool]:
        sums: Counter[Key] = Counter()
        for key, count in uses:
            sums[key] += count
        now = datetime.now(UTC).replace(microsecond=0)

        def unit(connection: Connection) -> dict[Key, bool]:
            # Two processes that count the same models lock them in the same order.
            return {
                key: connection.scalar(_count(key, sums[key], now)) is not None
                for key in sorted(
                    sums, key=lambda key: (key.provider, key.reference, key.version or "")
                )
            }

        known = await self._work.write(unit, timeout_s)
        return [known[key] for key, _ in uses]


def _count(key: Key, count: int, now: datetime) -> ReturningUpdate[tuple[int]]:
    earlier = or_(C.last_used_at.is_(None), C.last_used_at < now)
    used_at = literal(now, C.last_used_at.type)
    return (
        update(MODELS)
        .where(C.id == key.model_id.scalar_subquery())
        .values(
            use_count=one_more(C.use_count, count),
            last_used_at=case((earlier, used_at), else_=C.last_used_at),
        )
        .returning(C.id)
    )
