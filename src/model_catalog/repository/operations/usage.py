"""How often and when a model was used: counted without loss, in few transactions."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, case, literal, or_, update
from sqlalchemy.sql.dml import ReturningUpdate

from model_catalog.concurrency.batching import Coalescer
from model_catalog.domain import validation
from model_catalog.errors import ModelNotFoundError
from model_catalog.repository.statements.filters import MODELS, model_columns
from model_catalog.repository.statements.models import Key, Records, saturating_add


class Usage(Records):
    """The operation that counts uses."""

    _uses: WeakKeyDictionary[asyncio.AbstractEventLoop, Coalescer[tuple[Key, int], bool]]

    async def record_use(
        self, reference: str, provider: str, version: str | None = None, count: int = 1
    ) -> None:
        """
        Count a use of a model, and remember that it was now; return when it is stored.

        Calls that come together share a transaction, and none is lost. `last_used_at` never goes
        back, whatever the clock does. Raises ModelNotFoundError and InvalidModelError.
        """
        key = Key.of(reference, provider, version)
        self._work.forbid_nested_write()
        use = (key, validation.count("count", count))
        loop = asyncio.get_running_loop()
        together = self._uses.get(loop)
        if together is None:
            together = self._uses[loop] = Coalescer(self._record_uses)
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
    earlier = or_(model_columns.last_used_at.is_(None), model_columns.last_used_at < now)
    used_at = literal(now, model_columns.last_used_at.type)
    return (
        update(MODELS)
        .where(model_columns.id == key.model_id.scalar_subquery())
        .values(
            use_count=saturating_add(model_columns.use_count, count),
            last_used_at=case((earlier, used_at), else_=model_columns.last_used_at),
        )
        .returning(model_columns.id)
    )
