"""The catalog against the disk, by the status of files alone: what is there, and what is not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from os import PathLike, fspath
from typing import Final, Unpack

from model_catalog.catalog import ModelCatalog
from model_catalog.contents import Holding, Look
from model_catalog.errors import TooManyMissingError
from model_catalog.inventory import FileState
from model_catalog.query import Filters
from model_catalog.reference import ModelRef
from model_catalog.upkeep.looking import Disks, look
from model_catalog.upkeep.threads import Stop, in_thread

_BATCH: Final = 500
"""Models: their rows are made into objects in the event loop, which is to be free again soon."""
_FEW: Final = 10
"""As many may go missing at once, whatever part of a disk they are."""


@dataclass(frozen=True, slots=True)
class Finding:
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
class Checked:
    """What a check found: how many models in each state, and those that are to be told of."""

    counts: Mapping[FileState, int]
    findings: tuple[Finding, ...]
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
) -> Checked:
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
    disks = Disks(fspath(root) for root in roots)
    now = datetime.now(UTC).replace(microsecond=0)
    counts: Counter[FileState] = Counter()
    findings: list[Finding] = []
    held: Counter[str] = Counter()
    leaving: dict[str, list[Look]] = {}
    last: int | None = None
    while batch := await catalog.holdings(last, _BATCH, **filters):
        last = batch[-1].id
        looks, groups = await in_thread(partial(_look, batch, disks))
        stored = []
        for found, group in zip(looks, groups, strict=True):
            counts[found.state] += 1
            if (told := _finding(found)) is not None:
                findings.append(told)
            if found.holding.state is not FileState.MISSING:
                held[group] += 1
            if found.state is FileState.MISSING and found.is_news:
                leaving.setdefault(group, []).append(found)
            else:
                stored.append(found)
        await catalog.store_checks(stored, now)
    too_many = [
        group
        for group, looks in leaving.items()
        if not force and (news := _newly(looks)) > _FEW and news > held[group] / 2
    ]
    for group, looks in leaving.items():
        if group not in too_many:
            for at in range(0, len(looks), _BATCH):
                await catalog.store_checks(looks[at : at + _BATCH], now)
    if too_many:
        first = too_many[0]
        raise TooManyMissingError(first, _newly(leaving[first]), held[first])
    return Checked(dict(counts), tuple(findings))


def _look(batch: list[Holding], disks: Disks, stop: Stop) -> tuple[list[Look], list[str]]:
    looks = []
    for holding in batch:
        if stop():
            break
        looks.append(look(holding, disks))
    return looks, [disks.group_of(found.holding) for found in looks]


def _newly(looks: Iterable[Look]) -> int:
    """How many of them were not missing before."""
    return sum(found.holding.state is not FileState.MISSING for found in looks)


def _finding(found: Look) -> Finding | None:
    held = found.holding
    damaged = held.found_digest is not None
    if found.state is FileState.PRESENT and not damaged and held.state in _QUIET:
        return None
    detail = found.detail
    if damaged and detail is None:
        detail = "its bytes were not the expected ones when they were last read"
    return Finding(held.ref, held.local_path, held.state, found.state, detail, damaged)


# That a model is there for the first time somebody looks is no news.
_QUIET: Final = {FileState.UNCHECKED, FileState.PRESENT}
