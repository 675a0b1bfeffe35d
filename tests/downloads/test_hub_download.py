"""`download_from_hub` with the real huggingface_hub and a hub on the loopback interface."""

import pytest
from hub_pulls import COMMIT, FILES, QUANTIZATIONS, Puller
from loopback_hub import LoopbackHub

from model_catalog import open_catalog
from model_catalog.downloads.hub.hub_errors import mask_secrets
from model_catalog.downloads.hub.hub_progress import HubProgress
from model_catalog.errors import StoppedError
from model_catalog.upkeep import adopt, scan_store

HELD = "model-Q4_K_M.gguf"
DOWNLOAD = """
async def run(catalog):
    model = await download_from_hub(catalog, "hf:o/m")
    return [model.version, model.managed_root, model.foreign]
"""


@pytest.fixture
def hub():
    with LoopbackHub(COMMIT, dict(FILES)).serve() as served:
        yield served


@pytest.fixture
def puller(hub, database, tmp_path):
    pytest.importorskip("huggingface_hub")
    return Puller(hub, database.target, tmp_path)


def rows(database):
    columns = "local_path, store, store_root, managed_root, size_bytes, state, headers_read_at"
    return database.run(f"SELECT version, {columns} FROM models ORDER BY version")


@pytest.mark.slow
def test_progress_counts_the_bytes_of_the_files(puller):
    """From nothing to the size that the hub states; cached files count as done."""
    code = """
async def run(catalog):
    seen = []
    async def pull(**options):
        await download_from_hub(catalog, "hf:o/m", on_progress=seen.append, **options)
        await asyncio.sleep(0)
        return [(each.done_bytes, each.total_bytes) for each in seen]
    return [await pull(include=["*.json", "*.md"]), await pull(include=["*.gguf", "*"])]
"""
    size, small = sum(map(len, FILES.values())), sum(map(len, FILES.values())) - len(FILES[HELD])

    first, both = puller.run(code)

    assert first[0] == [0, small]
    assert first[-1] == [small, small]
    second = both[len(first) :]
    assert (second[0], second[-1]) == ([small, size], [size, size])
    assert second == sorted(second)


@pytest.mark.slow
async def test_a_scan_after_a_download_changes_nothing(puller, database):
    """The rows are those that a scan writes, and the catalog still manages the files."""
    puller.hub.revisions[COMMIT] = {**QUANTIZATIONS, "sub/config.json": b"{}"}
    version, root, is_foreign = puller.run(DOWNLOAD)
    downloaded = rows(database)

    async with open_catalog(database.target) as catalog:
        report = await adopt(catalog, await scan_store(catalog, "huggingface", puller.cache))

    assert (report.new, report.changed, report.gone, report.problems) == ((), (), (), ())
    assert rows(database) == downloaded
    assert version.startswith(f"{COMMIT}/m-")
    assert (root, is_foreign) == (str(puller.repository), False)
    assert {row[4] for row in downloaded} == {root}


@pytest.mark.slow
async def test_a_model_that_another_program_has_downloaded_stays_its_own(puller, database):
    """It is registered without a download, and is foreign."""
    puller.download_by_the_library()
    puller.hub.downloads.clear()

    downloaded = puller.run(DOWNLOAD)

    assert downloaded == [COMMIT, None, True]
    assert puller.hub.downloads == []
    async with open_catalog(database.target) as catalog:
        assert await catalog.count_models(foreign=True) == 1
        assert await catalog.count_models(foreign=False) == 0


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["sqlite"])
def test_a_whole_snapshot_needs_no_hub(puller):
    """The cache has all files, and the tree that says so."""
    puller.download_by_the_library()

    assert puller.run(DOWNLOAD, HF_HUB_OFFLINE="1") == [COMMIT, None, True]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["sqlite"])
def test_an_offline_library_is_explained(puller):
    """The way out is the variable that has switched it off."""
    code = """
async def run(catalog):
    try:
        await download_from_hub(catalog, "hf:o/m")
    except Exception as error:
        return [type(error).__name__, str(error)]
"""
    kind, message = puller.run(code, HF_HUB_OFFLINE="1")

    assert kind == "HubDownloadError"
    assert "HF_HUB_OFFLINE=0" in message


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["sqlite"])
def test_a_missing_library_is_named_with_its_extra(puller):
    """An import of huggingface_hub fails as if it were not installed."""
    code = """
async def run(catalog):
    sys.modules["huggingface_hub"] = None
    try:
        await download_from_hub(catalog, "hf:o/m")
    except Exception as error:
        return [type(error).__name__, error.extra]
"""
    assert puller.run(code) == ["NotInstalledError", "hub"]


@pytest.mark.slow
def test_a_cancelled_download_frees_the_name_at_once(puller, database):
    """The thread ends with its chunk, and deletes its partial file. The next call downloads."""
    puller.hub.held = {HELD}
    code = """
import threading
async def run(catalog):
    task = asyncio.create_task(download_from_hub(catalog, "hf:o/m"))
    while not any(each.name.startswith("ThreadPool") for each in threading.enumerate()):
        await asyncio.sleep(0.01)
    await asyncio.to_thread(sys.stdin.readline)
    task.cancel()
    await asyncio.wait([task])
    print("cancelled", task.cancelled(), flush=True)
    return [task.cancelled(), (await download_from_hub(catalog, "hf:o/m")).version]
"""
    process = puller.start_program(code)
    assert puller.hub.is_half_sent.wait(60)
    puller.hub.held = set()
    process.stdin.write("cancel\n")
    process.stdin.flush()
    assert process.stdout.readline() == "cancelled True\n"
    puller.hub.release.set()

    printed, errors = process.communicate(timeout=60)

    assert printed == f'[true, "{COMMIT}"]\n', errors
    states = database.run("SELECT state, error FROM model_downloads ORDER BY id")
    assert states == [("failed", "it was cancelled"), ("done", None)]
    assert not list(puller.repository.rglob("*.incomplete"))


def test_a_stopped_download_ends_with_its_chunk():
    """The update of a bar raises in the thread of huggingface_hub."""
    stopped = []
    reports = []
    progress = HubProgress(
        lambda *each: reports.append(each), lambda: bool(stopped), cached_bytes=5, total_bytes=25
    )
    kind = progress.bar_class()
    network, disk, files = kind(unit="B", total=0), kind(unit="B", total=0), kind(total=3)
    network.update(10)
    disk.update(4)
    disk.update(30)
    disk.update(-30)
    files.update(1)
    stopped.append(True)

    with pytest.raises(StoppedError):
        disk.update(1)

    assert reports == [(5, 25), (15, 25), (15, 25), (25, 25), (15, 25)]


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("at https://me:pw@host/a/b?X-Sig=abc&T=1 now", "at https://***@host/a/b?*** now"),
        ("token hf_abcdefghijkl is bad", "token *** is bad"),
        ("Authorization: Bearer abc.def", "Authorization: ***"),
        ("is it there?", "is it there?"),
    ],
    ids=["url", "token", "header", "question"],
)
def test_secrets_are_masked(text, masked):
    """Passwords and queries of URLs, and tokens."""
    assert mask_secrets(text) == masked
