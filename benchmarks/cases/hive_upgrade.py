"""Upgrade a database of the Rust hive to head."""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import closing
from functools import partial
from itertools import count
from pathlib import Path
from typing import Final

from benchmarks.contenders import CATALOG
from benchmarks.harness.benchmark import Benchmark, Environment
from benchmarks.harness.models_table import initial_rows, pragmas
from benchmarks.harness.rounds import Result, Sample, run_rounds
from model_catalog import upgrade

_HIVE_SCHEMA: Final = """CREATE TABLE models (
    reference TEXT NOT NULL, provider TEXT NOT NULL, local_path TEXT NOT NULL,
    size_bytes INTEGER, downloaded_at INTEGER, PRIMARY KEY (reference, provider)
)"""
_COPY: Final = (
    "INSERT INTO models (reference, provider, local_path, size_bytes, downloaded_at)"
    " SELECT reference, provider, local_path, size_bytes, downloaded_at FROM hive.models"
)


async def upgrades(environment: Environment) -> Mapping[str, Result]:
    """Compared with the minimum: one INSERT ... SELECT of the rows into a database at head."""
    rows = 10_000 if environment.settings.quick else 100_000
    written = environment.folder / "hive.db"
    create_hive_database(written, rows)
    head = await environment.databases.shared(0)
    names = count()

    async def run_upgrade() -> Sample:
        path = environment.folder / f"hive-{next(names)}.db"
        shutil.copyfile(written, path)
        return await _timed(partial(upgrade, path))

    async def insert_select() -> Sample:
        path = environment.folder / f"hive-{next(names)}.db"
        shutil.copyfile(head, path)
        return await _timed(partial(copy_rows, written, path, environment.settings.durability))

    result = await run_rounds(
        {"INSERT ... SELECT": insert_select, CATALOG: run_upgrade},
        2 if environment.settings.quick else 5,
    )
    return {f"upgrade of a {rows // 1000}k-row hive database": result}


BENCHMARKS: Final = (Benchmark("upgrade of a hive database", upgrades),)


def create_hive_database(path: Path, rows: int) -> None:
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute(_HIVE_SCHEMA)
        raw.executemany(
            "INSERT INTO models VALUES (?, ?, ?, ?, ?)",
            (
                (each.reference, each.provider, each.local_path, each.size_bytes, 1_700_000_000)
                for each in initial_rows(rows)
            ),
        )


async def copy_rows(hive: Path, path: Path, durability: str) -> None:
    with closing(sqlite3.connect(path)) as raw:
        for name, value in pragmas(durability).items():
            raw.execute(f"PRAGMA {name} = {value}")
        raw.execute("ATTACH ? AS hive", (str(hive),))
        with raw:
            raw.execute(_COPY)


async def _timed(function: Callable[[], Awaitable[object]]) -> Sample:
    started = time.perf_counter()
    await function()
    return Sample(time.perf_counter() - started)
