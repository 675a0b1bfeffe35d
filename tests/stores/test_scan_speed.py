"""The time of the scan of a large cache, compared with the library that writes it."""

import time

import pytest
from layouts import HuggingFace

from model_catalog.stores.scanners.huggingface import scan

REPOSITORIES, FILES = 1000, 10
ROUNDS = 3


@pytest.mark.slow
def test_a_large_cache_is_scanned_as_fast_as_by_huggingface_hub(tmp_path):
    """
    1,000 repositories with 10,000 files, and with trees, which that scan does not read.
    """
    hub = pytest.importorskip("huggingface_hub")
    cache = HuggingFace(tmp_path)
    for number in range(REPOSITORIES):
        files = {f"m-{n + 1:05}-of-00003.gguf": f"{number}/{n}".encode() for n in range(3)}
        files |= {f"sub/{n}.txt": f"{number}/{n}".encode() for n in range(3, FILES)}
        cache.revision(f"org/m{number}", f"{number:040x}", files, tree=files)

    ours, theirs = [], []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        scanned = scan(cache.root)
        ours.append(time.perf_counter() - started)
        started = time.perf_counter()
        expected = hub.scan_cache_dir(cache.root)
        theirs.append(time.perf_counter() - started)

    assert sum(len(model.files) for model in scanned.found) == REPOSITORIES * FILES
    assert sum(model.size_bytes for model in scanned.found) == expected.size_on_disk
    assert all(model.is_complete for model in scanned.found)
    print(f"ours {min(ours):.3f} s, scan_cache_dir {min(theirs):.3f} s")
    assert min(ours) <= min(theirs)
