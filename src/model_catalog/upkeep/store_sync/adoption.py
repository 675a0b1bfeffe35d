"""Scan the store of another program, and record its models in the catalog."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from model_catalog.concurrency.threads import CountReporter
from model_catalog.domain.model_ref import ModelRef
from model_catalog.errors import TooManyMissingError
from model_catalog.files.completeness.evidence import Completeness
from model_catalog.files.safe_open import StrPath
from model_catalog.repository.model_catalog import ModelCatalog, find_database_files
from model_catalog.stores.scan_result import FoundModel, Scan, ScanProblem, StoreName
from model_catalog.upkeep.queries.check_queries import save_check_results
from model_catalog.upkeep.queries.store_sync_queries import (
    PLAIN_FOLDER,
    AliasChanges,
    StoreRows,
    load_store_rows,
    save_store_sync,
)
from model_catalog.upkeep.store_sync.header_claims import read_header_claims
from model_catalog.upkeep.store_sync.scan_changes import ScanChanges, StoreFinding
from model_catalog.upkeep.store_sync.scan_comparison import compare_scan
from model_catalog.upkeep.worker_threads import (
    Stop,
    file_identities,
    run_in_thread,
)


@dataclass(frozen=True, slots=True)
class StoreSyncReport:
    """
    The changes that `adopt` has recorded, or would record in a dry run.

    New, changed and unchanged models are in the order of the scan. `problems` are those of the scan
    and those of recording its models, sorted by path.
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
        """The number of models in the store that are recorded."""
        return len(self.new) + len(self.changed) + len(self.unchanged)


async def scan_store(
    catalog: ModelCatalog,
    store: StoreName,
    root: StrPath,
    *,
    scope: str | None = None,
    follow_links: bool = True,
    on_progress: Callable[[int], object] | None = None,
) -> Scan:
    """
    Scan another program's model store in a thread. Nothing is written.

    Never opens the catalog's own database, even if it is in the store. Calls `on_progress` in the
    event loop with the number of models found so far. Raises no OSError: a root that does not exist
    is a problem in the result.

    `root` may also be a folder above a store, or one repository of a Hugging Face cache, as
    `locate_store` describes. A scan of one repository says nothing about the others: `Scan.scope`
    is its folder. With `scope`, a path below the root, the result has only the models below it.

    Links out of the store are followed if this user or root owns them and the file that they lead
    to. Links to folders are followed only where the program keeps a part of its store. Without
    `follow_links`, both are refused and reported as problems.
    """
    database_files = await find_database_files(catalog)
    progress = None if on_progress is None else CountReporter(on_progress)

    def scan(stop: Stop) -> Scan:
        # The readers of all stores take 1 MiB of memory: only a process that scans imports them.
        from model_catalog.stores.store_kinds import SCANNERS, locate_store  # noqa: PLC0415

        path = root
        # An error: the folder cannot be listed, which the scan reports as a problem.
        with contextlib.suppress(OSError, ValueError):
            path = locate_store(root, store).path
        found = SCANNERS[store](
            path,
            protected=file_identities(database_files),
            stop=stop,
            progress=progress,
            follow_links=follow_links,
        )
        return found if scope is None else found.restrict(os.path.join(found.root, scope))

    return await run_in_thread(scan)


async def adopt(
    catalog: ModelCatalog,
    scan: Scan,
    *,
    dry_run: bool = False,
    force: bool = False,
    headers: bool = True,
    on_progress: Callable[[int], object] | None = None,
) -> StoreSyncReport:
    """
    Record the models that a scan has found, in place. No file is copied, moved, linked or hashed.

    Each model belongs to its store from then on. The catalog never offers to delete it, unless the
    catalog has downloaded it: `managed_root` stays while the model is in that folder. A model
    that the user has registered stays the user's own: it keeps its list of files, and has no
    store. A model that has left the store becomes `missing`, unless a problem of the scan may hide
    it. No row is deleted; tags, notes, pins and use counts stay. The refs of a store become
    aliases, and follow them when they move. An alias that the user has set stays, and is reported
    as a problem. If a file with an expected digest was touched, its model is `changed` until a
    verification reads it.

    If two models have the same name, the reference of the second one gets the path of its store as
    a prefix. A model that is no longer at its recorded path, but is found at another one, gets the
    new path. A model that an earlier scan of this folder has recorded as one of a plain folder gets
    the name that it has in the store, and keeps its row.

    The headers of a model are read, with the limits of `read_header`, and not again while its files
    have the same fingerprints. With `headers=False` no file is opened.

    Raises TooManyMissingError if the files of more than ten models, and of more than half of the
    models of the store, do not exist any more. Those models are then left as they are, and all
    other changes are recorded. `force` turns this protection off.

    Reads the catalog once, then writes everything in one transaction. Without differences nothing
    is written. With `dry_run` the result is the same, and nothing is written. Calls `on_progress`
    in the event loop, at most ten times a second, with the number of models of the scan that were
    compared with the catalog, and whose headers were read.
    """
    changes = await plan_adoption(catalog, scan, headers=headers, on_progress=on_progress)
    is_mass_loss = changes.is_mass_loss and not force
    if is_mass_loss:
        lost_count, model_count = len(changes.lost), changes.present_count
        changes = changes.without_lost()
    if not dry_run:
        await save_adoption(catalog, scan, changes)
    if is_mass_loss:
        raise TooManyMissingError(scan.root, lost_count, model_count)
    return StoreSyncReport(
        scan.store,
        scan.root,
        tuple(changes.new),
        tuple(changes.changed),
        tuple(changes.gone),
        tuple(changes.unchanged),
        tuple(changes.problems),
    )


async def plan_adoption(
    catalog: ModelCatalog,
    scan: Scan,
    *,
    headers: bool = True,
    on_progress: Callable[[int], object] | None = None,
) -> ScanChanges:
    """
    Compare a scan with the catalog, read headers, and return the changes. Nothing is written.

    `adopt` is this and `save_adoption`, which can be a part of a larger transaction.
    """
    names = dict.fromkeys((found.provider, found.reference) for found in scan.found)
    plain_roots = await run_in_thread(lambda _: _plain_roots(scan))
    rows = await load_store_rows(catalog, scan.store, scan.root, names, plain_roots)
    progress = None if on_progress is None else CountReporter(on_progress)
    return await _compare(catalog, scan, rows, headers=headers, progress=progress)


def _plain_roots(scan: Scan) -> list[str]:
    """Return the folders whose scan finds this store, and may have found a plain folder before."""
    from model_catalog.stores.store_kinds import locate_store  # noqa: PLC0415 - see scan_store

    if scan.store == PLAIN_FOLDER:
        return []
    parent = os.path.dirname(scan.root)
    try:
        location = locate_store(parent, scan.store)
    except (OSError, ValueError):
        return [scan.root]
    leads_here = location.store == scan.store and location.path == scan.root
    return [scan.root, parent] if leads_here else [scan.root]


async def _compare(
    catalog: ModelCatalog,
    scan: Scan,
    rows: StoreRows,
    *,
    headers: bool,
    progress: CountReporter | None,
) -> ScanChanges:
    """Compare a scan with the catalog in a thread, which also reads the headers."""
    database_files = await find_database_files(catalog)

    def compare(stop: Stop) -> ScanChanges:
        protected = file_identities(database_files)

        def read_headers(
            found: FoundModel,
        ) -> tuple[dict[str, Any], Completeness, FoundModel]:
            return read_header_claims(found, stop, protected)

        reader = read_headers if headers else None
        return compare_scan(scan, rows, stop, read_headers=reader, progress=progress)

    return await run_in_thread(compare)


async def save_adoption(catalog: ModelCatalog, scan: Scan, changes: ScanChanges) -> None:
    """
    Write the changes of a scan, all or none. Accesses no file.

    A model that another task has registered or removed since the comparison is not written. It
    becomes a problem in `changes`.
    """
    if changes.is_empty:
        return
    aliases = AliasChanges(scan.store, changes.alias_targets, changes.removed_aliases)
    now = datetime.now(UTC).replace(microsecond=0)
    async with catalog.transaction() as inner:
        not_stored = await save_store_sync(inner, changes.models_to_store.values(), aliases)
        await save_check_results(inner, changes.check_results, now)
    for findings in (changes.new, changes.changed):
        for finding in [each for each in findings if each.key in not_stored]:
            findings.remove(finding)
            reason = "the model was registered or removed during the scan; scan again"
            changes.problems.append(ScanProblem(finding.local_path, reason))
