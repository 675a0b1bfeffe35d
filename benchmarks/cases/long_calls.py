"""How long calls hold the event loop, their peak of memory, and the first opening of a file."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from itertools import count
from pathlib import Path
from typing import IO, Final

from benchmarks.contenders import CATALOG, ContenderSpec
from benchmarks.harness.benchmark import ALLOWED, Benchmark, Environment
from benchmarks.harness.child import peak_bytes
from benchmarks.harness.rounds import Result, Sample, run_rounds
from model_catalog import ModelCatalog, open_catalog, upgrade

ALL_REVISIONS: Final = "all revisions"
NEW_FILE: Final = "open, new file"
_HOLD: Final = "longest hold of the loop"
_MEMORY: Final = "memory peak of 1M"
HOLDS: Final = tuple(
    f"{_HOLD}, {database}: {call}"
    for database in ("SQLite", "PostgreSQL")
    for call in ("list 100k", "export 100k", "import 100k")
)
PEAKS: Final = tuple(f"{_MEMORY}, {call}" for call in ("export", "import"))
_ALLOWED_HOLD_S: Final = 0.05
_ALLOWED_BYTES: Final = 64 * 2**20
_TIMEOUT_S: Final = 3600.0
_ROOT: Final = Path(__file__).parents[2]


async def new_file(environment: Environment) -> Mapping[str, Result]:
    """Open a SQLite file that does not exist, and run all revisions on another one."""
    numbers = count()

    def path() -> Path:
        return environment.folder / f"new-{next(numbers)}.db"

    async def create() -> Sample:
        began_at = time.perf_counter()
        async with open_catalog(path()):
            pass
        return Sample(time.perf_counter() - began_at)

    async def run_all_revisions() -> Sample:
        target = path()
        began_at = time.perf_counter()
        await upgrade(target, "0001")
        await upgrade(target)
        return Sample(time.perf_counter() - began_at)

    result = await run_rounds(
        {ALL_REVISIONS: run_all_revisions, CATALOG: create},
        min(10, environment.settings.rounds),
        warm_up=True,
    )
    return {NEW_FILE: result}


async def holds(environment: Environment) -> Mapping[str, Result]:
    """The longest time between two iterations of the event loop, during calls on 100k models."""
    results = {}
    rows = 10_000 if environment.settings.quick else 100_000
    for database, title in (("sqlite", "SQLite"), ("postgresql", "PostgreSQL")):
        specs = environment.contenders[database]
        if specs:
            results |= await _holds_of(environment, specs[0], f"{_HOLD}, {title}", rows)
    return results


async def _holds_of(
    environment: Environment, spec: ContenderSpec, title: str, rows: int
) -> dict[str, Result]:
    target = await environment.databases.target(spec, rows, private=True)
    path = environment.folder / "export.ndjson"
    rounds = min(3, environment.settings.rounds)
    results = {}
    async with open_catalog(target, timeout_s=_TIMEOUT_S) as catalog:
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "list 100k": catalog.list_models,
            "export 100k": partial(_export, catalog, path),
            "import 100k": partial(_import, catalog, path),
        }
        for name, call in calls.items():
            result = await run_rounds(
                {ALLOWED: _allowed(_ALLOWED_HOLD_S), CATALOG: partial(_longest_hold, call)}, rounds
            )
            results[f"{title}: {name}"] = result
    path.unlink()
    environment.databases.discard(target)
    return results


def _allowed(value: float) -> Callable[[], Sample]:
    return lambda: Sample(value)


async def _longest_hold(call: Callable[[], Awaitable[object]]) -> Sample:
    longest_s = 0.0

    async def tick() -> None:
        nonlocal longest_s
        before = time.perf_counter()
        while True:
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            longest_s = max(longest_s, now - before)
            before = now

    ticking = asyncio.create_task(tick())
    # Kept, because the caller of a list decides when its models are freed.
    kept = await call()
    await asyncio.sleep(0.002)
    ticking.cancel()
    del kept
    return Sample(longest_s)


async def _export(catalog: ModelCatalog, path: Path) -> None:
    stream: IO[bytes]
    with path.open("wb") as stream:
        await catalog.export_catalog(stream)


async def _import(catalog: ModelCatalog, path: Path) -> None:
    stream: IO[bytes]
    with path.open("rb") as stream:
        await catalog.import_catalog(stream, "replace")


async def memory(environment: Environment) -> Mapping[str, Result]:
    """How many bytes a process with an open catalog grows while it exports and imports 1M."""
    spec = environment.contenders["sqlite"][0]
    source = await environment.databases.target(spec, 1_000_000, private=False)
    path = environment.folder / "million.ndjson"
    target = environment.folder / "imported.db"
    results = {}
    for title, call, database in zip(
        PEAKS, ("export", "import"), (source, os.fspath(target)), strict=True
    ):
        measure = partial(_run_child, call, database, os.fspath(path))
        result = await run_rounds({ALLOWED: _allowed(_ALLOWED_BYTES), CATALOG: measure}, 1)
        results[title] = Result(result.samples, result.broken, unit="bytes")
    path.unlink()
    target.unlink()
    return results


async def _run_child(call: str, database: str, path: str) -> Sample:
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.cases.long_calls", call, database, path),
        stdout=asyncio.subprocess.PIPE,
        cwd=_ROOT,
    )
    output, _ = await child.communicate()
    if child.returncode:
        raise ChildProcessError(f"the {call} failed")
    return Sample(float(output))


async def _measure_in_child(call: str, database: str, path: str) -> None:
    async with open_catalog(database, timeout_s=_TIMEOUT_S) as catalog:
        await catalog.list_models(limit=50)
        before = peak_bytes()
        await (_export if call == "export" else _import)(catalog, Path(path))
        print(peak_bytes() - before)


BENCHMARKS: Final = (
    Benchmark(NEW_FILE, new_file, has_target=True),
    Benchmark(_HOLD, holds, has_target=True),
    Benchmark(_MEMORY, memory, has_target=True, skip_when_quick=True),
)


if __name__ == "__main__":
    asyncio.run(_measure_in_child(*sys.argv[1:]))
