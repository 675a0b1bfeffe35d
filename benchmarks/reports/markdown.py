"""What was measured, as a page for the documentation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from benchmarks.cases.growth import Growth
from benchmarks.contenders import CONTENDERS
from benchmarks.harness.benchmark import Settings
from benchmarks.harness.rounds import Result
from benchmarks.reports import text as report
from benchmarks.targets import Verdict

_WRITTEN: Final = "<!-- Written by `python -m benchmarks`: change nothing here by hand. -->\n"


def to_markdown(
    results: Mapping[str, Result],
    judged: Sequence[Verdict],
    terms: Settings,
    absent: Sequence[str],
) -> str:
    """The machine, the targets with what was measured beside each, and every ratio."""
    found = report.machine_info()
    packages = ", ".join(f"{name} {number}" for name, number in found["packages"].items())
    parts = [
        _WRITTEN,
        (
            f"{found['processor']}, {found['cores']} cores, {found['system']}; Python"
            f" {found['python']}, SQLite {found['sqlite']}; {packages}.\n"
        ),
        f"WAL and `synchronous={terms.durability.upper()}` on all sides, {terms.rounds} rounds.\n",
        *(f"- {words}\n" for words in absent),
        _targets(judged),
    ]
    for database in ("sqlite", "postgresql"):
        names = [each.name for each in CONTENDERS if each.database == database]
        of_it = {
            title: result
            for title, result in results.items()
            if result.medians and result.base == names[0]
        }
        if of_it:
            parts.append(_ratios(of_it, [name for name in names if _ran(name, of_it)]))
    alone = {
        title: result
        for title, result in results.items()
        if result.medians and result.base not in (each.name for each in CONTENDERS)
    }
    if alone:
        lines = [
            (
                title,
                f"{name}: {report.format_value(value, result.unit)}, {report.format_ratio(ratio)}",
            )
            for title, result in alone.items()
            for (name, value), ratio in zip(
                result.medians.items(), result.ratios.values(), strict=True
            )
        ]
        parts.append(_table(("work", "contender: median, ratio to the first"), lines))
    return "\n".join(parts)


def growth_to_markdown(found: Mapping[str, Sequence[Growth]]) -> str:
    """A table for each contender: microseconds a call at each number of rows."""
    parts = [_WRITTEN]
    for name, grown in found.items():
        counts = sorted({rows for each in grown for rows in each.seconds})
        rows = [
            (
                each.call,
                *(_microseconds(each.seconds.get(count)) for count in counts),
                report.format_ratio(each.ratio),
                {True: "flat", False: "not flat", None: "looks at every row"}[each.flat],
            )
            for each in grown
        ]
        heads = (f"{name}, us a call", *(f"{count:,}" for count in counts), "in all", "")
        parts.append(_table(heads, rows))
    return "\n".join(parts)


def _microseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e6:,.0f}"


def _ran(name: str, results: Mapping[str, Result]) -> bool:
    return any(name in result.medians for result in results.values())


def _targets(judged: Sequence[Verdict]) -> str:
    rows = []
    for each in judged:
        target = each.target
        rival = "" if each.rival == target.against else f" (the fastest: {each.rival})"
        word = "met" if each.met else "**missed**" if each.judged else "not measured"
        ratio = f"{each.ratio:.3g}x" if each.judged else "-"
        rows.append(
            (
                target.work,
                target.by,
                f"{target.against}{rival}",
                ratio,
                f"{target.at_most:.3g}x",
                word,
            )
        )
    return _table(("work", "who", "against", "measured", "at most", ""), rows)


def _ratios(results: Mapping[str, Result], names: Sequence[str]) -> str:
    """A line a work: the base's median, and everybody's ratio to it."""
    rows = []
    for title, result in results.items():
        ratios = result.ratios
        cells = [
            f"{ratios[name]:.2f}" if math.isfinite(ratios.get(name, math.nan)) else "-"
            for name in names[1:]
        ]
        rows.append((title, report.format_value(result.medians[result.base], result.unit), *cells))
    return _table(("work", names[0], *names[1:]), rows)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
