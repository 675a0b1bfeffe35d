"""The periodic look after a catalog that a service runs beside its work."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from os import PathLike
from typing import Final, TypeAlias

from model_catalog.domain import validation
from model_catalog.errors import CatalogError, InvalidModelError
from model_catalog.repository.model_catalog import ModelCatalog
from model_catalog.upkeep.checks.model_check import CheckReport, check_models
from model_catalog.upkeep.verification.model_verification import (
    Verdict,
    VerifiedModel,
    verify_models,
)

log = logging.getLogger(__name__)

OnEvent: TypeAlias = Callable[["CheckReport | VerifiedModel | Exception"], object]

_DAY_S: Final = 86_400.0
_JITTER: Final = 0.1
"""Of the interval, more or less: services that were started together do not stay together."""


@dataclass(slots=True)
class WatchReport:
    """How a watch went so far: what was done, what failed, and the last result of a check."""

    check_count: int = 0
    failure_count: int = 0
    verified_bytes: int = 0
    last: CheckReport | None = None


@asynccontextmanager
async def watch(
    catalog: ModelCatalog,
    *,
    interval_s: float = 3600.0,
    scrub_per_day: float = 1 / 30,
    roots: Iterable[str | PathLike[str]] = (),
    on_event: OnEvent | None = None,
) -> AsyncIterator[WatchReport]:
    """
    Check a catalog now and every `interval_s` seconds, for as long as the block runs.

    After each check the models that were verified longest ago are read again, as many bytes as are
    `scrub_per_day` of the catalog for each day that has gone by: 1/30 reads all of it in a month,
    0 reads nothing. A file is read whole, and what it was too long is not read the next time.

    `on_event` is called in the loop with each `Checked`, with each `Verified`, and with each error,
    which is logged and survived: a missing disk or a busy database ends no watch. What is not as
    recorded is logged as a warning. At the end of the block it stops at once.

    Raises InvalidModelError for an interval or a part that is none.
    """
    interval_s = validation.seconds("interval_s", interval_s)
    if (
        not 0 < interval_s < math.inf
        or not 0 <= validation.seconds("scrub_per_day", scrub_per_day) <= 1
    ):
        raise InvalidModelError(
            "interval_s, scrub_per_day",
            (interval_s, scrub_per_day),
            "are out of range: give seconds, more than 0, and a part between 0 and 1",
        )
    seen = WatchReport()
    watcher = _Watcher(catalog, list(roots), scrub_per_day, on_event, seen)
    task = asyncio.create_task(watcher.run(interval_s))
    try:
        yield seen
    finally:
        task.cancel()
        # Not `await task`: who cancels this block meanwhile is to be heard.
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()


class _Watcher:
    """One watch: what it looks after, and how many bytes it may read."""

    def __init__(
        self,
        catalog: ModelCatalog,
        roots: list[str | PathLike[str]],
        scrub_per_day: float,
        on_event: OnEvent | None,
        seen: WatchReport,
    ) -> None:
        self._catalog = catalog
        self._roots = roots
        self._scrub_per_day = scrub_per_day
        self._on_event = on_event
        self._seen = seen
        self._allowed_bytes = 0.0
        self._since = time.monotonic()

    async def run(self, interval_s: float) -> None:
        while True:
            await self._surviving(self._check)
            if self._scrub_per_day:
                await self._surviving(self._scrub)
            spread = interval_s * _JITTER
            await asyncio.sleep(interval_s + random.uniform(-spread, spread))  # noqa: S311

    async def _surviving(self, step: Callable[[], Awaitable[None]]) -> None:
        try:
            await step()
        except (CatalogError, OSError) as error:
            self._seen.failure_count += 1
            log.warning("the watch goes on after: %s", error)
            self._tell(error)

    async def _check(self) -> None:
        checked = await check_models(self._catalog, roots=self._roots)
        for finding in checked.findings:
            if not finding.is_as_recorded:
                log.warning("%s is %s: %s", finding.ref, finding.state, finding.detail)
        self._seen.check_count += 1
        self._seen.last = checked
        self._tell(checked)

    async def _scrub(self) -> None:
        now = time.monotonic()
        per_day = await self._catalog.get_total_size() * self._scrub_per_day
        # A debt is paid off by waiting; a credit of more than a day is not saved up.
        earned = per_day * (now - self._since) / _DAY_S
        self._allowed_bytes = min(self._allowed_bytes + earned, per_day)
        self._since = now
        if self._allowed_bytes <= 0:
            return
        async with aclosing(
            verify_models(self._catalog, "full", max_bytes=int(self._allowed_bytes))
        ) as results:
            async for result in results:
                self._allowed_bytes -= result.read_bytes
                self._seen.verified_bytes += result.read_bytes
                if result.verdict not in (Verdict.OK, Verdict.UNFINISHED):
                    log.warning("%s is %s: %s", result.model.ref, result.verdict, result.detail)
                self._tell(result)

    def _tell(self, event: CheckReport | VerifiedModel | Exception) -> None:
        if self._on_event is None:
            return
        try:
            self._on_event(event)
        except Exception:
            # The host's own code: what it does wrong is not to end the watch.
            log.exception("the watch goes on after its on_event failed")
