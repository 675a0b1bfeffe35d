"""What was measured, in words for a terminal and in JSON."""

from __future__ import annotations

import math
import os
import platform
import sqlite3
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from benchmarks.harness.rounds import Result
from benchmarks.targets import Verdict

_PACKAGES: Final = (
    "model-catalog",
    "sqlalchemy",
    "aiosqlite",
    "alembic",
    "advanced-alchemy",
    "sqlmodel",
    "tortoise-orm",
    "piccolo",
    "peewee",
    "asyncpg",
    "psycopg",
)


def machine_info() -> dict[str, Any]:
    """What it was measured on."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "packages": versions,
    }


def heading(durability: str) -> str:
    """What it was measured on, and on which terms, in a few lines."""
    found = machine_info()
    packages = ", ".join(f"{name} {number}" for name, number in found["packages"].items())
    return (
        f"{found['processor']}, {found['cores']} cores, {found['system']};"
        f" Python {found['python']}, SQLite {found['sqlite']}\n{packages}\n"
        f"the same file for all: at head, WAL, synchronous = {durability.upper()};"
        " times are a call's; ratios are medians of those within a round, of time and of what this"
        " process computed (which no server's is)"
    )


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def format_value(value: float, unit: str) -> str:
    """A median with its unit, three digits of it."""
    if unit == "bytes":
        return f"{value / 2**20:,.1f} MiB"
    if unit == "times":
        return f"{value:g}"
    for limit, scale, name in ((1e-3, 1e6, "us"), (1.0, 1e3, "ms")):
        if value < limit:
            return f"{value * scale:,.{1 if value * scale < 100 else 0}f} {name}"
    return f"{value:,.2f} s"


def format_result(title: str, result: Result) -> str:
    """A work: each contender's median, its ratio to the base, and how many rounds it had."""
    lines = [title]
    width = max((len(name) for name in (*result.samples, *result.broken)), default=0)
    medians, ratios = result.medians, result.ratios
    for name in sorted(medians, key=lambda name: medians[name]):
        rounds = len(result.samples[name])
        lines.append(
            f"  {name:<{width}}  {format_value(medians[name], result.unit):>11}"
            f"  {format_ratio(ratios[name]):>8}"
            f"  CPU {format_ratio(result.cpu_ratio(name, result.base)):>7}"
            f"  {rounds:>3} rounds"
        )
    for name, error in result.broken.items():
        lines.append(f"  {name:<{width}}  BROKE: {error}")
    return "\n".join(lines)


def format_ratio(ratio: float) -> str:
    return "-" if math.isnan(ratio) else f"{ratio:.2f}x" if ratio < 100 else f"{ratio:.0f}x"


def format_verdicts(judged: Sequence[Verdict]) -> str:
    """The targets, what was measured beside each, and whether it is met."""
    lines = ["targets"]
    for each in judged:
        target = each.target
        against = target.against
        if each.rival != against:
            against = f"{against} (the fastest: {each.rival})"
        word = "met" if each.met else "MISSED" if each.judged else "not measured"
        lines.append(
            f"  {word:<12}  {target.work}: {target.by} against {against}:"
            f" {format_ratio(each.ratio) if each.ratio >= 0.1 else f'{each.ratio:.3f}x'},"
            f" at most {target.at_most:.3g}x"
        )
    return "\n".join(lines)


def to_json(
    results: Mapping[str, Result],
    judged: Sequence[Verdict],
    terms: Mapping[str, Any],
    absent: Sequence[str] = (),
) -> dict[str, Any]:
    """All of it, every sample included, so that a chart can be drawn of it again."""
    return {
        "machine": machine_info(),
        "terms": dict(terms),
        "left out": list(absent),
        "works": {
            title: {
                "unit": result.unit,
                "medians": result.medians,
                "ratios": result.ratios,
                "samples": {name: list(taken.values()) for name, taken in result.samples.items()},
                "broken": dict(result.broken),
            }
            for title, result in results.items()
        },
        "targets": [
            {
                "work": each.target.work,
                "by": each.target.by,
                "against": each.target.against,
                "rival": each.rival,
                "at most": each.target.at_most,
                "ratio": each.ratio if each.judged else None,
                "met": each.met if each.judged else None,
            }
            for each in judged
        ],
    }
