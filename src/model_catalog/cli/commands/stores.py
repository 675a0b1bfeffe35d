"""Commands for other programs' model stores: `scan` and `dupes`."""

from __future__ import annotations

import os
import tempfile
from argparse import Namespace
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from model_catalog.cli.catalog_access import open_named, short_ref, use_existing_catalog
from model_catalog.cli.exit_codes import DONE, FAILED, NOT_AS_RECORDED
from model_catalog.cli.output import (
    human_disk_usage,
    human_size,
    pluralize,
    print_error,
    print_json,
    print_line,
    print_notice,
    print_table,
    print_tsv,
)
from model_catalog.cli.output.named_commands import completed_command
from model_catalog.cli.output.progress import ProgressBar
from model_catalog.connection.target import resolve_target
from model_catalog.errors import TooManyMissingError
from model_catalog.files.completeness.judge import shorten_list
from model_catalog.opening import open_catalog
from model_catalog.repository.model_catalog import ModelCatalog
from model_catalog.stores.scan_result import LeftoverFile, Scan, StoreName, disk_usage
from model_catalog.stores.scanners.hub_repositories import split_repository
from model_catalog.stores.store_kinds import locate_store
from model_catalog.stores.store_roots import StoreRoot, default_roots
from model_catalog.upkeep import (
    DuplicateSet,
    StoreFinding,
    StoreSyncReport,
    adopt,
    find_duplicates,
    scan_store,
)

_NO_STORE: Final = "yours"
"""The owner that a table shows for a model that is not in a store."""

_STORES_OF_FOLDERS: Final = ("lmstudio", "ramalama", "modelscope", "kagglehub")
"""The stores with a folder for each model, by whose name it cannot be recognized."""

_LEFTOVER_TEXTS: Final = {
    "partial": "an unfinished download",
    "piece": "a piece of a file, which can be loaded after all pieces were joined",
    "orphan": "no model of the store refers to it",
}

_ScanRow: TypeAlias = tuple[str, str, str, str, int | None, str]
"""The values of `_SCAN_FIELDS`."""
_SCAN_FIELDS: Final = ("store", "what", "model", "path", "size_bytes", "detail")
_DUPLICATE_FIELDS: Final = ("digest", "size_bytes", "copy", "store", "model", "path")


async def scan(options: Namespace) -> int:
    """Scan stores, and record their models."""
    places = _places(options.paths)
    if places is None:
        return FAILED
    scans: list[Scan] = []
    reports: list[StoreSyncReport] = []
    suspicious: list[TooManyMissingError] = []
    async with _open_catalog(options) as catalog:
        with ProgressBar() as bar:
            for place in places:
                found = await scan_store(
                    catalog,
                    place.store,
                    place.path,
                    scope=place.scope,
                    follow_links=options.follow_links,
                    on_progress=lambda count, store=place.store: bar.show_count(  # type: ignore[misc]
                        count, None, f"models found in {store}"
                    ),
                )
                try:
                    report = await adopt(
                        catalog,
                        found,
                        dry_run=options.dry_run,
                        force=options.force,
                        headers=options.headers,
                        on_progress=lambda count, found=found: bar.show_count(  # type: ignore[misc]
                            count, len(found.found), f"models compared in {found.store}"
                        ),
                    )
                except TooManyMissingError as error:
                    suspicious.append(error)
                    continue
                scans.append(found)
                reports.append(report)
    rows = [
        row
        for report, found in zip(reports, scans, strict=True)
        for row in _scan_rows(report, found)
    ]
    if options.format == "json":
        stores = [_report_json(report, found) for report, found in zip(reports, scans, strict=True)]
        sizes = {"size_bytes": _total_bytes(scans), "disk_bytes": disk_usage(scans)}
        print_json({"dry_run": options.dry_run, **sizes, "stores": stores})
    elif options.format == "tsv":
        print_tsv(_SCAN_FIELDS, rows)
    elif options.format == "quiet":
        for report in reports:
            for finding in (*report.new, *report.changed, *report.gone):
                print_line(str(finding.ref))
    else:
        _print_scan_table(rows)
    if reports:
        _print_scan_totals(reports, scans, dry_run=options.dry_run)
    _print_without_report(places, suspicious, options)
    return NOT_AS_RECORDED if suspicious else DONE


@dataclass(frozen=True, slots=True)
class _Place:
    """A store to scan; with `scope`, only this folder below its root."""

    store: StoreName
    path: str
    scope: str | None = None


def _places(paths: Sequence[str]) -> list[_Place] | None:
    """
    Return the stores to scan: those at `paths`, or without paths the default stores that exist.

    Prints an error and returns None if a path is not a folder that can be scanned.
    """
    roots = default_roots()
    if not paths:
        return [_Place(root.store, root.path) for root in roots if os.path.lexists(root.path)]
    places = []
    for path in paths:
        try:
            places.append(_locate(path, roots))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            print_error(f"error: {path!r} is not a folder that can be scanned: {reason}")
            return None
    return places


def _locate(path: str, roots: Sequence[StoreRoot]) -> _Place:
    """Return the store at a path, which may be a default root, or a folder in one."""
    kinds = {os.path.realpath(root.path): root.store for root in roots}
    if (store := kinds.get(os.path.realpath(path))) is not None:
        return _Place(store, path)
    location = locate_store(path)
    # A repository may be one of the cache of llama.cpp.
    cache, repository = split_repository(location.path)
    if repository is None and (place := _locate_in_roots(path, roots)) is not None:
        return place
    return _Place(kinds.get(os.path.realpath(cache), location.store), location.path)


def _locate_in_roots(path: str, roots: Sequence[StoreRoot]) -> _Place | None:
    """Return the default store, with a folder for each model, that has a path below its root."""
    full = os.path.abspath(path)  # noqa: PTH100 - a repository may be a link
    for root in roots:
        if root.store in _STORES_OF_FOLDERS:
            for folder in (root.path, os.path.realpath(root.path)):
                if full.startswith(f"{folder}/"):
                    return _Place(root.store, root.path, full[len(folder) + 1 :])
    return None


@asynccontextmanager
async def _open_catalog(options: Namespace) -> AsyncIterator[ModelCatalog]:
    """Open the catalog. A dry run without an existing catalog gets a temporary one."""
    location = resolve_target(options.db)
    if not options.dry_run:
        async with open_named(options) as catalog:
            yield catalog
    elif location.is_default and location.path is not None and not location.path.exists():
        with tempfile.TemporaryDirectory(prefix="model-catalog-") as folder:
            async with open_catalog(Path(folder) / "catalog.db") as catalog:
                yield catalog
    else:
        async with open_named(options, create=False) as catalog:
            yield catalog


def _scan_rows(report: StoreSyncReport, found: Scan) -> Iterator[_ScanRow]:
    for change, findings in (
        ("new", report.new),
        ("changed", report.changed),
        ("gone", report.gone),
    ):
        for finding in findings:
            model = short_ref(finding.ref)
            path, size_bytes = finding.local_path, finding.size_bytes
            yield report.store, change, model, path, size_bytes, finding.detail
    for problem in report.problems:
        yield report.store, "problem", "", problem.path, None, problem.reason
    for leftover in found.leftovers:
        detail = _LEFTOVER_TEXTS[leftover.kind]
        yield report.store, "leftover", "", leftover.path, leftover.disk_bytes, detail


def _print_scan_table(rows: Sequence[_ScanRow]) -> None:
    if rows:
        cells = [
            [store, change, model or path, "" if size is None else human_size(size), detail]
            for store, change, model, path, size, detail in rows
        ]
        print_table(
            ["STORE", "WHAT", "MODEL", "SIZE", "DETAIL"],
            cells,
            right=["SIZE"],
            cut=["MODEL", "DETAIL"],
        )


def _print_leftovers(leftovers: Sequence[LeftoverFile]) -> None:
    for are_pieces, noun, meaning in (
        (False, "leftover file", "no model of the store needs them"),
        (True, "piece of a file", "they can be loaded after all pieces were joined"),
    ):
        counted = [each for each in leftovers if (each.kind == "piece") is are_pieces]
        if counted:
            files = pluralize(len(counted), noun, "pieces of files" if are_pieces else None)
            size = human_size(sum(each.disk_bytes for each in counted))
            print_notice(f"{files}, {size}: {meaning}")


def _print_scan_totals(
    reports: Sequence[StoreSyncReport], scans: Sequence[Scan], *, dry_run: bool
) -> None:
    for report, found in zip(reports, scans, strict=True):
        print_notice(f"{report.store}, {found.folder}: {_summarize([report])}")
        for other in found.other_repositories:
            counted = pluralize(other.count, other.kind)
            print_notice(f"{counted}, {human_size(other.disk_bytes)}: not models")
        _print_leftovers(found.leftovers)
        if (passed_over := found.passed_over).file_count:
            files = pluralize(passed_over.file_count, "file")
            size = human_size(passed_over.disk_bytes)
            print_notice(f"{files} passed over, {size}: not part of a model")
        if names := found.remote_models:
            count = pluralize(len(names), "model")
            print_notice(f"{count} in the cloud, without files here: {shorten_list(names)}")
    models = sum(report.model_count for report in reports)
    logical = sum(model.size_bytes for scan in scans for model in scan.found)
    sizes = human_disk_usage(disk_usage(scans), logical).removesuffix(" on the disk")
    total = f"{pluralize(models, 'model')}, {sizes} on the disk"
    print_notice(f"{total}: {_summarize(reports)}{'; nothing was written' if dry_run else ''}")


def _print_without_report(
    places: Sequence[_Place], suspicious: Sequence[TooManyMissingError], options: Namespace
) -> None:
    """Print why there is no report of any store, or of the stores that have lost most models."""
    if not places:
        command = completed_command(["scan", "FOLDER"], options)
        print_notice(f"no store of a known program was found: name a folder with {command}")
    for mass_loss in suspicious:
        print_error(f"error: {mass_loss}")


def _summarize(reports: Sequence[StoreSyncReport]) -> str:
    counts = {
        "new": sum(len(report.new) for report in reports),
        "changed": sum(len(report.changed) for report in reports),
        "gone": sum(len(report.gone) for report in reports),
        "unchanged": sum(len(report.unchanged) for report in reports),
    }
    problem_count = sum(len(report.problems) for report in reports)
    parts = [f"{count:,} {change}" for change, count in counts.items() if count]
    if problem_count:
        parts.append(pluralize(problem_count, "problem"))
    return ", ".join(parts) or "no models"


def _total_bytes(scans: Sequence[Scan]) -> int:
    """Return the size of all found files. A file in more than one model or store counts once."""
    sizes = {
        file.identity: file.size_bytes
        for scan in scans
        for model in scan.found
        for file in model.files
    }
    return sum(sizes.values())


def _report_json(report: StoreSyncReport, found: Scan) -> dict[str, Any]:
    return {
        "store": report.store,
        "root": report.root,
        "folder": found.folder,
        "new": [_finding_json(finding) for finding in report.new],
        "changed": [_finding_json(finding) for finding in report.changed],
        "gone": [_finding_json(finding) for finding in report.gone],
        "unchanged": [str(ref) for ref in report.unchanged],
        "problems": [
            {"path": problem.path, "reason": problem.reason} for problem in report.problems
        ],
        "disk_bytes": found.disk_bytes,
        "other_repositories": [asdict(other) for other in found.other_repositories],
        "passed_over": asdict(found.passed_over),
        "remote_models": list(found.remote_models),
        "leftovers": [
            {
                "path": leftover.path,
                "kind": leftover.kind,
                "size_bytes": leftover.size_bytes,
                "disk_bytes": leftover.disk_bytes,
            }
            for leftover in found.leftovers
        ],
    }


def _finding_json(finding: StoreFinding) -> dict[str, Any]:
    return {
        "model": str(finding.ref),
        "local_path": finding.local_path,
        "size_bytes": finding.size_bytes,
        "detail": finding.detail,
    }


async def dupes(options: Namespace) -> int:
    """List duplicate files, and the space they use."""
    found = await use_existing_catalog(options, find_duplicates, tuple[DuplicateSet, ...]())
    redundant = sum(duplicate.redundant_bytes for duplicate in found)
    reclaimable = sum(duplicate.reclaimable_bytes for duplicate in found)
    if options.format == "json":
        print_json(
            {
                "redundant_bytes": redundant,
                "reclaimable_bytes": reclaimable,
                "duplicates": [_duplicate_json(duplicate) for duplicate in found],
            }
        )
    elif options.format == "tsv":
        print_tsv(_DUPLICATE_FIELDS, _duplicate_rows(found))
    elif options.format == "quiet":
        print_line(str(reclaimable))
    else:
        if found:
            print_table(
                ["SIZE", "STORE", "MODEL", "PATH"],
                [row for duplicate in found for row in _duplicate_cells(duplicate)],
                right=["SIZE"],
                cut=["PATH", "MODEL"],
            )
        print_notice(
            f"{pluralize(len(found), 'duplicate file')}: {human_size(redundant)} redundant, "
            f"{human_size(reclaimable)} of it outside stores and yours to remove"
        )
    return DONE


def _duplicate_rows(found: Sequence[DuplicateSet]) -> Iterator[Sequence[object]]:
    for duplicate in found:
        for number, copy in enumerate(duplicate.copies, 1):
            for place in copy.places:
                size_bytes, ref = duplicate.size_bytes, str(place.ref)
                yield duplicate.digest, size_bytes, number, place.store, ref, place.path


def _duplicate_json(duplicate: DuplicateSet) -> dict[str, Any]:
    return {
        **asdict(duplicate),
        "copies": [
            {
                "is_reclaimable": copy.is_reclaimable,
                "unknown_links": copy.unknown_links,
                "places": [{**asdict(place), "ref": str(place.ref)} for place in copy.places],
            }
            for copy in duplicate.copies
        ],
        "redundant_bytes": duplicate.redundant_bytes,
        "reclaimable_bytes": duplicate.reclaimable_bytes,
    }


def _duplicate_cells(duplicate: DuplicateSet) -> Iterator[list[str]]:
    size = human_size(duplicate.size_bytes)
    for copy in duplicate.copies:
        # If a file has more than one path, only the first is shown.
        place = copy.places[0]
        owners = sorted({each.store or _NO_STORE for each in copy.places})
        more = f" and {len(copy.places) - 1} more" if copy.places[1:] else ""
        yield [size, ", ".join(owners), short_ref(place.ref) + more, place.path]
        size = ""
