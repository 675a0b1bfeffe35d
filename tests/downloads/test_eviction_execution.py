"""Executing a plan deletes what it says, and checks every condition again."""

import asyncio
import os
import sys
import warnings
from pathlib import Path

import pytest
from conftest import a_model
from managed_models import (
    NOT_USED,
    claim,
    disk_usage,
    manage,
    manage_files,
    manage_hub_cache,
    paths_below,
    reasons,
    references,
    use,
)

from model_catalog import FileState
from model_catalog.domain.file_record import BEING_DELETED
from model_catalog.downloads import plan_deletion, plan_eviction
from model_catalog.upkeep import check_models, register_path

sys.path.append(str(Path(__file__).parents[1] / "stores"))
from layouts import C1, C2, HuggingFace

# Most of these are about files, and not about the database.
pytestmark = pytest.mark.slow_with("asyncpg")

KIB = 1024


async def remaining(catalog):
    return sorted(model.reference for model in await catalog.list_models())


async def test_the_files_and_records_of_a_plan_are_deleted(catalog, database, tmp_path):
    """
    The freed bytes are the planned ones, and the folders that the models leave are deleted.
    """
    root = tmp_path / "models"
    await manage_files(catalog, database, root / "org", {"a": 8 * KIB, "b": 16 * KIB})
    await manage_files(catalog, database, root / "kept", {"c": 4 * KIB})
    database.run("UPDATE models SET managed_root = ?", str(root))
    await catalog.tag_model("a", "hf", "chat")
    await catalog.pin_model("c", "hf")
    plan = await plan_eviction(catalog, keep_days=0)
    seen = []

    result = await plan.execute(catalog, on_progress=lambda model, _: seen.append(model))

    assert references(result.evicted) == ["a", "b"]
    assert tuple(seen) == result.evicted
    assert result.kept == ()
    assert result.freed_bytes == plan.freed_bytes == 24 * KIB
    assert paths_below(root) == {"kept", "kept/c.gguf"}
    assert await remaining(catalog) == ["c"]
    assert database.run("SELECT count(*) FROM model_claims") == [(0,)]


async def test_a_plan_may_only_forget(catalog, database, tmp_path):
    """
    Without `delete_files` the files stay, and the records of the plan are deleted.
    """
    await manage_files(catalog, database, tmp_path / "models", {"a": 1, "b": 1})
    plan = await plan_eviction(catalog, keep_days=0)
    await catalog.pin_model("b", "hf")

    result = await plan.execute(catalog, delete_files=False)

    assert references(result.evicted) == ["a"]
    assert reasons(result.kept) == {"b": "pinned"}
    assert result.freed_bytes == 0
    assert paths_below(tmp_path / "models") == {"a.gguf", "b.gguf"}
    assert await remaining(catalog) == ["b"]


def touch(_catalog, _database, path):
    os.utime(path, (1, 1))


def replace_by_link(_catalog, _database, path):
    outside = path.parents[2] / "outside.gguf"
    path.rename(outside)
    path.symlink_to(outside)


def replace_folder_by_link(_catalog, _database, path):
    outside = path.parents[2] / "outside"
    path.parent.rename(outside)
    path.parent.symlink_to(outside)


async def pin(catalog, _database, _path):
    await catalog.pin_model("m", "hf")


async def record_use(catalog, _database, _path):
    await catalog.record_use("m", "hf")


def begin_use(_catalog, database, _path):
    use(database, "m")


def begin_download(_catalog, database, _path):
    claim(database, "m")


async def move(catalog, _database, path):
    await catalog.update_model("m", "hf", local_path=str(path.with_name("n.gguf")))


def rename(_catalog, database, path):
    database.run("UPDATE models SET local_path = ?", str(path.with_name("n.gguf")))


def disown(_catalog, database, _path):
    database.run("UPDATE models SET managed_root = NULL")


def end_check(_catalog, database, _path):
    database.run("UPDATE models SET state = 'changed', state_detail = NULL")


CHANGES = {
    "touched": (touch, "its files are not as recorded"),
    "link": (replace_by_link, "its files are not as recorded"),
    "folder": (replace_folder_by_link, "its files are outside of its folder"),
    "pinned": (pin, "pinned"),
    "using": (begin_use, "in use"),
    "used": (record_use, "changed since the plan was made"),
    "changed": (end_check, "its files are not as recorded"),
    "downloading": (begin_download, "being downloaded"),
    "moved": (move, "changed since the plan was made"),
    "renamed": (rename, "changed since the plan was made"),
    "disowned": (disown, "changed since the plan was made"),
}


@pytest.mark.parametrize(("change", "reason"), CHANGES.values(), ids=CHANGES)
async def test_a_model_that_has_changed_since_the_plan_is_kept_whole(
    catalog, database, tmp_path, change, reason
):
    """
    Its record keeps its state, and the result says why.
    """
    path = tmp_path / "models/org/m.gguf"
    await manage_files(catalog, database, path.parent, {"m": 5000})
    database.run("UPDATE models SET managed_root = ?", str(tmp_path / "models"))
    plan = await plan_eviction(catalog, keep_days=0)
    done = change(catalog, database, path)
    if asyncio.iscoroutine(done):
        await done

    result = await plan.execute(catalog)

    assert path.resolve().stat().st_size == 5000
    assert result.evicted == ()
    assert reasons(result.kept) == {"m": reason}
    (model,) = await catalog.list_models()
    assert model.state_detail is None
    assert model.state is not FileState.MISSING


async def test_other_programs_rows_keep_a_model(catalog, database, tmp_path):
    """
    A row of a host's own table refers to the model: its files are not deleted either.
    """
    await manage_files(catalog, database, tmp_path / "models", {"m": 1})
    database.run("CREATE TABLE placements (model_id bigint NOT NULL REFERENCES models (id))")
    database.run("INSERT INTO placements SELECT id FROM models")
    plan = await plan_eviction(catalog, keep_days=0)

    result = await plan.execute(catalog)
    database.run("DROP TABLE placements")

    assert reasons(result.kept) == {"m": "in use"}
    assert (tmp_path / "models/m.gguf").is_file()
    assert (await catalog.get_model("m", "hf")).state is FileState.PRESENT


async def test_one_changed_file_keeps_all_files_of_a_model(catalog, database, tmp_path):
    """
    All files are checked before the first one is deleted.
    """
    root = tmp_path / "models"
    (root / "m").mkdir(parents=True)
    for name in ("a.safetensors", "b.safetensors", "config.json"):
        (root / "m" / name).write_bytes(b"{}")
    await manage(catalog, database, root / "m", "m", root=root)
    plan = await plan_eviction(catalog, keep_days=0)
    (root / "m/config.json").write_bytes(b"{ }")

    result = await plan.execute(catalog)

    assert "config.json" in result.kept[0].detail
    assert len(paths_below(root / "m")) == 3


async def test_hard_links_of_two_models_are_deleted_one_after_another(catalog, database, tmp_path):
    """
    The first deletion changes the ctime of the file, which is not taken for a change of it.
    """
    root = tmp_path / "models"
    await manage_files(catalog, database, root, {"a": 64 * KIB})
    for name in ("b", "kept"):
        os.link(root / "a.gguf", root / f"{name}.gguf")
    for name in ("a", "b", "kept"):
        await manage(catalog, database, root / f"{name}.gguf", name, root=root, used_at=NOT_USED)
    await catalog.pin_model("kept", "hf")
    plan = await plan_eviction(catalog, keep_days=0)

    result = await plan.execute(catalog)

    assert references(result.evicted) == ["a", "b"]
    assert result.freed_bytes == plan.freed_bytes == 0
    assert paths_below(root) == {"kept.gguf"}
    assert (await check_models(catalog)).counts == {FileState.PRESENT: 1}


async def test_two_names_in_one_model_are_both_deleted(catalog, database, tmp_path):
    """
    Deleting the first one changes the ctime of the second.
    """
    root = tmp_path / "models"
    (root / "m").mkdir(parents=True)
    (root / "m/a.safetensors").write_bytes(b"x" * 5000)
    os.link(root / "m/a.safetensors", root / "m/b.safetensors")
    await manage(catalog, database, root / "m", "m", root=root)

    plan = await plan_eviction(catalog, keep_days=0)
    result = await plan.execute(catalog)

    assert result.freed_bytes == plan.freed_bytes == 8 * KIB
    assert paths_below(root) == set()


async def test_files_that_no_list_has_stay(catalog, database, tmp_path):
    """
    Nothing unknown is deleted, and neither is the folder that contains it.
    """
    root = tmp_path / "models"
    (root / "m").mkdir(parents=True)
    (root / "m/model.safetensors").write_bytes(b"x")
    await manage(catalog, database, root / "m", "m", root=root)
    (root / "m/notes.txt").write_text("mine")

    await (await plan_eviction(catalog, keep_days=0)).execute(catalog)

    assert paths_below(root) == {"m", "m/notes.txt"}


async def test_a_link_to_a_file_outside_is_deleted_itself(catalog, database, tmp_path):
    """
    The file that it leads to is not the catalog's.
    """
    outside = tmp_path / "outside.gguf"
    outside.write_bytes(b"x" * 5000)
    root = tmp_path / "models"
    root.mkdir()
    (root / "m.gguf").symlink_to(outside)
    await manage(catalog, database, root / "m.gguf", "m", root=root)

    plan = await plan_eviction(catalog, keep_days=0)
    result = await plan.execute(catalog)

    assert result.freed_bytes == plan.freed_bytes
    assert paths_below(root) == set()
    assert outside.stat().st_size == 5000


async def test_a_named_model_of_unknown_ownership_is_deleted(catalog, database, tmp_path):
    """
    Its files are deleted in the folder of its path, with its record.
    """
    path = tmp_path / "mine/m.gguf"
    path.parent.mkdir()
    path.write_bytes(b"x" * 5000)
    await register_path(catalog, path, "m", "local")
    (tmp_path / "mine/folder").mkdir()
    (tmp_path / "mine/folder/model.safetensors").write_bytes(b"x")
    await register_path(catalog, tmp_path / "mine/folder", "folder", "local")
    await catalog.register_model(a_model("bare", local_path=str(tmp_path / "bare"), size_bytes=3))
    (tmp_path / "bare").write_bytes(b"abc")

    plan = await plan_deletion(catalog, ["local:m", "local:folder", "hf:bare"])
    result = await plan.execute(catalog)

    assert len(result.evicted) == 3
    assert result.freed_bytes == plan.freed_bytes
    assert paths_below(tmp_path) - {path.name for path in tmp_path.glob("catalog.db*")} == {"mine"}
    assert await remaining(catalog) == []


async def test_a_check_does_not_overrule_a_deletion(catalog, database, tmp_path):
    """
    A file that the check has seen may be deleted before the check is recorded.
    """
    await manage_files(catalog, database, tmp_path / "models", {"m": 1})
    database.run("UPDATE models SET state = 'missing', state_detail = ?", BEING_DELETED)

    await check_models(catalog)

    assert (await catalog.get_model("m", "hf")).state_detail == BEING_DELETED


def assert_readable_by_huggingface_hub(root):
    hub = pytest.importorskip("huggingface_hub")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = hub.scan_cache_dir(root)
    assert found.warnings == []
    return {
        (repository.repo_id, revision.commit_hash)
        for repository in found.repos
        for revision in repository.revisions
    }


async def test_a_revision_of_a_hub_cache_leaves_what_others_need(catalog, database, tmp_path):
    """
    The blobs of the other revision stay, and huggingface_hub reads the cache without a warning.
    """
    cache = HuggingFace(tmp_path / "hub")
    cache.write_marker_files()
    shared = os.urandom(32 * KIB)
    files = {"model.safetensors": shared, "sub/config.json": b"{}"}
    cache.revision("org/m", C1, files, refs=("main", "pr/1"), tree=files)
    cache.revision("org/m", C2, {**files, "new.json": b"[1]"}, refs=("v2",), tree=files)
    await manage_hub_cache(catalog, database, cache.root)
    before = disk_usage(cache.root)
    (first,) = (await plan_deletion(catalog, [f"hf:org/m@{C1}"])).models

    plan = await plan_eviction(catalog, keep_days=0)
    database.run("UPDATE models SET pinned_at = 1 WHERE version = ?", C2)
    result = await plan.execute(catalog)

    repository = cache.repository("org/m")
    assert result.freed_bytes == first.freed_bytes == before - disk_usage(cache.root)
    assert assert_readable_by_huggingface_hub(cache.root) == {("org/m", C2)}
    assert paths_below(repository / "refs") == {"v2"}
    assert paths_below(repository / "trees") == {f"{C2}.json"}
    assert (repository / f"snapshots/{C2}/model.safetensors").read_bytes() == shared
    assert (await check_models(catalog)).counts == {FileState.PRESENT: 1}


async def test_the_last_revision_of_a_hub_cache_takes_its_repository_along(
    catalog, database, tmp_path
):
    """
    Nothing of the repository is left; the folder of the cache itself stays.
    """
    cache = HuggingFace(tmp_path / "hub")
    files = {"model.safetensors": os.urandom(32 * KIB), "sub/config.json": b"{}"}
    for commit in (C1, C2):
        cache.revision("org/m", commit, files, tree=files)
        absent = cache.repository("org/m") / ".no_exist" / commit / "sub/adapter_config.json"
        absent.parent.mkdir(parents=True)
        absent.touch()
    cache.revision("org/other", C1, files)
    await manage_hub_cache(catalog, database, cache.root)
    await catalog.pin_model("org/other", "hf")
    before = disk_usage(cache.root)

    plan = await plan_eviction(catalog, keep_days=0)
    result = await plan.execute(catalog)

    assert result.freed_bytes == plan.freed_bytes == before - disk_usage(cache.root)
    assert {path.name for path in cache.root.iterdir()} == {"models--org--other"}
    assert assert_readable_by_huggingface_hub(cache.root) == {("org/other", C1)}


async def test_a_blob_that_repositories_share_is_deleted_with_its_last_link(
    catalog, database, tmp_path
):
    """
    huggingface_hub moves a blob to a folder of the cache, and lists the links to it beside it.
    """
    cache = HuggingFace(tmp_path / "hub")
    data = os.urandom(64 * KIB)
    for name in ("org/a", "org/b"):
        cache.revision(name, C1, {"model.safetensors": data})
        blob = cache.share_blob(name, "model.safetensors", data)
        shared = blob.resolve()
        manifest = shared.with_name(f"{shared.name}.refs")
        links = [path for path in cache.root.glob("models--*/blobs/*") if path.is_symlink()]
        manifest.write_text("".join(f"{path.relative_to(cache.root)}\n" for path in links))
    await manage_hub_cache(catalog, database, cache.root)
    await catalog.pin_model("org/b", "hf")
    first = await (await plan_eviction(catalog, keep_days=0)).execute(catalog)
    still_there = shared.is_file()
    await catalog.unpin_model("org/b", "hf")

    plan = await plan_eviction(catalog, keep_days=0)
    result = await plan.execute(catalog)

    assert first.freed_bytes < 64 * KIB <= result.freed_bytes == plan.freed_bytes
    assert still_there
    assert not shared.exists()
    assert not manifest.exists()
    assert assert_readable_by_huggingface_hub(cache.root) == set()


async def test_blobs_that_a_revision_without_a_record_has_stay(catalog, database, tmp_path):
    """
    Another program has downloaded it into the cache since the last scan.
    """
    cache = HuggingFace(tmp_path / "hub")
    data = os.urandom(32 * KIB)
    cache.revision("org/m", C1, {"model.safetensors": data}, refs=("v1",))
    await manage_hub_cache(catalog, database, cache.root)
    (blob,) = (cache.repository("org/m") / "blobs").iterdir()
    snapshot = cache.repository("org/m") / "snapshots" / C2
    cache.link(snapshot, "model.safetensors", blob)

    plan = await plan_eviction(catalog, keep_days=0)
    result = await plan.execute(catalog)

    assert references(result.evicted) == ["org/m"]
    assert result.freed_bytes == plan.freed_bytes < 32 * KIB
    assert (snapshot / "model.safetensors").read_bytes() == data
    assert assert_readable_by_huggingface_hub(cache.root) == {("org/m", C2)}


async def test_a_shared_blob_that_a_repository_without_a_record_has_stays(
    catalog, database, tmp_path
):
    """
    The list of links beside the blob names a link of another repository.
    """
    cache = HuggingFace(tmp_path / "hub")
    data = os.urandom(32 * KIB)
    for name in ("org/a", "org/b"):
        cache.revision(name, C1, {"model.safetensors": data})
        shared = cache.share_blob(name, "model.safetensors", data).resolve()
    links = [path for path in cache.root.glob("models--*/blobs/*") if path.is_symlink()]
    shared.with_name(f"{shared.name}.refs").write_text(
        "".join(f"{path.relative_to(cache.root)}\n" for path in links)
    )
    await manage_hub_cache(catalog, database, cache.root)
    await catalog.remove_model("org/b", "hf")

    plan = await plan_eviction(catalog, keep_days=0)
    result = await plan.execute(catalog)

    assert result.freed_bytes == plan.freed_bytes < 32 * KIB
    assert shared.read_bytes() == data
    assert assert_readable_by_huggingface_hub(cache.root) == {("org/b", C1)}
