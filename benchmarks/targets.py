"""What is to be reached: ratios within one run, and whether it was."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from benchmarks.cases.model_files import FILES_PER_MODEL, QUICK_SIZES, Sizes, row_titles
from benchmarks.contenders import CONTENDERS, POSTGRES_BASELINE, SQLITE_BASELINE, ContenderSpec
from benchmarks.harness.benchmark import ALLOWED
from benchmarks.harness.rounds import Result

Group: TypeAlias = Literal["async peers", "peers", "ORMs"]


@dataclass(frozen=True)
class Target:
    """
    In this work, `by` takes at most so many times what `against` takes.

    Against a group, it is the fastest of it that counts.
    """

    work: str
    by: str
    against: str
    at_most: float


@dataclass(frozen=True)
class Verdict:
    """A target, and the ratio that was measured: NaN where one of both did not run."""

    target: Target
    ratio: float
    rival: str

    @property
    def judged(self) -> bool:
        return not math.isnan(self.ratio)

    @property
    def met(self) -> bool:
        return self.judged and self.ratio <= self.target.at_most


def _not_slower(work: str, *groups: Group, by: str = "ours") -> list[Target]:
    return [Target(work, by, group, 1.0) for group in groups]


def _faster(work: str, times: float, by: str = "ours", suffix: str = "") -> list[Target]:
    heavy = ("SQLAlchemy ORM", "Advanced Alchemy")
    return [Target(work, by, name + suffix, 1 / times) for name in heavy]


def _on_server(work: str) -> list[Target]:
    title = f"PostgreSQL: {work}"
    ours = "ours, asyncpg"
    return [
        Target(title, ours, POSTGRES_BASELINE, 1.0),
        *_faster(title, 3, by=ours, suffix=", asyncpg"),
    ]


def _of_files(sizes: Sizes) -> list[Target]:
    named = row_titles(sizes)
    found = [
        Target(named["header"], "ours", "gguf", 1 / 50),
        Target(named["digest"], "ours", "hashlib", 1.05),
    ]
    for files_each in FILES_PER_MODEL:
        found.append(Target(named[f"check {files_each}"], "ours", ALLOWED, 1.0))
        found.append(Target(named[f"check {files_each} held"], "ours", ALLOWED, 1.0))
    return [*found, Target(named["digest held"], "ours", ALLOWED, 1.0)]


_ALL: Final = (
    Target("find", "ours", SQLITE_BASELINE, 0.8),
    Target("find", "ours, inline reads", SQLITE_BASELINE, 0.2),
    *_not_slower("find", "async peers"),
    *_faster("find", 5),
    *_not_slower("find beside a busy loop, p90", "async peers"),
    *_not_slower("find beside a busy loop, p90", "async peers", by="ours, inline reads"),
    Target("find, 64 tasks", "ours", SQLITE_BASELINE, 0.25),
    *_not_slower("find, 64 tasks", "async peers"),
    *_faster("find, 64 tasks", 20),
    Target("register", "ours", SQLITE_BASELINE, 1.2),
    Target("register", "ours", "Tortoise", 1.0),
    Target("register", "ours", "Piccolo", 1.0),
    *_faster("register", 5),
    Target("register, 64 tasks", "ours", SQLITE_BASELINE, 0.5),
    Target("register, 64 tasks", "ours", "sqlite3", 1.0),
    *_not_slower("register, 64 tasks", "peers"),
    *_faster("register, 64 tasks", 50),
    Target("mixed, 64 tasks", "ours", SQLITE_BASELINE, 0.4),
    *_not_slower("mixed, 64 tasks", "peers"),
    Target("10k in bulk", "ours", "sqlite3", 1.3),
    *_not_slower("10k in bulk", "peers"),
    Target("10k in bulk", "ours, plain rows", "sqlite3", 1.3),
    *_not_slower("10k in bulk", "peers", by="ours, plain rows"),
    *(
        target
        for size in ("10k", "100k")
        for target in (
            Target(f"list {size}", "ours", SQLITE_BASELINE, 3.0),
            Target(f"list {size}", "ours, plain rows", SQLITE_BASELINE, 1.3),
            *_not_slower(f"list {size}", "ORMs"),
        )
    ),
    *_not_slower("memory peak of list 100k", "ORMs"),
    *_not_slower("memory peak of list 100k", "ORMs", by="ours, plain rows"),
    Target("total of 1M", "ours", SQLITE_BASELINE, 1.1),
    Target("open, warm", "ours", SQLITE_BASELINE, 3.0),
    Target("open, warm", "ours", "SQLAlchemy ORM and Alembic", 1.0),
    Target("open, cold process: Alembic imported (1) or not (0)", "ours", ALLOWED, 1.0),
    Target("adoption of a 1,000-repo cache", "ours", "scan_cache_dir", 2.0),
    *_on_server("find, 64 tasks"),
    *_on_server("register, 64 tasks"),
    *_of_files(Sizes()),
    *_of_files(QUICK_SIZES),
)
TARGETS: Final = tuple(dict.fromkeys(_ALL))
"""Each once: some lines are called alike in a hurry."""


def group_members(against: str) -> list[str]:
    """The names behind a group, or the one name that is none."""
    peers = [each for each in CONTENDERS if each.kind == "peer" and each.database == "sqlite"]
    groups: dict[str, Iterable[ContenderSpec]] = {
        "peers": peers,
        "async peers": [each for each in peers if not each.blocks],
        "ORMs": [each for each in peers if each.name != "SQLAlchemy Core"],
    }
    found = groups.get(against)
    return [against] if found is None else [each.name for each in found]


def evaluate(results: Mapping[str, Result], targets: Iterable[Target] = TARGETS) -> list[Verdict]:
    """Of each target whose work was done."""
    verdicts = []
    for target in targets:
        result = results.get(target.work)
        if result is None:
            continue
        ratios = {name: result.ratio(target.by, name) for name in group_members(target.against)}
        known = {name: ratio for name, ratio in ratios.items() if not math.isnan(ratio)}
        rival = max(known, key=lambda name: known[name], default=target.against)
        verdicts.append(Verdict(target, known.get(rival, math.nan), rival))
    return verdicts
