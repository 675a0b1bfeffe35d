"""A search for a rare word among a million models, by the index and by comparing every model."""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Final

from benchmarks.contenders import CATALOG
from benchmarks.harness.benchmark import Benchmark, Environment
from benchmarks.harness.rounds import Result, Sample, run_rounds
from model_catalog import Model, ModelCatalog, open_catalog, upgrade
from model_catalog.mapping.search_index.objects import INDEX, STATE

RARE_WORD: Final = "search for a rare word, 1 million"
COMMON_WORD: Final = "search for a common word, the newest 50 of 1 million"
EVERY_MODEL: Final = "every model is compared"
_QUICK_ROWS: Final = 20_000
_ROWS: Final = 1_000_000
_COMMON: Final = "gguf"
_RARE: Final = "zyzzyva"


async def searches(environment: Environment) -> Mapping[str, Result]:
    """Search the same models in a SQLite file with the index, and in one without it."""
    spec = environment.contenders["sqlite"][0]
    rows = _QUICK_ROWS if environment.settings.quick else _ROWS
    path = Path(await environment.databases.target(spec, rows, private=True))
    async with open_catalog(path) as catalog:
        await catalog.register_model(
            Model(reference=f"org/{_RARE}", provider="hf", local_path="/m")
        )
    await upgrade(path)
    scanned = environment.folder / "without-search-index.db"
    shutil.copyfile(path, scanned)
    with closing(sqlite3.connect(scanned)) as raw, raw:
        raw.execute(f"DELETE FROM {STATE}")
        raw.execute(f"DROP TABLE {INDEX}")
    results = {}
    async with AsyncExitStack() as stack:
        catalogs = {
            CATALOG: await stack.enter_async_context(open_catalog(path)),
            EVERY_MODEL: await stack.enter_async_context(open_catalog(scanned)),
        }
        for title, word, found in ((RARE_WORD, _RARE, 1), (COMMON_WORD, _COMMON, 50)):
            contenders = {
                name: _searcher(catalog, word, found) for name, catalog in catalogs.items()
            }
            results[title] = await run_rounds(contenders, 20, warm_up=True)
    environment.databases.discard(f"{path}")
    return results


def _searcher(catalog: ModelCatalog, word: str, expected: int) -> Callable[[], Awaitable[Sample]]:
    async def search() -> Sample:
        began_at = time.perf_counter()
        found = await catalog.list_models(search=word, limit=50)
        took_s = time.perf_counter() - began_at
        if len(found) != expected:
            raise AssertionError(word, len(found))
        return Sample(took_s)

    return search


BENCHMARKS: Final = (Benchmark("search", searches, has_target=True),)
