"""Wait until another process has ended a download, by notifications and by polling."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Final

from model_catalog.connection.postgresql.notifications import NotificationListener
from model_catalog.downloads.queries.claim_queries import (
    CHANNEL,
    ClaimedName,
    select_key_status,
)
from model_catalog.execution.executor import Executor, read
from model_catalog.execution.observation.observed_executor import unobserved
from model_catalog.execution.postgres_executor import PostgresExecutor
from model_catalog.execution.postgresql.replica import ReplicatedExecutor
from model_catalog.repository.model_catalog import ModelCatalog, executor_of

_FIRST_POLL_S: Final = 0.05
_MAX_POLL_S: Final = 1.0
_GROWTH: Final = 1.5


async def wait_until_unclaimed(catalog: ModelCatalog, name: ClaimedName) -> None:
    """
    Return when no process has a claim that stands in the way of a download.

    Asks the database after 0.05 s, and then less and less often, up to once a second. A catalog of
    `open_catalog` on PostgreSQL is notified at once.
    """
    executor = executor_of(catalog)
    listener = _listener_of(executor)
    interval_s = _FIRST_POLL_S
    async with AsyncExitStack() as stack:
        while True:
            status = await executor.run(read(select_key_status, name))
            if status.holder is None:
                return
            if listener is None:
                await asyncio.sleep(interval_s)
            else:
                if interval_s == _FIRST_POLL_S:
                    await stack.enter_async_context(listener.listening())
                await listener.wait(interval_s)
            interval_s = min(interval_s * _GROWTH, _MAX_POLL_S)


def _listener_of(executor: Executor) -> NotificationListener | None:
    """Return what notifies this process, on an engine of our own for PostgreSQL."""
    executor = unobserved(executor)
    if isinstance(executor, PostgresExecutor | ReplicatedExecutor):
        return executor.listener(CHANNEL)
    return None
