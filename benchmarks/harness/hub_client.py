"""
Download from a hub as often as asked, in a process that has imported everything.

Run it as `python -m benchmarks.harness.hub_client FOLDER`. Each line on standard input is the name
of a contender. It downloads into a new cache, and its seconds are printed.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Final

from huggingface_hub import snapshot_download

from model_catalog import ModelCatalog, open_catalog
from model_catalog.downloads import download_from_hub

LIBRARY: Final = "snapshot_download"
NORMAL: Final = 'model-catalog, durability="normal"'
REFERENCE: Final = "o/m"


async def time_library(folder: Path) -> float:
    """The seconds of `snapshot_download` in a thread."""
    started = time.perf_counter()
    await asyncio.to_thread(snapshot_download, REFERENCE, cache_dir=folder)
    return time.perf_counter() - started


async def time_catalog(catalog: ModelCatalog, folder: Path) -> float:
    """The seconds of `download_from_hub` with the catalog of a process that has used it before."""
    started = time.perf_counter()
    model = await download_from_hub(catalog, f"hf:{REFERENCE}", cache_dir=folder)
    seconds = time.perf_counter() - started
    if model.incomplete_reason is not None:
        raise ValueError(model.incomplete_reason)
    await catalog.remove_model(model)
    return seconds


async def serve(folder: Path) -> None:
    """Download with the contender that each line names. Nothing else runs in the event loop."""
    async with (
        open_catalog(folder / "catalog.db") as catalog,
        open_catalog(folder / "normal.db", durability="normal") as normal,
    ):
        print("ready", flush=True)
        for number, line in enumerate(sys.stdin):
            cache = folder / f"cache-{number}"
            if line.strip() == LIBRARY:
                seconds = await time_library(cache)
            else:
                seconds = await time_catalog(normal if line.strip() == NORMAL else catalog, cache)
            shutil.rmtree(cache)
            # The disk still writes 300 MB, in the time of the next contender.
            os.sync()
            print(seconds, flush=True)


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
