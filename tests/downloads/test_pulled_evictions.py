"""Models that huggingface_hub itself has downloaded are evicted, and pulled again."""

import warnings

import pytest
from hub_pulls import COMMIT, FILES, GGUF, OTHER_COMMIT, QUANTIZATIONS, Puller
from loopback_hub import LoopbackHub
from managed_models import disk_usage, paths_below

from model_catalog import FileState, open_catalog
from model_catalog.downloads import plan_deletion, plan_eviction
from model_catalog.upkeep import adopt, check_models, scan_store

pytestmark = pytest.mark.slow
WEIGHTS = GGUF + bytes(200_000)


@pytest.fixture(params=["sqlite", "asyncpg"])
def backend(request):
    """test_hub_download.py has the same downloads through psycopg."""
    return request.param


@pytest.fixture
def hub():
    with LoopbackHub(COMMIT, dict(FILES)).serve() as served:
        yield served


@pytest.fixture
def puller(hub, database, tmp_path):
    pytest.importorskip("huggingface_hub")
    return Puller(hub, database.target, tmp_path)


def cached_revisions(root):
    from huggingface_hub import scan_cache_dir

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = scan_cache_dir(root)
    assert found.warnings == []
    return {
        revision.commit_hash: set(revision.refs)
        for repository in found.repos
        for revision in repository.revisions
    }


async def test_a_pulled_model_is_evicted_with_its_repository(puller, database):
    """
    Only the folders of the cache itself stay. The next pull downloads the model again.
    """
    assert puller.pull("hf:o/m")[0] == 0
    before = disk_usage(puller.cache)
    async with open_catalog(database.target) as catalog:
        plan = await plan_eviction(catalog, keep_days=0)
        result = await plan.execute(catalog)

    freed = result.freed_bytes
    left = {path for path in paths_below(puller.cache) if not path.startswith(".locks")}
    assert freed == plan.freed_bytes == before - disk_usage(puller.cache)
    assert freed > len(WEIGHTS)
    assert left <= {"CACHEDIR.TAG"}
    assert cached_revisions(puller.cache) == {}
    assert puller.pull("hf:o/m")[0] == 0
    assert cached_revisions(puller.cache) == {COMMIT: {"main"}}


async def test_one_of_two_pulled_revisions_is_evicted(puller, hub, database):
    """
    huggingface_hub reads what is left, and the other revision is whole.
    """
    assert puller.pull("hf:o/m")[0] == 0
    hub.add_revision(OTHER_COMMIT, {**FILES, "config.json": b'{"other": 1}'}, "v2")
    assert puller.pull("hf:o/m@v2")[0] == 0
    async with open_catalog(database.target) as catalog:
        plan = await plan_deletion(catalog, [f"hf:o/m@{COMMIT}"])
        result = await plan.execute(catalog)
        counts = (await check_models(catalog)).counts

    assert result.freed_bytes == plan.freed_bytes < len(WEIGHTS)
    assert cached_revisions(puller.cache) == {OTHER_COMMIT: {"v2"}}
    assert counts == {FileState.PRESENT: 1}


async def test_one_of_two_quantizations_is_evicted(puller, hub, database):
    """
    The snapshot and its ref stay for the other one. A scan finds no difference afterwards.
    """
    hub.revisions[COMMIT] = hub.files = dict(QUANTIZATIONS)
    assert puller.pull("hf:o/m")[0] == 0
    async with open_catalog(database.target) as catalog:
        plan = await plan_deletion(catalog, [f"hf:o/m@{COMMIT}/m-Q8_0.gguf"])
        await plan.execute(catalog)
        models = await catalog.list_models()
        counts = (await check_models(catalog)).counts
        found = await scan_store(catalog, "huggingface", puller.cache)
        report = await adopt(catalog, found, dry_run=True)

    assert len(models) == 1
    assert counts == {FileState.PRESENT: 1}
    assert report.gone == ()
    assert found.leftovers == ()
    assert not (puller.repository / "snapshots" / COMMIT / "m-Q8_0.gguf").is_symlink()
    assert cached_revisions(puller.cache) == {COMMIT: {"main"}}


def managed_roots(database):
    return database.run("SELECT DISTINCT managed_root FROM models WHERE incomplete_reason IS NULL")


@pytest.mark.parametrize("is_scanned", [False, True], ids=["unseen", "scanned"])
async def test_a_model_is_managed_again_although_a_file_of_no_model_stayed(
    puller, hub, database, is_scanned
):
    """
    README.md belongs to neither quantization, so an eviction of both leaves it. The next pull is
    the catalog's own again, also if a scan has recorded what was left.
    """
    hub.revisions[COMMIT] = hub.files = dict(QUANTIZATIONS)
    assert puller.pull("hf:o/m")[0] == 0
    async with open_catalog(database.target) as catalog:
        await (await plan_eviction(catalog, keep_days=0)).execute(catalog)
        if is_scanned:
            await adopt(catalog, await scan_store(catalog, "huggingface", puller.cache))
    assert (puller.repository / "snapshots" / COMMIT / "README.md").exists()

    assert puller.pull("hf:o/m")[0] == 0

    assert managed_roots(database) == [(str(puller.repository),)]
    async with open_catalog(database.target) as catalog:
        plan = await plan_eviction(catalog, keep_days=0)
        await plan.execute(catalog)
    assert len(plan.models) >= 2


async def test_what_another_program_downloads_after_an_eviction_is_its_own(puller, hub, database):
    """
    It has added the weights to the snapshot that the catalog had begun.
    """
    hub.revisions[COMMIT] = hub.files = dict(QUANTIZATIONS)
    assert puller.pull("hf:o/m")[0] == 0
    async with open_catalog(database.target) as catalog:
        await (await plan_eviction(catalog, keep_days=0)).execute(catalog)
    puller.download_by_the_library()

    assert puller.pull("hf:o/m")[0] == 0

    assert managed_roots(database) == [(None,)]


async def test_all_models_are_evicted_if_none_may_stay(puller, hub, database):
    """
    The links and lists of the cache count in the total too, so nothing is kept as not needed.
    """
    hub.revisions[COMMIT] = hub.files = dict(QUANTIZATIONS)
    assert puller.pull("hf:o/m")[0] == 0
    async with open_catalog(database.target) as catalog:
        plan = await plan_eviction(catalog, max_total_bytes=0)

    assert plan.kept == ()
    assert plan.shortfall_bytes == 0
    assert len(plan.models) == 2
