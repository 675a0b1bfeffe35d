"""A process that is killed at any step of an eviction leaves what the next one finishes."""

import os
import shutil
import sys
from itertools import count
from pathlib import Path

import pytest
from eviction_programs import run_and_kill
from managed_models import NOT_USED, manage, manage_hub_cache, paths_below

from model_catalog import FileState, open_catalog
from model_catalog.downloads import plan_eviction
from model_catalog.upkeep import check_models

sys.path.append(str(Path(__file__).parents[1] / "stores"))
from layouts import C1, C2, HuggingFace

EXPIRE = "UPDATE model_claims SET expires_at_ms = renewed_at_ms - 1"


async def fill(database, root):
    """Manage a folder with two names of one file, two revisions, and a link of a pinned model."""
    shutil.rmtree(root, ignore_errors=True)
    database.delete_rows()
    folder = root / "org/m"
    folder.mkdir(parents=True)
    (folder / "a.safetensors").write_bytes(os.urandom(5000))
    os.link(folder / "a.safetensors", folder / "b.safetensors")
    (folder / "config.json").write_bytes(b"{}")
    os.link(folder / "config.json", root / "kept.json")
    cache = HuggingFace(root / "hub")
    data = os.urandom(5000)
    cache.revision("org/m", C1, {"model.safetensors": data, "config.json": b"{}"}, refs=("v1",))
    cache.revision("org/m", C2, {"model.safetensors": data}, tree={"model.safetensors": data})
    cache.revision("org/shared", C1, {"model.safetensors": data})
    blob = cache.share_blob("org/shared", "model.safetensors", data)
    shared = blob.resolve()
    shared.with_name(f"{shared.name}.refs").write_text(f"{blob.relative_to(cache.root)}\n")
    async with open_catalog(database.target) as catalog:
        await manage_hub_cache(catalog, database, cache.root)
        database.run(
            "UPDATE models SET managed_root = ? WHERE reference = 'org/shared'",
            str(cache.repository("org/shared")),
        )
        await manage(catalog, database, folder, "folder", root=root, used_at=NOT_USED)
        await manage(catalog, database, root / "kept.json", "kept", root=root)
        await catalog.pin_model("kept", "hf")


async def assert_finished_by_the_next_run(database, root):
    """Assert that no row is wrong after a kill, and that another run deletes all the rest."""
    database.run(EXPIRE)
    async with open_catalog(database.target) as catalog:
        for model in await catalog.list_models():
            files = [Path(model.local_path) / file.path for file in await catalog.list_files(model)]
            if model.state is FileState.PRESENT and model.reference != "kept":
                assert all(file.is_file() for file in files), model
        plan = await plan_eviction(catalog, keep_days=0)
        result = await plan.execute(catalog)

        assert result.kept == ()
        assert [str(each.reason) for each in plan.kept] == ["pinned"]
        assert (await check_models(catalog)).counts == {FileState.PRESENT: 1}
        assert [model.reference for model in await catalog.list_models()] == ["kept"]
    left = {path for path in paths_below(root) if not path.endswith(".lock")}
    shared = {path for path in left if path.startswith("hub/blobs")}
    assert left - shared == {"hub", "kept.json"}
    assert not any(len(Path(path).name) >= 64 for path in shared)
    assert database.run("SELECT count(*) FROM model_claims") == [(0,)]


@pytest.mark.slow
async def test_an_eviction_that_is_killed_is_finished_by_the_next_one(database, tmp_path):
    """
    Killed in the middle of the deletion of a model, and between two models.
    """
    root = tmp_path / "models"
    await fill(database, root)
    step_count = run_and_kill(database.target, None)

    for part in (0.4, 0.6):
        await fill(database, root)
        assert run_and_kill(database.target, round(step_count * part)) is None
        await assert_finished_by_the_next_run(database, root)


@pytest.mark.slow
async def test_an_eviction_may_be_killed_at_every_step(database, tmp_path):
    """
    Before each statement that writes, each commit, and each deletion of a name or a folder. Before
    every second one on PostgreSQL, where the deletions are the same.
    """
    if database.backend == "psycopg":
        pytest.skip("the statements are those of asyncpg")
    root = tmp_path / "models"

    for step in count(1, 1 if database.path is not None else 2):
        await fill(database, root)
        if run_and_kill(database.target, step) is not None:
            break
        await assert_finished_by_the_next_run(database, root)

    assert step > 60
