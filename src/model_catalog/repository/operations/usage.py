"""Count uses of models; concurrent calls are written as one UPDATE for each model."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Final, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary, WeakValueDictionary

from sqlalchemy import Connection, Select, case, literal, or_, select, update
from sqlalchemy.sql.dml import ReturningUpdate

from model_catalog.concurrency.batching import Coalescer
from model_catalog.concurrency.ownership import running_loop
from model_catalog.connection.interruption.running import SERVER_GRACE_S
from model_catalog.domain import validation
from model_catalog.domain.validation import utc_now
from model_catalog.errors import CatalogBusyError
from model_catalog.execution.executor import OTHER_WRITER, Executor, Operation, write
from model_catalog.execution.observation.changed_rows import changes_no_model
from model_catalog.repository.operations.lookup import LookupKey
from model_catalog.repository.statements.filters import MODELS, model_columns
from model_catalog.repository.statements.models import saturating_add

_UseCoalescer: TypeAlias = Coalescer[tuple[LookupKey, int], bool | None]


class UseCounts(NamedTuple):
    """The number of uses of each model, and the time of the last one."""

    counts: Mapping[LookupKey, int]
    used_at: datetime
    skips_locked: bool = False
    """Whether models whose rows another transaction has locked are left out, on PostgreSQL."""


class UseRecorder:
    """
    Records uses of models: calls that are made at the same time share one transaction.

    On PostgreSQL the shared transaction does not wait for locked rows. The uses of a model whose
    row is locked are recorded in a transaction of their own, which waits.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor: Final = executor
        # A coalescer belongs to one event loop, and a host's sessions may be used in more than one.
        self._shared: WeakKeyDictionary[asyncio.AbstractEventLoop, _UseCoalescer] = (
            WeakKeyDictionary()
        )
        self._waiting: WeakKeyDictionary[
            asyncio.AbstractEventLoop, WeakValueDictionary[LookupKey, _UseCoalescer]
        ] = WeakKeyDictionary()

    async def record(self, key: LookupKey, count: int) -> None:
        """Add a number of uses to a model. Raises ModelNotFoundError and InvalidModelError."""
        self._executor.forbid_nested_write()
        use = (key, validation.count("count", count))
        loop = running_loop()
        start = loop.time()
        try:
            is_known = await self._submit(use, loop, start + self._executor.timeout_s)
        except CatalogBusyError as error:
            # The call may have waited in two batches.
            raise CatalogBusyError(error.target, error.reason, loop.time() - start) from error
        if not is_known:
            raise key.not_found()

    async def _submit(
        self, use: tuple[LookupKey, int], loop: asyncio.AbstractEventLoop, deadline: float
    ) -> bool | None:
        """Add a use to a batch, and return whether its model exists."""
        key, _ = use
        waiting = self._waiting.setdefault(loop, WeakValueDictionary())
        is_known = None
        coalescer = waiting.get(key)
        if coalescer is None:
            shared = self._shared.get(loop)
            if shared is None:
                shared = self._shared[loop] = self._new_coalescer(skips_locked=True)
            is_known = await shared.submit(use, self._executor.timeout_s)
        if is_known is None:
            # It is in the dictionary for as long as calls use it.
            coalescer = coalescer or waiting.get(key) or self._new_coalescer(skips_locked=False)
            waiting[key] = coalescer
            is_known = await coalescer.submit(use, deadline - loop.time())
        return is_known

    def _new_coalescer(self, *, skips_locked: bool) -> _UseCoalescer:
        return Coalescer(
            partial(_record_many, self._executor, skips_locked),
            timeout_error=partial(CatalogBusyError, self._executor.database.name, OTHER_WRITER),
            grace_s=SERVER_GRACE_S,
        )


async def _record_many(
    executor: Executor,
    skips_locked: bool,  # noqa: FBT001 - called only by a coalescer
    uses: Sequence[tuple[LookupKey, int]],
    timeout_s: float,
) -> list[bool | None]:
    """Record the uses of a batch; return what `update_use_counts` returns for the key of each."""
    counts: Counter[LookupKey] = Counter()
    for key, count in uses:
        counts[key] += count
    known = await executor.run(add_uses(UseCounts(counts, utc_now(), skips_locked), timeout_s))
    return [known[key] for key, _ in uses]


def add_uses(
    value: UseCounts, timeout_s: float
) -> Operation[UseCounts, dict[LookupKey, bool | None]]:
    """Return the operation that adds uses to models."""
    return write(update_use_counts, value, timeout_s=timeout_s)


@changes_no_model
def update_use_counts(connection: Connection, value: UseCounts) -> dict[LookupKey, bool | None]:
    """Add uses to models; return for each key whether its model exists, or None if it is locked."""
    skips_locked = value.skips_locked and connection.dialect.name != "sqlite"
    # All processes lock the rows in the same order, which prevents deadlocks.
    keys = sorted(value.counts, key=lambda key: (key.provider, key.reference, key.version or ""))
    known: dict[LookupKey, bool | None] = {}
    for key in keys:
        select_id = key.select_id(connection)
        statement = _add(select_id, value.counts[key], value.used_at, skips_locked=skips_locked)
        known[key] = connection.scalar(statement) is not None
        if skips_locked and not known[key] and connection.scalar(select_id) is not None:
            known[key] = None
    return known


def _add(
    model_id: Select[int], count: int, now: datetime, *, skips_locked: bool
) -> ReturningUpdate[tuple[int]]:
    if skips_locked:
        # Around the SELECT by key, which would otherwise skip to an older version.
        rows = MODELS.alias("unlocked").c
        model_id = (
            select(rows.id)
            .where(rows.id == model_id.scalar_subquery())
            .with_for_update(skip_locked=True, key_share=True)
        )
    # A clock that was set back must not move `last_used_at` back.
    is_later = or_(model_columns.last_used_at.is_(None), model_columns.last_used_at < now)
    used_at = literal(now, model_columns.last_used_at.type)
    return (
        update(MODELS)
        .where(model_columns.id == model_id.scalar_subquery())
        .values(
            use_count=saturating_add(model_columns.use_count, count),
            last_used_at=case((is_later, used_at), else_=model_columns.last_used_at),
        )
        .returning(model_columns.id)
    )
