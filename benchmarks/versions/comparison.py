"""Compare two versions of model-catalog, row by row, in turns within the same rounds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from benchmarks.contenders import ContenderSpec, Installation
from benchmarks.harness.benchmark import Benchmark, Environment
from benchmarks.harness.rounds import Result
from benchmarks.reports.text import format_ratio, format_value

CURRENT: Final = "current"
PREVIOUS: Final = "previous"
SESSIONS: Final = 2
"""How many pairs of child processes measure a row, each in its share of the rounds."""
MORE_SESSIONS: Final = 4
"""How many more pairs measure a row that is above the limit."""


@dataclass(frozen=True)
class Row:
    """A benchmark with one way of using the catalog, measured with both versions."""

    title: str
    result: Result

    @property
    def ratio(self) -> float:
        """The current version's time as a multiple of the previous version's; NaN if unknown."""
        return self.result.ratio(CURRENT, PREVIOUS)

    def exceeds(self, limit: float) -> bool:
        """Whether the current version is too slow, or raised an exception."""
        return self.ratio > limit or CURRENT in self.result.broken


async def compare_versions(
    environment: Environment,
    benchmarks: Sequence[Benchmark],
    installations: tuple[Installation, Installation],
    limit: float,
    report: Callable[[str], object],
) -> list[Row]:
    """
    Measure each benchmark with the previous and the current version, and report each row.

    `environment.contenders` are the ways of using the catalog; each makes a row of its own. A row
    above the limit is measured with more rounds, because a few rounds on a busy machine may be
    slow by chance. All of its rounds count.
    """
    rows = []
    for benchmark in benchmarks:
        for database in ("sqlite", "postgresql"):
            for spec in environment.contenders[database]:
                if not spec.takes_part_in(benchmark.name):
                    continue
                pair = [replace(spec, installation=each) for each in installations]
                one = replace(
                    environment, contenders={"sqlite": [], "postgresql": [], database: pair}
                )
                for row in await _compare(benchmark, spec, one, limit):
                    rows.append(row)
                    report(format_row(row, limit))
    return rows


async def _compare(
    benchmark: Benchmark, spec: ContenderSpec, environment: Environment, limit: float
) -> list[Row]:
    sessions: dict[str, list[Result]] = {}
    rounds = -(-environment.settings.rounds // SESSIONS)
    settings = replace(environment.settings, rounds=rounds)
    for number in range(SESSIONS + MORE_SESSIONS):
        found = [
            Row(f"{title} [{spec.name}]", merge_results(results))
            for title, results in sessions.items()
        ]
        if number >= SESSIONS and not any(row.ratio > limit for row in found):
            break
        for title, result in (await benchmark.run(replace(environment, settings=settings))).items():
            if PREVIOUS in result.samples or PREVIOUS in result.broken:
                sessions.setdefault(title, []).append(result)
    return [
        Row(f"{title} [{spec.name}]", merge_results(results)) for title, results in sessions.items()
    ]


def merge_results(results: Iterable[Result]) -> Result:
    """One result with the rounds of all; a contender that broke in one of them is broken."""
    samples: dict[str, dict[int, float]] = {PREVIOUS: {}, CURRENT: {}}
    broken: dict[str, str] = {}
    first, unit = 0, "s"
    for result in results:
        for name, merged in samples.items():
            taken = result.samples.get(name, {})
            merged.update({first + number: value for number, value in taken.items()})
        first += max(
            (number + 1 for taken in result.samples.values() for number in taken), default=0
        )
        broken.update(result.broken)
        unit = result.unit
    return Result(samples, broken, unit)


def format_row(row: Row, limit: float) -> str:
    """One line for a terminal: both medians, the ratio of time and of CPU time, the rounds."""
    medians = row.result.medians
    values = "  ".join(
        f"{name} {format_value(medians[name], row.result.unit):>10}" if name in medians else ""
        for name in (PREVIOUS, CURRENT)
    )
    line = (
        f"{row.title:<66}  {values}  {format_ratio(row.ratio):>6}"
        f"  CPU {format_ratio(row.result.cpu_ratio(CURRENT, PREVIOUS)):>6}"
        f"  {len(row.result.samples[CURRENT]):>3} rounds"
    )
    if row.ratio > limit:
        line += f"  ABOVE {limit:g}x"
    return "\n".join(
        [line, *(f"    {name} failed: {error}" for name, error in row.result.broken.items())]
    )


def format_summary(rows: Sequence[Row], limit: float) -> str:
    """How many rows are within the limit, the middle of their ratios, and the rows above it."""
    above = [row for row in rows if row.exceeds(limit)]
    compared = [row for row in rows if not math.isnan(row.ratio)]
    time = _median(row.ratio for row in rows)
    cpu = _median(row.result.cpu_ratio(CURRENT, PREVIOUS) for row in rows)
    summary = (
        f"{sum(row.ratio <= limit for row in compared)} of {len(compared)} compared rows are at"
        f" most {limit:g}x; their median: time {format_ratio(time)}, CPU {format_ratio(cpu)}"
    )
    if missing := len(rows) - len(compared):
        summary += f"\nrows not compared, because a version failed: {missing}"
    return "\n".join([summary, *(f"  {row.title}: {format_ratio(row.ratio)}" for row in above)])


def _median(ratios: Iterable[float]) -> float:
    known = [ratio for ratio in ratios if not math.isnan(ratio)]
    return statistics.median(known) if known else math.nan


def to_json(rows: Sequence[Row], limit: float) -> dict[str, Any]:
    """Every sample of every row."""
    return {
        "limit": limit,
        "rows": {
            row.title: {
                "unit": row.result.unit,
                "ratio": None if math.isnan(row.ratio) else row.ratio,
                "samples": {name: list(each.values()) for name, each in row.result.samples.items()},
                "broken": dict(row.result.broken),
            }
            for row in rows
        },
    }
