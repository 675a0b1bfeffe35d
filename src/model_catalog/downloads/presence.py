"""Whether the files of a model are there: a look at the disk that is not repeated at once."""

from __future__ import annotations

import time
from typing import Final

from model_catalog.mapping.tables import Model
from model_catalog.repository.model_catalog import ModelCatalog
from model_catalog.upkeep.checks.file_status import MountCache, check_statuses
from model_catalog.upkeep.queries.check_queries import load_check_rows_of
from model_catalog.upkeep.worker_threads import run_in_thread

MAX_AGE_S: Final = 5.0
"""A model that is asked for again within this time is not looked at again."""
_MAX_MODELS: Final = 10_000


class PresenceCache:
    """Remembers when the files of models were last seen."""

    def __init__(self) -> None:
        self._seen_at: dict[tuple[int, str], float] = {}

    def is_known(self, model: Model) -> bool:
        """Return whether a model is as recorded, and its files were seen a short time ago."""
        if not model.state.is_as_recorded:
            return False
        seen_at = self._seen_at.get((model.id, model.local_path))
        return seen_at is not None and time.monotonic() - seen_at < MAX_AGE_S

    async def look(self, catalog: ModelCatalog, model: Model) -> bool:
        """
        Look in a thread whether the files of a model are there and unchanged, as `check` does.

        Nothing is recorded, and no file is opened.
        """
        rows = await load_check_rows_of(catalog, model.id)
        if not rows:
            return False
        summary = await run_in_thread(lambda stop: check_statuses(rows, MountCache(), stop))
        if not all(result.state.is_as_recorded for result in summary.results):
            return False
        self.remember(model)
        return True

    def remember(self, model: Model) -> None:
        """Remember that the files of a model are there."""
        if len(self._seen_at) >= _MAX_MODELS:
            self._seen_at.clear()
        self._seen_at[model.id, model.local_path] = time.monotonic()
