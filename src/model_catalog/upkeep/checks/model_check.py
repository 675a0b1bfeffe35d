"""Check the catalog against the disk by the status of files: which are missing or changed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from os import PathLike, fspath
from typing import Any, Final, TypeAlias, Unpack

from model_catalog.domain.file_record import FileState
from model_catalog.domain.model_ref import ModelRef
from model_catalog.errors import TooManyMissingError
from model_catalog.repository.model_catalog import ModelCatalog
from model_catalog.repository.statements.filters import Filters
from model_catalog.upkeep.checks.file_status import MountCache, check_statuses, is_mass_loss
from model_catalog.upkeep.queries.check_queries import (
    CheckResult,
    load_check_rows,
    refs_by_id,
    save_check_results,
)
from model_catalog.upkeep.worker_threads import run_in_thread

BATCH_SIZE: Final = 8000
"""Rows of files in a batch. The event loop builds the rows, so a larger batch would block it."""


@dataclass(frozen=True, slots=True)
class CheckFinding:
    """A model that differs from the catalog, or whose state has changed since the last check."""

    ref: ModelRef
    local_path: str
    before: FileState
    """The state that was recorded before this check."""
    state: FileState
    detail: str | None
    is_damaged: bool
    is_new: bool = True
    """Whether the state or its reason differs from what was recorded before this check."""

    @property
    def is_as_recorded(self) -> bool:
        """Whether the files match the catalog, so that only the change of state is reported."""
        return self.state.is_as_recorded and not self.is_damaged


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The result of a check: the number of models in each state, and the findings."""

    counts: Mapping[FileState, int]
    findings: tuple[CheckFinding, ...]
    """Models that differ from the catalog or whose state has changed, sorted by id."""

    @property
    def model_count(self) -> int:
        """The number of models that were checked."""
        return sum(self.counts.values())

    @property
    def is_as_recorded(self) -> bool:
        """Whether every checked model matches the catalog."""
        return all(finding.is_as_recorded for finding in self.findings)


async def check_models(
    catalog: ModelCatalog,
    *,
    roots: Iterable[str | PathLike[str]] = (),
    force: bool = False,
    **filters: Unpack[Filters],
) -> CheckReport:
    """
    Check whether the files of all models, or of the filtered models, match the catalog.

    Reads only the status of the files, in a thread, and opens no file. Records the states batch by
    batch: `present`, `missing` (with the time), `changed`, `unreadable` or `offline`. A model is
    `offline` if the disk it was last seen on is not mounted. It is also `offline` if the folder in
    `roots` that contains it does not exist, cannot be listed, or is empty. A model that exists
    again becomes `present`. No row is deleted, and no digest is changed.

    Raises TooManyMissingError if more than ten models, and more than half of the models below one
    root or mount point, would become `missing` at once. Those are then not recorded as missing.
    `force` turns this protection off.
    """
    mounts = MountCache(fspath(root) for root in roots)
    now = datetime.now(UTC).replace(microsecond=0)
    counts: Counter[FileState] = Counter()
    reported: list[CheckResult] = []
    group_sizes: Counter[str] = Counter()
    newly_missing: dict[str, list[CheckResult]] = {}
    last_id: int | None = None
    async with _background_writes() as write_in_background:
        while rows := await load_check_rows(catalog, last_id, BATCH_SIZE, **filters):
            last_id = rows[-1][0]
            summary = await run_in_thread(partial(check_statuses, rows, mounts))
            group_sizes += summary.group_sizes
            counts[FileState.PRESENT] += len(summary.present_ids)
            counts.update(result.state for result in summary.results)
            reported += filter(_is_reported, summary.results)
            to_store = []
            for result, group in zip(summary.results, summary.groups, strict=True):
                if result.state is FileState.MISSING and result.is_changed:
                    newly_missing.setdefault(group, []).append(result)
                else:
                    to_store.append(result)
            await write_in_background(
                partial(save_check_results, catalog, to_store, now, summary.present_ids)
            )
    await _store_missing(catalog, newly_missing, group_sizes, now, force=force)
    refs = await refs_by_id(catalog, [result.model.id for result in reported])
    findings = (_finding(result, refs) for result in reported if result.model.id in refs)
    return CheckReport({state: count for state, count in counts.items() if count}, tuple(findings))


async def _store_missing(
    catalog: ModelCatalog,
    newly_missing: Mapping[str, Sequence[CheckResult]],
    group_sizes: Mapping[str, int],
    now: datetime,
    *,
    force: bool,
) -> None:
    """Record missing models group by group. Raises TooManyMissingError for a suspicious group."""
    suspicious = [
        group
        for group, results in newly_missing.items()
        if not force and is_mass_loss(_count_newly_missing(results), group_sizes[group])
    ]
    for group, results in newly_missing.items():
        if group not in suspicious:
            for start in range(0, len(results), BATCH_SIZE):
                await save_check_results(catalog, results[start : start + BATCH_SIZE], now)
    if suspicious:
        first = suspicious[0]
        missing_count = _count_newly_missing(newly_missing[first])
        raise TooManyMissingError(first, missing_count, group_sizes[first])


_Write: TypeAlias = Callable[[], Coroutine[Any, Any, None]]


@asynccontextmanager
async def _background_writes() -> AsyncIterator[Callable[[_Write], Awaitable[None]]]:
    """
    Write each batch while the next one is checked; the last write ends with the block.

    At most one write runs at a time: a new one waits for the one before it.
    """
    # During a write this process only waits for the database, so it can check the next batch.
    running: asyncio.Task[None] | None = None

    async def write_in_background(write: _Write) -> None:
        nonlocal running
        if running is not None:
            await running
        running = asyncio.create_task(write())

    try:
        yield write_in_background
        if running is not None:
            await running
    finally:
        if running is not None:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


def _count_newly_missing(results: Iterable[CheckResult]) -> int:
    """Return how many of the models were not missing before."""
    return sum(result.model.state is not FileState.MISSING for result in results)


# A change from UNCHECKED to PRESENT is not reported: it is the first check of an unchanged model.
_UNREPORTED_BEFORE: Final = {FileState.UNCHECKED, FileState.PRESENT}


def _is_reported(result: CheckResult) -> bool:
    before = result.model
    return (
        result.state is not FileState.PRESENT
        or before.is_damaged
        or before.state not in _UNREPORTED_BEFORE
    )


def _finding(result: CheckResult, refs: Mapping[int, ModelRef]) -> CheckFinding:
    before = result.model
    detail = result.detail
    if before.is_damaged and detail is None:
        detail = "its content did not match the recorded digest when it was last read"
    return CheckFinding(
        refs[before.id],
        before.local_path,
        before.state,
        result.state,
        detail,
        before.is_damaged,
        is_new=(result.state, result.detail) != (before.state, before.state_detail),
    )
