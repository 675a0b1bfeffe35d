"""Count uses of models; concurrent calls are written as one UPDATE for each model."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Final, NamedTuple
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, case, literal, or_, update
from sqlalchemy.sql.dml import ReturningUpdate

from model_catalog.concurrency.batching import Coalescer
from model_catalog.concurrency.ownership import running_loop
from model_catalog.domain import validation
from model_catalog.domain.validation import utc_now
from model_catalog.execution.executor import Executor, Operation, write
from model_catalog.repository.operations.lookup import LookupKey
from model_catalog.repository.statements.filters import MODELS, model_columns
from model_catalog.repository.statements.models import saturating_add


class UseCounts(NamedTuple):
    """The number of uses of each model, and the time of the last one."""

    counts: Mapping[LookupKey, int]
    used_at: datetime


class UseRecorder:
    """Records uses of models: calls that are made at the same time share one transaction."""

    def __init__(self, executor: Executor) -> None:
        self._executor: Final = executor
        # A coalescer belongs to one event loop, and a host's sessions may be used in more than one.
        self._coalescers: WeakKeyDictionary[
            asyncio.AbstractEventLoop, Coalescer[tuple[LookupKey, int], bool]
        ] = WeakKeyDictionary()

    async def record(self, key: LookupKey, count: int) -> None:
        """Add a number of uses to a model. Raises ModelNotFoundError and InvalidModelError."""
        self._executor.forbid_nested_write()
        use = (key, validation.count("count", count))
        loop = running_loop()
        coalescer = self._coalescers.get(loop)
        if coalescer is None:
            coalescer = self._coalescers[loop] = Coalescer(partial(_record_many, self._executor))
        if not await coalescer.submit(use, self._executor.timeout_s):
            raise key.not_found()


async def _record_many(
    executor: Executor, uses: Sequence[tuple[LookupKey, int]], timeout_s: float
) -> list[bool]:
    """Record the uses of a batch; return for each whether its model exists."""
    counts: Counter[LookupKey] = Counter()
    for key, count in uses:
        counts[key] += count
    known = await executor.run(add_uses(UseCounts(counts, utc_now()), timeout_s))
    return [known[key] for key, _ in uses]


def add_uses(value: UseCounts, timeout_s: float) -> Operation[UseCounts, dict[LookupKey, bool]]:
    """Return the operation that adds uses to models."""
    return write(update_use_counts, value, timeout_s=timeout_s)


def update_use_counts(connection: Connection, value: UseCounts) -> dict[LookupKey, bool]:
    """Add uses to models; return for each key whether its model exists."""
    # All processes lock the rows in the same order, which prevents deadlocks.
    keys = sorted(value.counts, key=lambda key: (key.provider, key.reference, key.version or ""))
    return {
        key: connection.scalar(_add(key, value.counts[key], value.used_at)) is not None
        for key in keys
    }


def _add(key: LookupKey, count: int, now: datetime) -> ReturningUpdate[tuple[int]]:
    # A clock that was set back must not move `last_used_at` back.
    is_later = or_(model_columns.last_used_at.is_(None), model_columns.last_used_at < now)
    used_at = literal(now, model_columns.last_used_at.type)
    return (
        update(MODELS)
        .where(model_columns.id == key.model_id.scalar_subquery())
        .values(
            use_count=saturating_add(model_columns.use_count, count),
            last_used_at=case((is_later, used_at), else_=model_columns.last_used_at),
        )
        .returning(model_columns.id)
    )
