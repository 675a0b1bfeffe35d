"""
Download from a hub as often as asked, in a process that has imported everything.

Run it as `python -m benchmarks.harness.hub_client FOLDER`. Each line on standard input is the name
of a contender. It downloads into a new cache, and its seconds are printed.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from pathlib import Path
from typing import Final

from huggingface_hub import snapshot_download

from model_catalog import open_catalog
from model_catalog.downloads import download_from_hub

LIBRARY: Final = "snapshot_download"
REFERENCE: Final = "o/m"


async def time_library(folder: Path) -> float:
    """The seconds of `snapshot_download` in a thread."""
    started = time.perf_counter()
    await asyncio.to_thread(snapshot_download, REFERENCE, cache_dir=folder)
    return time.perf_counter() - started


async def time_catalog(folder: Path) -> float:
    """The seconds of `download_from_hub` with an open catalog."""
    async with open_catalog(folder.with_suffix(".db")) as catalog:
        # A catalog that is in use: its connections are open.
        await catalog.find_model(f"hf:{REFERENCE}")
        started = time.perf_counter()
        model = await download_from_hub(catalog, f"hf:{REFERENCE}", cache_dir=folder)
        seconds = time.perf_counter() - started
    if model.incomplete_reason is not None:
        raise ValueError(model.incomplete_reason)
    return seconds


def main(folder: str) -> None:
    print("ready", flush=True)
    for number, line in enumerate(sys.stdin):
        cache = Path(folder) / f"cache-{number}"
        measure = time_library if line.strip() == LIBRARY else time_catalog
        seconds = asyncio.run(measure(cache))
        shutil.rmtree(cache)
        print(seconds, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
