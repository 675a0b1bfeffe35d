"""How long an adoption takes, and that the event loop stays responsive."""

import asyncio
import gc
import sys
import time
from pathlib import Path

import pytest
from layouts import C1, HuggingFace

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.cases.model_files import longest_block

from model_catalog import open_catalog
from model_catalog.files.fingerprint import Fingerprint
from model_catalog.stores.scan_result import FoundModel, Scan, StoreFile
from model_catalog.upkeep import adopt, scan_store


@pytest.mark.slow
async def test_the_event_loop_stays_responsive_during_a_large_adoption(tmp_path):
    """
    Work on ten thousand rows runs in a thread, or in short steps.
    """
    found = a_large_scan(models=1000, files_each=10)
    # Each garbage collection, in any thread, would also visit the objects of the other tests.
    gc.collect()
    gc.freeze()
    async with open_catalog(tmp_path / "catalog.db") as catalog, longest_block() as longest:
        await asyncio.sleep(0.01)
        longest[0] = 0.0
        first = await adopt(catalog, found)
        second = await adopt(catalog, found)

    gc.unfreeze()
    assert (len(first.new), len(second.unchanged)) == (1000, 1000)
    assert longest[0] < 0.05


def a_large_scan(models, files_each):
    """Return the scan of a large cache; its files do not exist on disk."""
    return Scan(
        "huggingface",
        "/hub",
        tuple(
            FoundModel(
                store="huggingface",
                provider="hf",
                reference=f"org/m{number:05}",
                version=C1,
                aliases=("main",),
                local_path=f"/hub/m{number}",
                folder=f"/hub/m{number}",
                files=tuple(
                    StoreFile(f"{n}.gguf", 5, "weights", None, Fingerprint(5, 1, 1, n), (1, n))
                    for n in range(files_each)
                ),
                downloaded_at=None,
            )
            for number in range(models)
        ),
        (),
    )


@pytest.mark.slow
async def test_a_large_cache_is_adopted_in_less_than_twice_the_time_of_huggingface_hub(tmp_path):
    """
    1,000 repositories with 10,000 files are scanned and recorded.
    """
    library = pytest.importorskip("huggingface_hub")
    cache = HuggingFace(tmp_path / "hub")
    for number in range(1000):
        files = {f"m-{n + 1:05}-of-00003.gguf": f"{number}/{n}".encode() for n in range(3)}
        files |= {f"sub/{n}.txt": f"{number}/{n}".encode() for n in range(3, 10)}
        cache.revision(f"org/m{number}", f"{number:040x}", files, tree=files)
    ours, theirs = [], []
    for attempt in range(3):
        async with open_catalog(tmp_path / f"{attempt}.db") as catalog:
            started = time.perf_counter()
            done = await adopt(catalog, await scan_store(catalog, "huggingface", cache.root))
            ours.append(time.perf_counter() - started)
        started = time.perf_counter()
        library.scan_cache_dir(cache.root)
        theirs.append(time.perf_counter() - started)

    assert len(done.new) == 1000
    print(f"scan {min(ours):.3f} s, scan_cache_dir {min(theirs):.3f} s")
    assert min(ours) < 2 * min(theirs)
