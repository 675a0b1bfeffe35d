"""The cost of a call with a hundred models, a thousand, and so on up to a million."""

from __future__ import annotations

import itertools
import math
import sqlite3
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.contenders import CATALOG, Contender, contender_spec
from benchmarks.harness.benchmark import Environment
from benchmarks.harness.rounds import Result, Sample, run_rounds
from benchmarks.harness.workloads import (
    Turn,
    WorkloadFunction,
    count_behind,
    find,
    newest,
    page,
    read_stats,
    register_new,
    remove,
    total_behind,
)
from model_catalog import ModelCatalog, ModelRow, Sort

MAX_RATIO: Final = 3.0
"""
A cost is constant if the largest catalog costs at most this many times the smallest.

A page of a rare value is compared with that of the smallest catalog in which it is full.
"""

_CALLS: Final[Mapping[str, WorkloadFunction]] = {
    "find": find,
    "register": register_new,
    "remove": remove,
    "page, the newest 50": newest,
    "page, filtered and sorted": page,
}
CONSTANT_CALLS: Final = tuple(name for name in _CALLS if name != "page, filtered and sorted")
"""The other call of every contender filters and sorts, which the others do by reading every row."""

SUM_CALLS: Final[Mapping[str, WorkloadFunction]] = {
    "count behind a filter": count_behind,
    "total behind a filter": total_behind,
    "stats": read_stats,
}
"""Calls of the catalog about all models. They count the rows of an index, and `stats` the files."""

PAGE_ORDERS: Final[Mapping[str, Sort]] = {
    "newest": Sort.DOWNLOADED_AT,
    "size": Sort.SIZE_BYTES,
    "last use": Sort.LAST_USED_AT,
    "use count": Sort.USE_COUNT,
    "name": Sort.REFERENCE,
}
OTHER_ORDERS: Final = (
    Sort.DOWNLOAD_COUNT,
    Sort.CONTEXT_LENGTH,
    Sort.PARAMETER_COUNT,
    Sort.ARCHITECTURE,
    Sort.QUANTIZATION,
    Sort.FORMAT,
)
"""The orders without an index: each page reads and sorts all models."""

PAGE_FILTERS: Final[Mapping[str, Mapping[str, Any]]] = {
    "": {},
    "provider": {"provider": "hf"},
    "architecture": {"architecture": "llama"},
    "format": {"format": "gguf"},
    "quantization": {"quantization": "Q4_K_M"},
    "store": {"store": "huggingface"},
    "architecture of 2 %": {"architecture": "rwkv"},
    "rare provider": {"provider": "civitai"},
    "rare store": {"store": "kaggle"},
}
"""Values that 20 % of the models have or more, unless the name says otherwise; rare: 0.05 %."""

_FULL_FROM: Final[Mapping[str, int]] = {
    "architecture of 2 %": 10_000,
    "rare provider": 100_000,
    "rare store": 100_000,
}
"""The smallest catalogs that have a page of 50 of these values."""

# Of each hundred models four are used, two have a rare architecture, half state it in a header. The
# divisors have no common factor, or the models of the architecture would have one use count.
_MORE_VALUES: Final = """
UPDATE models SET use_count = 1 + id % 7, last_used_at = 1700000000 + id * 7919 % 1000000
    WHERE id % 25 = 1;
UPDATE models SET store = CASE id % 2000 WHEN 8 THEN 'kaggle' ELSE 'huggingface' END,
    store_root = '/store' WHERE id % 4 = 0;
UPDATE models SET architecture = 'rwkv' WHERE id % 53 = 2;
UPDATE models SET claimed_architecture = architecture, architecture = NULL WHERE id % 2 = 1;
INSERT INTO models (provider, reference, local_path, size_bytes, downloaded_at, architecture)
    SELECT 'civitai', reference, local_path, size_bytes, downloaded_at, architecture
    FROM models WHERE id % 2000 = 9;
"""
_PAGE: Final = 50
_LONG_PAGE: Final = 500
_ENDS: Final = 9
"""The number of first pages, and of last pages, whose median is reported."""

PAGING_ORDERS: Final[Mapping[str, Mapping[str, Any]]] = {
    **{order: {"sort": sort} for order, sort in PAGE_ORDERS.items()},
    "provider": {"sort": Sort.PROVIDER},
    "provider, descending": {"sort": Sort.PROVIDER, "descending": True},
}


@dataclass(frozen=True)
class Growth:
    """The cost of one call in seconds, by the number of models."""

    call: str
    seconds: Mapping[int, float]
    ratio: float
    """The cost in the largest catalog divided by that in `smallest`, as in `Result.ratio`."""
    smallest: int
    """The number of models in the catalog that the largest is compared with."""

    @property
    def per_tenfold(self) -> float:
        """The average factor for ten times as many models."""
        decades = math.log10(max(self.seconds) / self.smallest)
        return float(self.ratio ** (1 / decades)) if decades else 1.0

    @property
    def is_constant(self) -> bool | None:
        """Whether it grows no faster than the depth of an index; None if it reads every row."""
        is_compared = self.call in CONSTANT_CALLS or self.call.startswith("page by")
        return self.ratio <= MAX_RATIO if is_compared else None


@dataclass(frozen=True)
class Paging:
    """Reading a whole catalog in pages of 500."""

    order: str
    pages: int
    first_s: float
    """The median of the first nine pages."""
    last_s: float
    """The median of the last nine full pages."""

    @property
    def ratio(self) -> float:
        """The cost of a last page, as a multiple of a first one."""
        return self.last_s / self.first_s


async def measure_paging(environment: Environment, name: str, rows: int) -> list[Paging]:
    """
    Read all models in pages, in each order that has an index.

    In the other orders only the first and the last pages are read.
    """
    spec = contender_spec(name)
    target = await environment.databases.target(spec, rows, private=True)
    add_values(target)
    contender = spec.make()
    await contender.open(target, environment.settings.durability)
    catalog: ModelCatalog = contender.catalog  # type: ignore[attr-defined]
    found = []
    for order, options in PAGING_ORDERS.items():
        seconds = [each async for each in _page_times(catalog, options)]
        full = seconds[: rows // _LONG_PAGE]
        found.append(_paging(order, len(full), full[:_ENDS], full[-_ENDS:]))
    for sort in OTHER_ORDERS:
        options = {"sort": sort}
        # The last pages start here.
        place = max(rows - (_ENDS + 1) * _LONG_PAGE, 0)
        start = await _row_at(catalog, place, options)
        first = [each async for each in _page_times(catalog, options, pages=_ENDS)]
        last = [each async for each in _page_times(catalog, options, after=start, pages=_ENDS)]
        found.append(_paging(f"{sort}", rows // _LONG_PAGE, first, last))
    await contender.close()
    environment.databases.discard(target)
    return found


def _paging(order: str, pages: int, first: list[float], last: list[float]) -> Paging:
    return Paging(order, pages, statistics.median(first), statistics.median(last))


async def _row_at(catalog: ModelCatalog, place: int, options: Mapping[str, Any]) -> ModelRow:
    """Return the row at a place of a listing."""
    number = 0
    async for row in catalog.iter_rows(**options):
        if number == place:
            return row
        number += 1
    raise ValueError(place)


async def _page_times(
    catalog: ModelCatalog,
    options: Mapping[str, Any],
    after: ModelRow | None = None,
    pages: int | None = None,
) -> AsyncIterator[float]:
    """Yield the seconds that each page takes, until the last one or a number of pages."""
    last = after
    for number in itertools.count():
        if number == pages:
            return
        start = time.perf_counter()
        models = await catalog.list_rows(limit=_LONG_PAGE, after=last, **options)
        yield time.perf_counter() - start
        if not models:
            return
        last = models[-1]


def format_paging(found: list[Paging]) -> str:
    """A table for a terminal."""
    lines = ["paging through all models, 500 a page: the last pages against the first"]
    for each in found:
        word = "flat" if each.ratio <= MAX_RATIO else "NOT FLAT"
        lines.append(
            f"  {each.order:<20} {each.pages:,} pages, {each.first_s * 1e3:.1f} ms and"
            f" {each.last_s * 1e3:.1f} ms: {each.ratio:.2f}x, {word}"
        )
    return "\n".join(lines)


def add_values(target: str) -> None:
    """Add used models, stores, claimed and rare values to a SQLite file."""
    with closing(sqlite3.connect(target)) as raw:
        raw.execute("PRAGMA synchronous = OFF")
        raw.executescript(f"BEGIN; {_MORE_VALUES} COMMIT")
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def page_calls() -> dict[str, WorkloadFunction]:
    """Return the pages of 50 in each order, alone and behind each filter, by their names."""
    return {
        f"page by {order}, {behind or 'alone'}": _page_call(sort, filters)
        for order, sort in PAGE_ORDERS.items()
        for behind, filters in PAGE_FILTERS.items()
    }


def is_drawn(call: str) -> bool:
    """Whether the chart has a line of the call."""
    return not call.startswith("page by") or call.endswith("alone")


def _page_call(sort: Sort, filters: Mapping[str, Any]) -> WorkloadFunction:
    async def read_pages(turn: Turn) -> None:
        catalog: ModelCatalog = turn.contender.catalog  # type: ignore[attr-defined]
        with turn.timed(10):
            for _ in range(10):
                await catalog.list_models(sort=sort, limit=_PAGE, **filters)

    return read_pages


async def measure_growth(environment: Environment, name: str, largest: int) -> list[Growth]:
    """Measure each call at each size. Every round runs all sizes, as in `run_rounds`."""
    spec = contender_spec(name)
    sizes = [10**power for power in range(2, round(math.log10(largest)) + 1)]
    opened: dict[int, Contender] = {}
    targets = {rows: await environment.databases.target(spec, rows, private=True) for rows in sizes}
    has_pages = name == CATALOG
    for rows in sizes:
        if has_pages:
            add_values(targets[rows])
        opened[rows] = spec.make()
        await opened[rows].open(targets[rows], environment.settings.durability)
    found = []
    for call, function in (_CALLS | (SUM_CALLS | page_calls() if has_pages else {})).items():
        result = await run_rounds(
            {f"{rows}": _turn_runner(function, opened[rows], rows) for rows in sizes},
            environment.settings.rounds,
            budget_s=environment.settings.budget_s,
            warm_up=True,
        )
        found.append(growth_of(call, result))
    for rows in sizes:
        await opened[rows].close()
        environment.databases.discard(targets[rows])
    return found


def growth_of(call: str, result: Result) -> Growth:
    """The growth of a call. The contenders of the result are the numbers of models."""
    seconds = {int(rows): median for rows, median in result.medians.items()}
    full_from = _FULL_FROM.get(call.partition(", ")[2], 0)
    smallest = min((rows for rows in seconds if rows >= full_from), default=max(seconds))
    return Growth(call, seconds, result.ratio(f"{max(seconds)}", f"{smallest}"), smallest)


def format_growth(name: str, found: list[Growth]) -> str:
    """A table for a terminal."""
    lines = [f"growth: {name}, microseconds per call"]
    for each in found:
        costs = "  ".join(f"{rows:,}: {cost * 1e6:,.0f}" for rows, cost in each.seconds.items())
        word = {True: "constant", False: "NOT CONSTANT", None: "reads every row"}[each.is_constant]
        lines.append(
            f"  {each.call:<26} {costs}\n"
            f"  {'':<26} {each.ratio:.2f}x from {each.smallest:,},"
            f" {each.per_tenfold:.2f}x per tenfold: {word}"
        )
    return "\n".join(lines)


def _turn_runner(
    function: WorkloadFunction, contender: Contender, rows: int
) -> Callable[[], Awaitable[Sample]]:
    number = -1

    async def run_next_turn() -> Sample:
        nonlocal number
        turn = Turn(contender, rows, number)
        number += 1
        await function(turn)
        return turn.sample

    return run_next_turn
