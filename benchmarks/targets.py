"""What is to be reached: ratios within one run, and whether it was."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from benchmarks.contenders import BASE, ENTRANTS, PG_BASE, Entrant
from benchmarks.disk import FILES_EACH, HURRIED, Sizes, titles
from benchmarks.parts import ALLOWED
from benchmarks.rounds import Result

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


def _ahead(work: str, *groups: Group, by: str = "ours") -> list[Target]:
    return [Target(work, by, group, 1.0) for group in groups]


def _faster(work: str, times: float, by: str = "ours", suffix: str = "") -> list[Target]:
    heavy = ("SQLAlchemy ORM", "Advanced Alchemy")
    return [Target(work, by, name + suffix, 1 / times) for name in heavy]


def _on_server(work: str) -> list[Target]:
    title = f"PostgreSQL: {work}"
    ours = "ours, asyncpg"
    return [
        Target(title, ours, PG_BASE, 1.0),
        *_faster(title, 3, by=ours, suffix=", asyncpg"),
    ]


def _of_files(sizes: Sizes) -> list[Target]:
    named = titles(sizes)
    found = [
        Target(named["header"], "ours", "gguf", 1 / 50),
        Target(named["digest"], "ours", "hashlib", 1.05),
    ]
    for files_each in FILES_EACH:
        found.append(Target(named[f"check {files_each}"], "ours", ALLOWED, 1.0))
        found.append(Target(named[f"check {files_each} held"], "ours", ALLOWED, 1.0))
    return [*found, Target(named["digest held"], "ours", ALLOWED, 1.0)]


_SET: Final = (
    Target("find", "ours", BASE, 0.8),
    Target("find", "ours, inline reads", BASE, 0.2),
    *_ahead("find", "async peers"),
    *_faster("find", 5),
    *_ahead("find beside a busy loop, p90", "async peers"),
    *_ahead("find beside a busy loop, p90", "async peers", by="ours, inline reads"),
    Target("find, 64 tasks", "ours", BASE, 0.25),
    *_ahead("find, 64 tasks", "async peers"),
    *_faster("find, 64 tasks", 20),
    Target("register", "ours", BASE, 1.2),
    Target("register", "ours", "Tortoise", 1.0),
    Target("register", "ours", "Piccolo", 1.0),
    *_faster("register", 5),
    Target("register, 64 tasks", "ours", BASE, 0.5),
    Target("register, 64 tasks", "ours", "sqlite3", 1.0),
    *_ahead("register, 64 tasks", "peers"),
    *_faster("register, 64 tasks", 50),
    Target("mixed, 64 tasks", "ours", BASE, 0.4),
    *_ahead("mixed, 64 tasks", "peers"),
    Target("10k in bulk", "ours", "sqlite3", 1.3),
    *_ahead("10k in bulk", "peers"),
    Target("10k in bulk", "ours, plain rows", "sqlite3", 1.3),
    *_ahead("10k in bulk", "peers", by="ours, plain rows"),
    *(
        target
        for size in ("10k", "100k")
        for target in (
            Target(f"list {size}", "ours", BASE, 3.0),
            Target(f"list {size}", "ours, plain rows", BASE, 1.3),
            *_ahead(f"list {size}", "ORMs"),
        )
    ),
    *_ahead("memory peak of list 100k", "ORMs"),
    *_ahead("memory peak of list 100k", "ORMs", by="ours, plain rows"),
    Target("total of 1M", "ours", BASE, 1.1),
    Target("open, warm", "ours", BASE, 3.0),
    Target("open, warm", "ours", "SQLAlchemy ORM and Alembic", 1.0),
    Target("open, cold process: Alembic imported (1) or not (0)", "ours", ALLOWED, 1.0),
    Target("adoption of a 1,000-repo cache", "ours", "scan_cache_dir", 2.0),
    *_on_server("find, 64 tasks"),
    *_on_server("register, 64 tasks"),
    *_of_files(Sizes()),
    *_of_files(HURRIED),
)
TARGETS: Final = tuple(dict.fromkeys(_SET))
"""Each once: some lines are called alike in a hurry."""


def members(against: str) -> list[str]:
    """The names behind a group, or the one name that is none."""
    peers = [each for each in ENTRANTS if each.kind == "peer" and each.database == "sqlite"]
    groups: dict[str, Iterable[Entrant]] = {
        "peers": peers,
        "async peers": [each for each in peers if not each.blocks],
        "ORMs": [each for each in peers if each.name != "SQLAlchemy Core"],
    }
    found = groups.get(against)
    return [against] if found is None else [each.name for each in found]


def judge(results: Mapping[str, Result], targets: Iterable[Target] = TARGETS) -> list[Verdict]:
    """Of each target whose work was done."""
    verdicts = []
    for target in targets:
        result = results.get(target.work)
        if result is None:
            continue
        ratios = {name: result.ratio(target.by, name) for name in members(target.against)}
        known = {name: ratio for name, ratio in ratios.items() if not math.isnan(ratio)}
        rival = max(known, key=lambda name: known[name], default=target.against)
        verdicts.append(Verdict(target, known.get(rival, math.nan), rival))
    return verdicts
