"""Check and verify a catalog periodically, as a background task of a service."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from os import PathLike
from typing import Final, TypeAlias

from model_catalog.concurrency.context_managers import inner_contextmanager
from model_catalog.concurrency.ownership import running_loop
from model_catalog.domain import validation
from model_catalog.errors import CatalogError, InvalidModelError
from model_catalog.repository.model_catalog import ModelCatalog, executor_of
from model_catalog.upkeep.checks.model_check import CheckReport, check_models
from model_catalog.upkeep.verification.model_verification import verify_models
from model_catalog.upkeep.verification.results import Verdict, VerifiedModel
from model_catalog.upkeep.watch_lease import WatchLease

log = logging.getLogger("model_catalog.upkeep")

OnEvent: TypeAlias = Callable[["CheckReport | VerifiedModel | Exception"], object]

_DAY_S: Final = 86_400.0
_JITTER: Final = 0.1
"""Random part of the interval, added or subtracted: services started at once spread out."""


@dataclass(slots=True)
class WatchReport:
    """Counters of a running watch, and the report of its last check in this process."""

    check_count: int = 0
    failure_count: int = 0
    verified_bytes: int = 0
    last: CheckReport | None = None
    is_active: bool = False
    """Whether this watch does the work; otherwise another process does, and this one waits."""


@inner_contextmanager
async def watch(
    catalog: ModelCatalog,
    *,
    interval_s: float = 3600.0,
    scrub_per_day: float = 1 / 30,
    roots: Iterable[str | PathLike[str]] = (),
    on_event: OnEvent | None = None,
) -> AsyncIterator[WatchReport]:
    """
    Check a catalog now and every `interval_s` seconds, while the block runs.

    After each check it verifies the models that were verified longest ago. `scrub_per_day` is the
    part of the catalog's bytes to read in a day: 1/30 reads all of it in a month, 0 reads nothing.
    A file is always read completely. Bytes read beyond the allowance are subtracted from the next.

    Calls `on_event` in the event loop with each `CheckReport`, each `VerifiedModel` and each error.
    An error is logged once and does not end the watch, whatever it is: a disk may be missing, or
    the database busy. It tries again after the interval.
    Models that differ from the catalog are logged as warnings, once: what was recorded before is
    not logged again. The watch is cancelled at the end of the block.

    Of the watches of one database, in several processes, one works at a time. The others wait. One
    of them takes over when the block of the first has ended or its process was killed: after at
    most one interval, or about a minute if that is shorter. Nothing is locked meanwhile.

    Raises InvalidModelError for an `interval_s` or a `scrub_per_day` that is out of range.
    """
    interval_s = validation.seconds("interval_s", interval_s)
    if (
        not 0 < interval_s < math.inf
        or not 0 <= validation.seconds("scrub_per_day", scrub_per_day) <= 1
    ):
        raise InvalidModelError(
            "interval_s, scrub_per_day",
            (interval_s, scrub_per_day),
            "are out of range: interval_s must be greater than 0 and finite, "
            "scrub_per_day must be between 0 and 1",
        )
    report = WatchReport()
    watcher = _Watcher(catalog, list(roots), scrub_per_day, on_event, report)
    lease = WatchLease(catalog, interval_s)
    task = running_loop().create_task(watcher.run(interval_s, lease))
    try:
        yield report
    finally:
        task.cancel()
        # `await task` could not tell a cancellation of this block from that of the watch.
        await asyncio.wait([task])
        await lease.release()
        if not task.cancelled():
            task.result()


def _spread(interval_s: float) -> float:
    spread_s = interval_s * _JITTER
    return interval_s + random.uniform(-spread_s, spread_s)  # noqa: S311 - not for cryptography


class _Watcher:
    """One watch: its options, its report, and the number of bytes it may read."""

    def __init__(
        self,
        catalog: ModelCatalog,
        roots: list[str | PathLike[str]],
        scrub_per_day: float,
        on_event: OnEvent | None,
        report: WatchReport,
    ) -> None:
        self._catalog = catalog
        self._roots = roots
        self._scrub_per_day = scrub_per_day
        self._on_event = on_event
        self._report = report
        self._logged: dict[int, tuple[Verdict, str | None]] = {}
        self._allowed_bytes = 0.0
        self._allowance_at = time.monotonic()
        self._failures: dict[str, tuple[type[Exception], str]] = {}
        """The last error of each step that failed; the next equal one is not logged again."""

    async def run(self, interval_s: float, lease: WatchLease) -> None:
        while True:
            await self._run_step(lease.take)
            self._report.is_active = lease.is_held
            if lease.is_held:
                await lease.hold_during(lambda: self._work(interval_s))
                self._report.is_active = False
            else:
                await asyncio.sleep(lease.wait_s)

    async def _work(self, interval_s: float) -> None:
        while True:
            await self._run_step(self._check)
            if self._scrub_per_day:
                await self._run_step(self._scrub)
            await asyncio.sleep(_spread(interval_s))

    async def _run_step(self, step: Callable[[], Awaitable[None]]) -> None:
        try:
            await step()
        except Exception as error:
            # No error of one pass may end the watch.
            self._report.failure_count += 1
            failure = (type(error), str(error))
            if self._failures.get(step.__name__) != failure:
                # Once, and not at every pass. An error that is not ours may be a defect.
                self._failures[step.__name__] = failure
                is_expected = isinstance(error, CatalogError | OSError)
                log.warning(
                    "a step of the watch failed; the watch continues: %s",
                    error if is_expected else repr(error),
                    exc_info=None if is_expected else error,
                    extra={"model_catalog_url": executor_of(self._catalog).database.name},
                )
            self._emit(error)
        else:
            self._failures.pop(step.__name__, None)

    async def _check(self) -> None:
        checked = await check_models(self._catalog, roots=self._roots)
        for finding in checked.findings:
            if finding.is_new and not finding.is_as_recorded:
                log.warning(
                    "%s is %s: %s",
                    finding.ref,
                    finding.state,
                    finding.detail,
                    extra={"model_catalog_ref": str(finding.ref)},
                )
        self._report.check_count += 1
        self._report.last = checked
        self._emit(checked)

    async def _scrub(self) -> None:
        now = time.monotonic()
        bytes_per_day = await self._catalog.get_total_size() * self._scrub_per_day
        # A negative allowance is made up for by waiting. At most a day's allowance is saved up.
        earned_bytes = bytes_per_day * (now - self._allowance_at) / _DAY_S
        self._allowed_bytes = min(self._allowed_bytes + earned_bytes, bytes_per_day)
        self._allowance_at = now
        if self._allowed_bytes <= 0:
            return
        async with aclosing(
            verify_models(self._catalog, "full", max_bytes=int(self._allowed_bytes))
        ) as results:
            async for result in results:
                self._allowed_bytes -= result.read_bytes
                self._report.verified_bytes += result.read_bytes
                if self._is_new(result):
                    log.warning("%s is %s: %s", result.model.ref, result.verdict, result.detail)
                self._emit(result)

    def _is_new(self, result: VerifiedModel) -> bool:
        """Whether a verification found something that is neither recorded nor logged before."""
        if result.verdict in (Verdict.OK, Verdict.UNFINISHED):
            self._logged.pop(result.model.id, None)
            return False
        # A file that cannot be read is not recorded, and each scrub begins with it.
        found = (result.verdict, result.detail)
        is_logged = self._logged.get(result.model.id) == found
        self._logged[result.model.id] = found
        return result.is_new and not is_logged

    def _emit(self, event: CheckReport | VerifiedModel | Exception) -> None:
        if self._on_event is None:
            return
        try:
            self._on_event(event)
        except Exception:
            # An error in the host's own callback must not end the watch.
            log.exception("on_event raised an error; the watch continues")
