"""The performance targets: ratios within one run, and whether they were reached."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from benchmarks.cases import fleet, hub_download, leases, long_calls, processes, search
from benchmarks.cases.model_files import FILES_PER_MODEL, QUICK_SIZES, Sizes, row_titles
from benchmarks.contenders import (
    ASYNCPG_CATALOG,
    ASYNCPG_HOST_CATALOG,
    CATALOG,
    CONTENDERS,
    HOST_CATALOG,
    INLINE_CATALOG,
    POSTGRES_BASELINE,
    PREPARED_HOST_CATALOG,
    ROWS_CATALOG,
    SQLITE_BASELINE,
    ContenderSpec,
)
from benchmarks.harness.benchmark import ALLOWED
from benchmarks.harness.rounds import Result

Group: TypeAlias = Literal["async libraries", "libraries", "ORMs"]


@dataclass(frozen=True)
class Target:
    """
    In this benchmark, `contender` takes at most `max_ratio` times as long as `rival`.

    If `rival` is a group, its fastest member counts.
    """

    benchmark: str
    contender: str
    rival: str
    max_ratio: float


@dataclass(frozen=True)
class Verdict:
    """A target and the measured ratio: NaN if one of the two contenders did not run."""

    target: Target
    ratio: float
    rival: str
    """The rival that was compared: the fastest one of a group."""

    @property
    def is_measured(self) -> bool:
        return not math.isnan(self.ratio)

    @property
    def is_met(self) -> bool:
        return self.is_measured and self.ratio <= self.target.max_ratio


def _not_slower(benchmark: str, *groups: Group, contender: str = CATALOG) -> list[Target]:
    return [Target(benchmark, contender, group, 1.0) for group in groups]


def _faster_than_orms(
    benchmark: str, times: float, contender: str = CATALOG, suffix: str = ""
) -> list[Target]:
    orms = ("SQLAlchemy ORM", "Advanced Alchemy")
    return [Target(benchmark, contender, name + suffix, 1 / times) for name in orms]


def _postgres_targets(benchmark: str) -> list[Target]:
    title = f"PostgreSQL: {benchmark}"
    return [
        Target(title, ASYNCPG_CATALOG, POSTGRES_BASELINE, 1.0),
        *_faster_than_orms(title, 3, contender=ASYNCPG_CATALOG, suffix=", asyncpg"),
    ]


def _lone_postgres_targets() -> list[Target]:
    """One call at a time: against asyncpg with one statement, and lists against the ORM."""
    orm = "SQLAlchemy ORM, asyncpg"
    return [
        Target("PostgreSQL: find", ASYNCPG_CATALOG, POSTGRES_BASELINE, 1.3),
        Target("PostgreSQL: register", ASYNCPG_CATALOG, POSTGRES_BASELINE, 1.5),
        Target("PostgreSQL: page of 50 in 1k", ASYNCPG_CATALOG, orm, 0.6),
        Target("PostgreSQL: list 10k", ASYNCPG_CATALOG, orm, 0.6),
    ]


def _host_targets() -> tuple[Target, ...]:
    sqlite = {
        "find": 0.6,
        "find, 64 tasks": 0.6,
        "register": 0.7,
        "register, 64 tasks": 0.4,
        "mixed 9:1, 200 tasks, p99": 1.0,
    }
    postgresql = {"find": 0.8, "register": 0.8, "find, 64 tasks": 0.7, "register, 64 tasks": 0.8}
    targets = []
    for contender in (HOST_CATALOG, PREPARED_HOST_CATALOG):
        targets += [
            Target(name, contender, "SQLAlchemy ORM", most) for name, most in sqlite.items()
        ]
        targets.append(Target("10k in bulk", contender, "SQLAlchemy Core", 1.0))
    targets += [
        Target(f"PostgreSQL: {name}", ASYNCPG_HOST_CATALOG, "SQLAlchemy ORM, asyncpg", most)
        for name, most in postgresql.items()
    ]
    return tuple(targets)


HOST_TARGETS: Final = _host_targets()
"""Over a host's session factory: against the host's own calls of SQLAlchemy."""


def _file_targets(sizes: Sizes) -> list[Target]:
    titles = row_titles(sizes)
    targets = [
        Target(titles["header"], CATALOG, "gguf", 1 / 50),
        Target(titles["digest"], CATALOG, "hashlib", 1.05),
        Target(titles["digest blocks"], CATALOG, ALLOWED, 1.0),
    ]
    for files in FILES_PER_MODEL:
        targets.append(Target(titles[f"check {files}"], CATALOG, ALLOWED, 1.0))
        targets.append(Target(titles[f"check {files} blocks"], CATALOG, ALLOWED, 1.0))
    return targets


_ALL: Final = (
    Target("find", CATALOG, SQLITE_BASELINE, 0.8),
    Target("find", INLINE_CATALOG, SQLITE_BASELINE, 0.2),
    *_not_slower("find", "async libraries"),
    *_faster_than_orms("find", 5),
    *_not_slower("find beside a busy loop, p90", "async libraries"),
    *_not_slower("find beside a busy loop, p90", "async libraries", contender=INLINE_CATALOG),
    Target("find, 64 tasks", CATALOG, SQLITE_BASELINE, 0.22),
    *_not_slower("find, 64 tasks", "async libraries"),
    *_faster_than_orms("find, 64 tasks", 20),
    Target("register", CATALOG, SQLITE_BASELINE, 1.2),
    Target("register", CATALOG, "Tortoise", 1.0),
    Target("register", CATALOG, "Piccolo", 1.0),
    *_faster_than_orms("register", 5),
    Target("register, 64 tasks", CATALOG, SQLITE_BASELINE, 0.5),
    Target("register, 64 tasks", CATALOG, "sqlite3", 1.0),
    *_not_slower("register, 64 tasks", "libraries"),
    *_faster_than_orms("register, 64 tasks", 50),
    Target("mixed, 64 tasks", CATALOG, SQLITE_BASELINE, 0.4),
    *_not_slower("mixed, 64 tasks", "libraries"),
    Target("10k in bulk", CATALOG, "sqlite3", 1.3),
    *_not_slower("10k in bulk", "libraries"),
    Target("10k in bulk", ROWS_CATALOG, "sqlite3", 1.3),
    *_not_slower("10k in bulk", "libraries", contender=ROWS_CATALOG),
    *(
        target
        for size in ("10k", "100k")
        for target in (
            Target(f"list {size}", CATALOG, SQLITE_BASELINE, 3.0),
            Target(f"list {size}", ROWS_CATALOG, SQLITE_BASELINE, 1.3),
            *_not_slower(f"list {size}", "ORMs"),
        )
    ),
    *_not_slower("memory peak of list 100k", "ORMs"),
    *_not_slower("memory peak of list 100k", "ORMs", contender=ROWS_CATALOG),
    Target("total of 1M", CATALOG, SQLITE_BASELINE, 1.1),
    # The driver reads all rows, as the catalog did before it had counters.
    Target("count behind a filter, 1M", CATALOG, SQLITE_BASELINE, 0.2),
    Target("total behind a filter, 1M", CATALOG, SQLITE_BASELINE, 0.2),
    Target("open, warm", CATALOG, SQLITE_BASELINE, 2.0),
    Target("open, warm", CATALOG, "SQLAlchemy ORM and Alembic", 1.0),
    Target("open, cold process: Alembic imported (1) or not (0)", CATALOG, ALLOWED, 1.0),
    Target("import, and --help", CATALOG, "SQLAlchemy ORM", 1.25),
    Target(processes.LS, CATALOG, "SQLAlchemy Core", 1.6),
    Target(processes.LS_LARGE, CATALOG, processes.OF_1K, 1.2),
    Target(long_calls.NEW_FILE, CATALOG, long_calls.ALL_REVISIONS, 0.2),
    *(Target(title, CATALOG, ALLOWED, 1.0) for title in (*long_calls.HOLDS, *long_calls.PEAKS)),
    Target("adoption of a 1,000-repo cache", CATALOG, "scan_cache_dir", 3.0),
    Target("download of 3 files of 100 MB", hub_download.NORMAL, hub_download.LIBRARY, 1.05),
    Target(leases.PRESENT, CATALOG, leases.FIND, 1.1),
    Target(leases.LEASES, CATALOG, ALLOWED, 1.0),
    Target(search.RARE_WORD, CATALOG, search.EVERY_MODEL, 1 / 25),
    Target(search.COMMON_WORD, CATALOG, search.EVERY_MODEL, 1.2),
    Target(fleet.WHO_HAS, CATALOG, ALLOWED, 1.0),
    Target(fleet.TOTALS, CATALOG, ALLOWED, 1.0),
    Target(fleet.FIND, CATALOG, fleet.ONE_HOST, 1.2),
    Target(fleet.REGISTER, CATALOG, fleet.ONE_HOST, 1.2),
    Target(fleet.HEARTBEATS, CATALOG, ALLOWED, 1.0),
    *_postgres_targets("find, 64 tasks"),
    *_postgres_targets("register, 64 tasks"),
    *_lone_postgres_targets(),
    *HOST_TARGETS,
    *_file_targets(Sizes()),
    *_file_targets(QUICK_SIZES),
)
TARGETS: Final = tuple(dict.fromkeys(_ALL))
"""Each target once: some rows have the same title in a quick run."""


def group_members(rival: str) -> list[str]:
    """The names of a group's contenders, or the name itself if it is not a group."""
    libraries = [
        spec for spec in CONTENDERS if spec.kind == "library" and spec.database == "sqlite"
    ]
    groups: dict[str, Iterable[ContenderSpec]] = {
        "libraries": libraries,
        "async libraries": [spec for spec in libraries if not spec.blocks_event_loop],
        "ORMs": [spec for spec in libraries if spec.name != "SQLAlchemy Core"],
    }
    members = groups.get(rival)
    return [rival] if members is None else [spec.name for spec in members]


def evaluate(results: Mapping[str, Result], targets: Iterable[Target] = TARGETS) -> list[Verdict]:
    """A verdict for each target whose benchmark has run."""
    verdicts = []
    for target in targets:
        result = results.get(target.benchmark)
        if result is None:
            continue
        ratios = {
            name: result.ratio(target.contender, name) for name in group_members(target.rival)
        }
        known = {name: ratio for name, ratio in ratios.items() if not math.isnan(ratio)}
        fastest = max(known, key=lambda name: known[name], default=target.rival)
        verdicts.append(Verdict(target, known.get(fastest, math.nan), fastest))
    return verdicts
