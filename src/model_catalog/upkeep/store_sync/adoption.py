"""How the models in another program's store get into the catalog: in place, and as its own."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Final

from model_catalog.domain.model_ref import ModelRef
from model_catalog.files.safe_open import StrPath
from model_catalog.repository.model_catalog import ModelCatalog
from model_catalog.repository.operations.store_sync_queries import AliasChanges
from model_catalog.stores.scan_result import Scan, ScanProblem, StoreName
from model_catalog.stores.store_kinds import SCANNERS
from model_catalog.upkeep.store_sync.scan_comparison import ScanChanges, StoreFinding, compare_scan
from model_catalog.upkeep.worker_threads import file_identities, run_in_thread

_BETWEEN_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class StoreSyncReport:
    """
    What the adoption of a store has recorded, or would; each in the order of the scan.

    `problems` are those of the scan, and those of recording what it found.
    """

    store: StoreName
    root: str
    new: tuple[StoreFinding, ...]
    changed: tuple[StoreFinding, ...]
    gone: tuple[StoreFinding, ...]
    unchanged: tuple[ModelRef, ...]
    problems: tuple[ScanProblem, ...]

    @property
    def model_count(self) -> int:
        """How many models the store holds, as far as they are recorded."""
        return len(self.new) + len(self.changed) + len(self.unchanged)


async def scan_store(
    catalog: ModelCatalog,
    store: StoreName,
    root: StrPath,
    *,
    on_progress: Callable[[int], object] | None = None,
) -> Scan:
    """
    Look through a store of another program, in a thread; nothing is written anywhere.

    The catalog's own database is not opened, wherever it lies. `on_progress` is told how many
    models were found so far. Raises nothing of the disk's: a root that is not there is a problem.
    """
    files = catalog.database_files
    progress = None if on_progress is None else _Ticker(on_progress)
    return await run_in_thread(
        lambda stop: SCANNERS[store](
            root, protected=file_identities(files), stop=stop, progress=progress
        )
    )


class _Ticker:
    """Hands a count from a thread to the event loop, ten times a second."""

    def __init__(self, on_progress: Callable[[int], object]) -> None:
        self._on_progress = on_progress
        self._loop = asyncio.get_running_loop()
        self._told_at = 0.0

    def __call__(self, count: int) -> None:
        now = time.monotonic()
        if now - self._told_at >= _BETWEEN_S:
            self._told_at = now
            # A loop that is closed has nobody left who would want to know.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._on_progress, count)


async def adopt(catalog: ModelCatalog, scan: Scan, *, dry_run: bool = False) -> StoreSyncReport:
    """
    Record what a scan has found, where it lies: nothing is copied, moved, linked or hashed.

    Each model belongs to its store from then on, and nobody is offered to delete it. What was in
    the store and is no more becomes missing, unless a problem of the scan hides it; no row is
    deleted, and tags, notes, pins and uses stay. The refs of a store become aliases, and move as
    they do; an alias that the user has set stays, and is a problem. A file that has an expected
    digest and was touched makes its model `changed`, until a verification has read it.

    Of two models of one name the second is called by the path of its store as well; one that is
    where it was recorded no more, and is found in another place, is recorded there.

    All of it is one transaction, after one read; where nothing differs nothing is written. With
    `dry_run` the same is returned, and nothing is written.
    """
    names = dict.fromkeys((found.provider, found.reference) for found in scan.found)
    stored = await catalog.stored(scan.store, scan.root, names)
    made = await run_in_thread(partial(compare_scan, scan, stored))
    if not dry_run and not made.is_empty:
        await _record(catalog, scan, made)
    return StoreSyncReport(
        scan.store,
        scan.root,
        tuple(made.new),
        tuple(made.changed),
        tuple(made.gone),
        tuple(made.unchanged),
        tuple(made.problems),
    )


async def _record(catalog: ModelCatalog, scan: Scan, made: ScanChanges) -> None:
    pointers = AliasChanges(scan.store, made.moved, made.removed)
    async with catalog.transaction() as inner:
        lost = await inner.store_adoption(made.adoptees.values(), pointers)
        await inner.store_checks(made.looks, datetime.now(UTC).replace(microsecond=0))
    for sightings in (made.new, made.changed):
        for sighting in [each for each in sightings if each.key in lost]:
            sightings.remove(sighting)
            made.problems.append(
                ScanProblem(
                    sighting.local_path, "it was recorded or forgotten meanwhile: scan again"
                )
            )
