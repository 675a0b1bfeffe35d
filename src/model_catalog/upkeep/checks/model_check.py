"""The catalog against the disk, by the status of files alone: what is there, and what is not."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
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
from model_catalog.repository.operations.check_queries import CheckResult
from model_catalog.repository.statements.filters import Filters
from model_catalog.upkeep.checks.file_status import MountCache, check_statuses
from model_catalog.upkeep.worker_threads import run_in_thread

BATCH: Final = 8000
"""Files that are looked at together: their rows are made in the event loop, which is to be free."""
_FEW: Final = 10
"""As many may go missing at once, whatever part of a disk they are."""


@dataclass(frozen=True, slots=True)
class CheckFinding:
    """A model that is not as it is recorded, or whose state is another than before."""

    ref: ModelRef
    local_path: str
    before: FileState
    state: FileState
    detail: str | None
    is_damaged: bool

    @property
    def is_as_recorded(self) -> bool:
        """Whether nothing is wrong with it, and it is told of because that is news."""
        return self.state.is_as_recorded and not self.is_damaged


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a check found: how many models in each state, and those that are to be told of."""

    counts: Mapping[FileState, int]
    findings: tuple[CheckFinding, ...]
    """Those that are not as recorded, and those whose state has changed, in the order of ids."""

    @property
    def model_count(self) -> int:
        """How many models were looked at."""
        return sum(self.counts.values())

    @property
    def is_as_recorded(self) -> bool:
        """Whether nothing is wrong with any of them."""
        return all(finding.is_as_recorded for finding in self.findings)


async def check_models(
    catalog: ModelCatalog,
    *,
    roots: Iterable[str | PathLike[str]] = (),
    force: bool = False,
    **filters: Unpack[Filters],
) -> CheckReport:
    """
    Look whether the files of all models, or of those that pass the filters, are as recorded.

    Only their status is asked, in a thread; nothing is opened. What was found is recorded a batch
    at a time: `present`, `missing` (since when), `changed`, `unreadable`, or `offline` where the
    disk on which they were last seen is not mounted, or one of the `roots` they lie below is not
    there, not to be listed, or empty. A model that is back is present again. No row is deleted,
    and no digest is touched.

    If more than half of what a root or a mount point held, and more than ten, would go missing at
    once, they are not recorded as missing, and TooManyMissingError says so, unless `force` is set.
    """
    disks = MountCache(fspath(root) for root in roots)
    now = datetime.now(UTC).replace(microsecond=0)
    counts: Counter[FileState] = Counter()
    told: list[CheckResult] = []
    held: Counter[str] = Counter()
    leaving: dict[str, list[CheckResult]] = {}
    last: int | None = None
    async with _storing() as store:
        while rows := await catalog.holdings(last, BATCH, **filters):
            last = rows[-1][0]
            seen = await run_in_thread(partial(check_statuses, rows, disks))
            held += seen.held
            counts[FileState.PRESENT] += len(seen.present_ids)
            counts.update(found.state for found in seen.looks)
            told += filter(_is_to_be_told, seen.looks)
            stored = []
            for found, group in zip(seen.looks, seen.groups, strict=True):
                if found.state is FileState.MISSING and found.is_news:
                    leaving.setdefault(group, []).append(found)
                else:
                    stored.append(found)
            await store(partial(catalog.store_checks, stored, now, seen.present_ids))
    too_many = [
        group
        for group, looks in leaving.items()
        if not force and (news := _newly(looks)) > _FEW and news > held[group] / 2
    ]
    for group, looks in leaving.items():
        if group not in too_many:
            for at in range(0, len(looks), BATCH):
                await catalog.store_checks(looks[at : at + BATCH], now)
    if too_many:
        first = too_many[0]
        raise TooManyMissingError(first, _newly(leaving[first]), held[first])
    refs = await catalog.refs([found.holding.id for found in told])
    findings = (_finding(found, refs) for found in told if found.holding.id in refs)
    return CheckReport({state: count for state, count in counts.items() if count}, tuple(findings))


Step: TypeAlias = Callable[[], Coroutine[Any, Any, None]]


@asynccontextmanager
async def _storing() -> AsyncIterator[Callable[[Step], Awaitable[None]]]:
    """
    Record each batch while the next is looked at; when the block ends the last one is recorded.

    Of this process the database wants no more meanwhile than a thread that waits for it.
    """
    storing: asyncio.Task[None] | None = None

    async def store(step: Step) -> None:
        nonlocal storing
        if storing is not None:
            await storing
        storing = asyncio.create_task(step())

    try:
        yield store
        if storing is not None:
            await storing
    finally:
        if storing is not None:
            storing.cancel()
            await asyncio.gather(storing, return_exceptions=True)


def _newly(looks: Iterable[CheckResult]) -> int:
    """How many of them were not missing before."""
    return sum(found.holding.state is not FileState.MISSING for found in looks)


# That a model is there for the first time somebody looks is no news.
_QUIET: Final = {FileState.UNCHECKED, FileState.PRESENT}


def _is_to_be_told(found: CheckResult) -> bool:
    held = found.holding
    return found.state is not FileState.PRESENT or held.is_damaged or held.state not in _QUIET


def _finding(found: CheckResult, refs: Mapping[int, ModelRef]) -> CheckFinding:
    held = found.holding
    detail = found.detail
    if held.is_damaged and detail is None:
        detail = "its bytes were not the expected ones when they were last read"
    return CheckFinding(
        refs[held.id], held.local_path, held.state, found.state, detail, held.is_damaged
    )
