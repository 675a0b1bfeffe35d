"""Results as text for a terminal, and as JSON."""

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
    """The machine and the versions of Python, SQLite and the libraries."""
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
    """The machine, the versions and the conditions, in a few lines."""
    found = machine_info()
    packages = ", ".join(f"{name} {number}" for name, number in found["packages"].items())
    return (
        f"{found['processor']}, {found['cores']} cores, {found['system']};"
        f" Python {found['python']}, SQLite {found['sqlite']}\n{packages}\n"
        "Every contender uses a copy of the same database: at head, WAL,"
        f" synchronous={durability.upper()}. Times are per call. Ratios are medians of the ratios"
        " within each round. CPU is the CPU time of the contender's process, without a server's."
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
    """A median with its unit."""
    if unit == "bytes":
        return f"{value / 2**20:,.1f} MiB"
    if unit == "times":
        return f"{value:g}"
    for limit, scale, name in ((1e-3, 1e6, "us"), (1.0, 1e3, "ms")):
        if value < limit:
            return f"{value * scale:,.{1 if value * scale < 100 else 0}f} {name}"
    return f"{value:,.2f} s"


def format_result(title: str, result: Result) -> str:
    """A benchmark: each contender's median, its ratio to the baseline, and its rounds."""
    lines = [title]
    width = max((len(name) for name in (*result.samples, *result.broken)), default=0)
    medians, ratios = result.medians, result.ratios
    for name in sorted(medians, key=lambda name: medians[name]):
        rounds = len(result.samples[name])
        lines.append(
            f"  {name:<{width}}  {format_value(medians[name], result.unit):>11}"
            f"  {format_ratio(ratios[name]):>8}"
            f"  CPU {format_ratio(result.cpu_ratio(name, result.baseline)):>7}"
            f"  {rounds:>3} rounds"
        )
    for name, error in result.broken.items():
        lines.append(f"  {name:<{width}}  FAILED: {error}")
    return "\n".join(lines)


def format_ratio(ratio: float) -> str:
    return "-" if math.isnan(ratio) else f"{ratio:.2f}x" if ratio < 100 else f"{ratio:.0f}x"


def format_verdicts(verdicts: Sequence[Verdict]) -> str:
    """The targets, the measured ratios, and whether each target is met."""
    lines = ["targets"]
    for each in verdicts:
        target = each.target
        rival = target.rival
        if each.rival != rival:
            rival = f"{rival} (the fastest: {each.rival})"
        word = "met" if each.is_met else "MISSED" if each.is_measured else "not measured"
        lines.append(
            f"  {word:<12}  {target.benchmark}: {target.contender} and {rival}:"
            f" {format_ratio(each.ratio) if each.ratio >= 0.1 else f'{each.ratio:.3f}x'},"
            f" at most {target.max_ratio:.3g}x"
        )
    return "\n".join(lines)


def to_json(
    results: Mapping[str, Result],
    verdicts: Sequence[Verdict],
    settings: Mapping[str, Any],
    reasons: Sequence[str] = (),
) -> dict[str, Any]:
    """Everything, with every sample. `reasons` say why contenders were left out."""
    return {
        "machine": machine_info(),
        "settings": dict(settings),
        "left_out": list(reasons),
        "benchmarks": {
            title: {
                "unit": result.unit,
                "medians": result.medians,
                "ratios": result.ratios,
                "samples": {name: list(each.values()) for name, each in result.samples.items()},
                "broken": dict(result.broken),
            }
            for title, result in results.items()
        },
        "targets": [
            {
                "benchmark": each.target.benchmark,
                "contender": each.target.contender,
                "rival": each.target.rival,
                "compared_with": each.rival,
                "max_ratio": each.target.max_ratio,
                "ratio": each.ratio if each.is_measured else None,
                "met": each.is_met if each.is_measured else None,
            }
            for each in verdicts
        ],
    }
