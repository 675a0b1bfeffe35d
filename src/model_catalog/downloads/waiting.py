"""Wait until another process has ended a download, by notifications or by polling."""

from __future__ import annotations

import asyncio
from typing import Final

from model_catalog.downloads.queries.claim_queries import select_key_status
from model_catalog.execution.executor import read
from model_catalog.repository.model_catalog import ModelCatalog, executor_of
from model_catalog.repository.operations.lookup import LookupKey

_FIRST_POLL_S: Final = 0.05
_MAX_POLL_S: Final = 1.0
_GROWTH: Final = 1.5


class Waiter:
    """Waits until no other process has the claim of a name."""

    def __init__(self, catalog: ModelCatalog, key: LookupKey) -> None:
        self._executor = executor_of(catalog)
        self._key = key

    async def wait(self) -> None:
        """Return when the claim has ended or expired."""
        interval_s = _FIRST_POLL_S
        while True:
            status = await self._executor.run(read(select_key_status, self._key))
            if status.holder is None:
                return
            await asyncio.sleep(interval_s)
            interval_s = min(interval_s * _GROWTH, _MAX_POLL_S)
