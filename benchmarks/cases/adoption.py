"""Scan a large Hugging Face cache and adopt it, compared with huggingface_hub's own scan."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
from collections.abc import Awaitable, Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any, Final

from benchmarks.contenders import CATALOG
from benchmarks.harness.benchmark import Benchmark, Environment
from benchmarks.harness.hub_cache import create_hub_cache
from benchmarks.harness.rounds import Result, run_rounds
from model_catalog import open_catalog
from model_catalog.stores.scanners.huggingface import scan


async def adoptions(environment: Environment) -> Mapping[str, Result]:
    """Scan and adopt into an empty catalog, and again when the cache has not changed."""
    adopt = adopt_function()
    repositories = 100 if environment.settings.quick else 1000
    root = create_hub_cache(environment.folder / "hub", repositories)
    contenders: dict[str, Callable[[], Awaitable[object] | object]] = {}
    if importlib.util.find_spec("huggingface_hub"):
        library: Any = importlib.import_module("huggingface_hub")
        contenders["scan_cache_dir"] = lambda: library.scan_cache_dir(root)
    contenders["model-catalog, scan only"] = lambda: scan(root)
    if adopt is not None:
        names = count()
        known = environment.folder / "adopted.db"

        async def record(path: Path) -> None:
            async with open_catalog(path) as catalog:
                await adopt(catalog, await asyncio.to_thread(scan, root))

        await record(known)
        contenders[CATALOG] = lambda: record(environment.folder / f"adopting-{next(names)}.db")
        contenders["model-catalog, unchanged"] = lambda: record(known)
    result = await run_rounds(contenders, 2 if environment.settings.quick else 5)
    return {f"adoption of a {repositories:,}-repo cache": result}


BENCHMARKS: Final = (Benchmark("adoption of a cache", adoptions),)


def adopt_function() -> Any:
    """`model_catalog.upkeep.adopt`, or None when this version does not have it."""
    return getattr(importlib.import_module("model_catalog.upkeep"), "adopt", None)
