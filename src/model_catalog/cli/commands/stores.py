"""The commands that look at what other programs keep on this machine."""

from __future__ import annotations

import os
import tempfile
from argparse import Namespace
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from model_catalog.cli.catalog_access import DONE, FAILED, existing_catalog, short_ref
from model_catalog.cli.output import (
    ProgressBar,
    human_size,
    pluralize,
    print_error,
    print_json,
    print_line,
    print_notice,
    print_table,
    print_tsv,
)
from model_catalog.connection.target import resolve_target
from model_catalog.files.safe_open import errno_name
from model_catalog.opening import open_catalog
from model_catalog.repository.model_catalog import ModelCatalog
from model_catalog.stores.scan_result import Scan, StoreName
from model_catalog.stores.store_kinds import detect_store
from model_catalog.stores.store_roots import default_roots
from model_catalog.upkeep import (
    DuplicateSet,
    StoreFinding,
    StoreSyncReport,
    adopt,
    find_duplicates,
    scan_store,
)

_OWN: Final = "yours"
"""What stands where a model is in no store."""


async def scan(options: Namespace) -> int:
    roots = _roots(options.paths)
    if roots is None:
        return FAILED
    scans: list[Scan] = []
    done: list[StoreSyncReport] = []
    async with _catalog(options) as catalog:
        with ProgressBar() as bar:
            for store, root in roots:
                found = await scan_store(
                    catalog,
                    store,
                    root,
                    on_progress=lambda count, store=store: bar.count(  # type: ignore[misc]
                        f"{store}: {pluralize(count, 'model')}"
                    ),
                )
                scans.append(found)
                done.append(await adopt(catalog, found, dry_run=options.dry_run))
    rows = [row for each in done for row in _rows(each)]
    if options.format == "json":
        print_json(
            {
                "dry_run": options.dry_run,
                "size_bytes": _size_bytes(scans),
                "stores": [_facts(each) for each in done],
            }
        )
    elif options.format == "tsv":
        print_tsv(_FIELDS, rows)
    elif options.format == "quiet":
        for each in done:
            for sighting in (*each.new, *each.changed, *each.gone):
                print_line(str(sighting.ref))
    else:
        _print_changes(rows)
    _tell_totals(done, scans, dry_run=options.dry_run)
    return DONE


def _roots(paths: Sequence[str]) -> list[tuple[StoreName, str]] | None:
    """What is to be scanned; None, and a word about it, where a path is no folder."""
    known = default_roots()
    if not paths:
        return [(root.store, root.path) for root in known if os.path.lexists(root.path)]
    by_path = {os.path.realpath(root.path): root.store for root in known}
    found: list[tuple[StoreName, str]] = []
    for path in paths:
        try:
            store = by_path.get(os.path.realpath(path)) or detect_store(path)
        except (OSError, ValueError) as error:
            why = errno_name(error) if isinstance(error, OSError) else str(error)
            print_error(f"error: {path!r} is no folder that can be scanned: {why}")
            return None
        found.append((store, path))
    return found


@asynccontextmanager
async def _catalog(options: Namespace) -> AsyncIterator[ModelCatalog]:
    """The catalog; for a dry run on a machine that has none, one that is gone afterwards."""
    place = resolve_target(options.db)
    if not options.dry_run:
        async with open_catalog(options.db) as catalog:
            yield catalog
    elif place.is_default and place.path is not None and not place.path.exists():
        with tempfile.TemporaryDirectory(prefix="model-catalog-") as folder:
            async with open_catalog(Path(folder) / "catalog.db") as catalog:
                yield catalog
    else:
        async with open_catalog(options.db, create=False) as catalog:
            yield catalog


_FIELDS: Final = ("store", "what", "model", "path", "size_bytes", "detail")


def _rows(done: StoreSyncReport) -> Iterator[tuple[str, str, str, str, int | None, str]]:
    for what, sightings in (("new", done.new), ("changed", done.changed), ("gone", done.gone)):
        for each in sightings:
            model = short_ref(each.ref)
            yield done.store, what, model, each.local_path, each.size_bytes, each.detail
    for problem in done.problems:
        yield done.store, "problem", "", problem.path, None, problem.reason


def _print_changes(rows: Sequence[tuple[str, str, str, str, int | None, str]]) -> None:
    if rows:
        cells = [
            [store, what, model or path, "" if size is None else human_size(size), detail]
            for store, what, model, path, size, detail in rows
        ]
        print_table(
            ["STORE", "WHAT", "MODEL", "SIZE", "DETAIL"],
            cells,
            right=["SIZE"],
            cut=["MODEL", "DETAIL"],
        )


def _tell_totals(done: Sequence[StoreSyncReport], scans: Sequence[Scan], *, dry_run: bool) -> None:
    for each in done:
        print_notice(f"{each.store}, {each.root}: {_counts([each])}")
    if not done:
        print_notice("no store of a known program is here: give a folder to scan")
        return
    models = sum(each.model_count for each in done)
    total = f"{pluralize(models, 'model')}, {human_size(_size_bytes(scans))} on the disk"
    print_notice(f"{total}: {_counts(done)}{'; nothing was written' if dry_run else ''}")


def _counts(done: Sequence[StoreSyncReport]) -> str:
    counts = {
        "new": sum(len(each.new) for each in done),
        "changed": sum(len(each.changed) for each in done),
        "gone": sum(len(each.gone) for each in done),
        "unchanged": sum(len(each.unchanged) for each in done),
    }
    problems = sum(len(each.problems) for each in done)
    told = [f"{count:,} {what}" for what, count in counts.items() if count]
    if problems:
        told.append(pluralize(problems, "problem"))
    return ", ".join(told) or "no models"


def _size_bytes(scans: Sequence[Scan]) -> int:
    """Of all files that were found, each once, in however many models and stores it is."""
    sizes = {
        file.identity: file.size_bytes
        for scan in scans
        for model in scan.found
        for file in model.files
    }
    return sum(sizes.values())


def _facts(done: StoreSyncReport) -> dict[str, Any]:
    return {
        "store": done.store,
        "root": done.root,
        "new": [_told(each) for each in done.new],
        "changed": [_told(each) for each in done.changed],
        "gone": [_told(each) for each in done.gone],
        "unchanged": [str(ref) for ref in done.unchanged],
        "problems": [
            {name: value for name, value in asdict(each).items() if name in ("path", "reason")}
            for each in done.problems
        ],
    }


def _told(sighting: StoreFinding) -> dict[str, Any]:
    return {
        "model": str(sighting.ref),
        "local_path": sighting.local_path,
        "size_bytes": sighting.size_bytes,
        "detail": sighting.detail,
    }


async def dupes(options: Namespace) -> int:
    found = await existing_catalog(options, find_duplicates, tuple[DuplicateSet, ...]())
    redundant = sum(each.redundant_bytes for each in found)
    reclaimable = sum(each.reclaimable_bytes for each in found)
    fields = ("digest", "size_bytes", "copy", "store", "model", "path")
    rows = [
        (each.digest, each.size_bytes, number, place.store, str(place.ref), place.path)
        for each in found
        for number, copy in enumerate(each.copies, 1)
        for place in copy.places
    ]
    if options.format == "json":
        print_json(
            {
                "redundant_bytes": redundant,
                "reclaimable_bytes": reclaimable,
                "duplicates": [
                    {
                        **asdict(each),
                        "copies": [
                            {
                                "is_reclaimable": copy.is_reclaimable,
                                "unknown_links": copy.unknown_links,
                                "places": [
                                    {**asdict(place), "ref": str(place.ref)}
                                    for place in copy.places
                                ],
                            }
                            for copy in each.copies
                        ],
                        "redundant_bytes": each.redundant_bytes,
                        "reclaimable_bytes": each.reclaimable_bytes,
                    }
                    for each in found
                ],
            }
        )
    elif options.format == "tsv":
        print_tsv(fields, rows)
    elif options.format == "quiet":
        print_line(str(reclaimable))
    else:
        if found:
            print_table(
                ["SIZE", "STORE", "MODEL", "PATH"],
                [row for each in found for row in _lines(each)],
                right=["SIZE"],
                cut=["PATH", "MODEL"],
            )
        print_notice(
            f"{pluralize(len(found), 'file')} with copies: {human_size(redundant)} beside one of "
            f"each, {human_size(reclaimable)} of it in no store and yours to remove"
        )
    return DONE


def _lines(duplicate: DuplicateSet) -> Iterator[list[str]]:
    size = human_size(duplicate.size_bytes)
    for copy in duplicate.copies:
        # Of several names of one file the first tells of them all.
        place = copy.places[0]
        owners = sorted({each.store or _OWN for each in copy.places})
        more = f" and {len(copy.places) - 1} more" if copy.places[1:] else ""
        yield [size, ", ".join(owners), short_ref(place.ref) + more, place.path]
        size = ""
