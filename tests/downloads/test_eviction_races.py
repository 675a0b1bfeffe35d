"""Evictions at the same time as other evictions, downloads and uses, and changes of the disk."""

import asyncio
import os
import sqlite3
import sys
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest
from conftest import a_model
from managed_models import manage, manage_files, manage_hub_cache, paths_below, reasons, references
from sqlalchemy import Engine, event

from model_catalog import FileRecord, FileState, ModelNotFoundError, NotEnoughSpaceError
from model_catalog.cli.commands.demo_files import make_gguf
from model_catalog.domain.file_record import BEING_DELETED
from model_catalog.downloads import get_or_download, plan_eviction, use_model
from model_catalog.downloads.eviction import execution
from model_catalog.downloads.eviction.deletion import Deletion
from model_catalog.downloads.eviction.found_files import (
    DeletableModel,
    RefusedError,
    find_files,
)
from model_catalog.downloads.eviction.removals import RemovalPlanner, RemovedNames
from model_catalog.files.fingerprint import file_fingerprint
from model_catalog.upkeep import adopt, check_models, register_path, scan_store
from model_catalog.upkeep.queries.verification_queries import save_inspection

sys.path.append(str(Path(__file__).parents[1] / "stores"))
from layouts import C1, HuggingFace

# Most of these are about files, and not about the database.
pytestmark = pytest.mark.slow_with("asyncpg")

KIB = 1024


def prepare(path, root, *, mount_point=None):
    """Return the deletion of a file whose check has ended."""
    record = FileRecord(path.name, path.stat().st_size, fingerprint=str(file_fingerprint(path)))
    found = find_files(DeletableModel(1, str(path), str(root), [record], mount_point))
    return Deletion(found, RemovalPlanner().find_removals(found, is_needed, RemovedNames()))


@pytest.fixture
def model_file(tmp_path):
    path = tmp_path / "models/org/m.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x" * 5000)
    return path


def never():
    return False


def is_needed(_path):
    return False


def test_a_folder_that_becomes_a_link_after_the_check_is_not_followed(model_file, tmp_path):
    """
    The folder of the file was moved, and a link is in its place: the file outside stays.
    """
    deletion = prepare(model_file, tmp_path / "models")
    model_file.parent.rename(tmp_path / "outside")
    model_file.parent.symlink_to(tmp_path / "outside")

    with pytest.raises(RefusedError, match="leads through a link"):
        deletion.run(never, 10)

    assert paths_below(tmp_path / "outside") == {"m.gguf"}


def test_a_root_that_is_replaced_after_the_check_is_not_entered(model_file, tmp_path):
    """
    Another folder has the path of the root now, with a file of the same name.
    """
    deletion = prepare(model_file, tmp_path / "models")
    (tmp_path / "models").rename(tmp_path / "before")
    model_file.parent.mkdir(parents=True)
    model_file.write_bytes(b"new")

    with pytest.raises(RefusedError, match=r"/models' was replaced$"):
        deletion.run(never, 10)

    assert model_file.read_bytes() == b"new"


@pytest.mark.parametrize("kind", ["file", "link", "folder", "written"])
def test_a_name_that_is_replaced_after_the_check_stays(model_file, tmp_path, kind):
    """
    It is compared once more at the moment of its deletion.
    """
    deletion = prepare(model_file, tmp_path / "models")
    if kind != "written":
        model_file.rename(tmp_path / "moved")
    if kind == "file":
        model_file.write_bytes(b"x" * 5000)
    elif kind == "link":
        model_file.symlink_to(tmp_path / "moved")
    elif kind == "folder":
        model_file.mkdir()
    else:
        model_file.write_bytes(b"y" * 5000)

    with pytest.raises(RefusedError, match="was replaced"):
        deletion.run(never, 10)

    assert os.path.lexists(model_file)
    assert deletion.deleted_count == 0


def test_a_disk_that_is_not_mounted_is_left_alone(model_file, tmp_path):
    """
    The files of an unfinished deletion are not gone: their disk is.
    """
    with pytest.raises(RefusedError, match="nothing is mounted"):
        prepare(model_file, tmp_path / "models", mount_point=str(tmp_path / "models"))


async def test_two_executions_of_a_plan_delete_each_model_once(catalog, database, tmp_path):
    """
    The other one keeps it, because it is being deleted or was removed.
    """
    names = [f"m{number}" for number in range(6)]
    await manage_files(catalog, database, tmp_path / "models", dict.fromkeys(names, 4 * KIB))
    plan = await plan_eviction(catalog, keep_days=0)

    results = await asyncio.gather(*(plan.execute(catalog) for _ in range(3)))

    evicted = [each for result in results for each in references(result.evicted)]
    assert sorted(evicted) == names
    assert sum(result.freed_bytes for result in results) == plan.freed_bytes
    assert paths_below(tmp_path / "models") == set()
    kept = {str(each.reason) for result in results for each in result.kept}
    assert kept <= {"being deleted by another process", "changed since the plan was made"}


async def test_an_evicted_model_is_downloaded_again(catalog, tmp_path):
    """
    A model in use is kept. After its eviction the next caller downloads it.
    """
    root = tmp_path / "models"
    calls = []

    async def download(claim):
        calls.append(claim.token)
        path = Path(await claim.create_folder(root)) / "m.gguf"
        path.write_bytes(make_gguf("llama", context_length=len(calls)))
        return path

    await get_or_download(catalog, "hf:org/m", download, root=root)
    plan = await plan_eviction(catalog, keep_days=0)
    async with use_model(catalog, "hf:org/m"):
        used = await plan.execute(catalog)
        planned = await plan_eviction(catalog, keep_days=0)
    evicted = await (await plan_eviction(catalog, keep_days=0)).execute(catalog)
    left = paths_below(root)
    await get_or_download(catalog, "hf:org/m", download, root=root)

    assert reasons(used.kept) == reasons(planned.kept) == {"org/m": "in use"}
    assert references(evicted.evicted) == ["org/m"]
    assert left == set()
    assert len(calls) == 2


async def test_a_model_whose_deletion_was_not_finished_cannot_be_used(catalog, database, tmp_path):
    """
    Some of its files may be gone.
    """
    await manage_files(catalog, database, tmp_path / "models", {"m": 1})
    database.run("UPDATE models SET state = 'missing', state_detail = ?", BEING_DELETED)

    with pytest.raises(ModelNotFoundError):
        async with use_model(catalog, "hf:m"):
            pass


async def test_a_verification_does_not_overrule_a_deletion(catalog, database, tmp_path):
    """
    The bytes were read before they were deleted.
    """
    await manage_files(catalog, database, tmp_path / "models", {"m": 1})
    model = await catalog.get_model("m", "hf")
    database.run("UPDATE models SET state = 'missing', state_detail = ?", BEING_DELETED)

    saved = await save_inspection(catalog, model, {"state": FileState.PRESENT})

    assert saved is None
    assert (await catalog.get_model("m", "hf")).state_detail == BEING_DELETED


@pytest.mark.slow
async def test_a_cancelled_execution_releases_its_claim(catalog, database, tmp_path):
    """
    Cancelled at each statement: nothing has to expire before the next plan finishes the rest.
    """
    loop = asyncio.get_running_loop()
    names = {"a": 5000, "b": 5000}
    cancelled_count = 0
    for number in range(1, 60):
        await manage_files(catalog, database, tmp_path / "models", names)
        plan = await plan_eviction(catalog, keep_days=0)
        task = asyncio.ensure_future(plan.execute(catalog))
        statements = count(1)

        def cancel_at(*_, task=task, statements=statements, number=number):
            if next(statements) == number:
                loop.call_soon_threadsafe(task.cancel)

        event.listen(Engine, "before_cursor_execute", cancel_at)
        await asyncio.wait([task])
        event.remove(Engine, "before_cursor_execute", cancel_at)
        cancelled_count += task.cancelled()
        claims = database.run("SELECT count(*) FROM model_claims")
        result = await (await plan_eviction(catalog, keep_days=0)).execute(catalog)

        assert claims == [(0,)], number
        assert result.kept == ()
        assert paths_below(tmp_path / "models") == set()
        assert await catalog.list_models() == []
        if not task.cancelled() and number > 10:
            break

    assert cancelled_count > 10


def test_the_other_name_of_a_file_is_still_the_recorded_file(tmp_path):
    """
    A killed deletion has removed one of two hard links, which has changed the ctime of the file.
    """
    path, other = tmp_path / "m/a.safetensors", tmp_path / "m/b.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"x" * 5000)
    os.link(path, other)
    fingerprint = str(file_fingerprint(path))
    files = [FileRecord(each.name, 5000, fingerprint=fingerprint) for each in (path, other)]
    path.unlink()
    model = DeletableModel(1, str(path.parent), str(tmp_path), files, is_unfinished=True)

    found = find_files(model)
    other.write_bytes(b"y" * 5000)
    with pytest.raises(RefusedError, match="was modified"):
        find_files(model)

    assert [name.path for (name,) in found.chains] == [str(other)]


@pytest.mark.parametrize("is_listed", [True, False], ids=["listed", "unlisted"])
async def test_a_path_that_another_model_has_got_since_the_plan_stays(
    catalog, database, tmp_path, is_listed
):
    """
    Only the record of the planned model is deleted.
    """
    path = tmp_path / "models/m.gguf"
    await manage_files(catalog, database, path.parent, {"m": 5000})
    plan = await plan_eviction(catalog, keep_days=0)
    if is_listed:
        await register_path(catalog, path, "other", "local")
    else:
        await catalog.register_model(a_model("other", local_path=str(path)))

    result = await plan.execute(catalog)

    assert references(result.evicted) == ["m"]
    assert result.freed_bytes == 0
    assert path.stat().st_size == 5000
    assert [model.reference for model in await catalog.list_models()] == ["other"]


async def test_the_claim_of_a_long_deletion_is_renewed(catalog, database, tmp_path, monkeypatch):
    """
    Here after each file: all files of a model are deleted under one claim.
    """
    folder = tmp_path / "models/m"
    folder.mkdir(parents=True)
    for number in range(12):
        (folder / f"model-{number}.safetensors").write_bytes(b"x")
    await manage(catalog, database, folder, "m", root=tmp_path / "models")
    monkeypatch.setattr(execution, "RENEW_S", 0.0)

    result = await (await plan_eviction(catalog, keep_days=0)).execute(catalog)

    assert references(result.evicted) == ["m"]
    assert paths_below(tmp_path / "models") == set()


async def test_a_lost_claim_ends_a_deletion(on_sqlite, sqlite_file, tmp_path, monkeypatch):
    """
    Another process may have taken it over after it has expired: that one, or the next, finishes.
    """
    folder = tmp_path / "models/m"
    folder.mkdir(parents=True)
    for number in range(4):
        (folder / f"model-{number}.safetensors").write_bytes(b"x")
    monkeypatch.setattr(execution, "RENEW_S", 0.0)
    with closing(sqlite3.connect(sqlite_file, isolation_level=None)) as raw:

        class Raw:
            def run(self, sql, *parameters):
                raw.execute(sql, parameters)

        await manage(on_sqlite, Raw(), folder, "m", root=tmp_path / "models")
        raw.execute(
            "CREATE TRIGGER lose_claim AFTER UPDATE ON models WHEN new.state = 'missing'"
            " BEGIN DELETE FROM model_claims; END"
        )
        result = await (await plan_eviction(on_sqlite, keep_days=0)).execute(on_sqlite)
        raw.execute("DROP TRIGGER lose_claim")
        left = paths_below(tmp_path / "models")
        (model,) = await on_sqlite.list_models()
        finished = await (await plan_eviction(on_sqlite, keep_days=0)).execute(on_sqlite)

    assert reasons(result.kept) == {"m": "being deleted by another process"}
    assert len(left) == 4
    assert model.state_detail == BEING_DELETED
    assert references(finished.evicted) == ["m"]


async def test_a_deletion_that_fails_halfway_is_reported(catalog, database, tmp_path, monkeypatch):
    """
    The record says that the model is not whole, and the next plan keeps it.
    """
    folder = tmp_path / "models/m"
    (folder / "a").mkdir(parents=True)
    (folder / "b").mkdir()
    for path in ("a/model-1.safetensors", "b/model-2.safetensors"):
        (folder / path).write_bytes(b"x" * 5000)
    await manage(catalog, database, folder, "m", root=tmp_path / "models")
    plan = await plan_eviction(catalog, keep_days=0)
    monkeypatch.setattr(execution, "RENEW_S", 0.0)

    def replace_second(_connection, _cursor, statement, *_):
        if statement.startswith("UPDATE model_claims"):
            # The claim is renewed after the first file.
            (folder / "b/model-2.safetensors").write_bytes(b"other")

    event.listen(Engine, "before_cursor_execute", replace_second)
    try:
        result = await plan.execute(catalog)
    finally:
        event.remove(Engine, "before_cursor_execute", replace_second)
    (model,) = await catalog.list_models()
    again = await plan_eviction(catalog, keep_days=0)

    assert reasons(result.kept) == {"m": "its files are not as recorded"}
    assert result.freed_bytes == 8 * KIB
    assert model.state is FileState.MISSING
    assert model.state_detail.startswith("its deletion was not finished")
    assert reasons(again.kept) == {"m": "its files are not as recorded"}
    assert (await check_models(catalog)).counts == {FileState.MISSING: 1}


async def test_a_model_that_is_registered_again_during_its_deletion_is_missing(
    catalog, database, tmp_path
):
    """
    Its record stays, and says that its files are gone.
    """
    await manage_files(catalog, database, tmp_path / "models", {"m": 1})
    plan = await plan_eviction(catalog, keep_days=0)
    seen = []

    def register_again(_connection, _cursor, statement, *_):
        if "FROM model_files" in statement and not seen:
            seen.append(statement)
            database.run("UPDATE models SET state = 'unchecked', state_detail = NULL")

    event.listen(Engine, "before_cursor_execute", register_again)
    result = await plan.execute(catalog)
    event.remove(Engine, "before_cursor_execute", register_again)
    (model,) = await catalog.list_models()

    assert seen
    assert reasons(result.kept) == {"m": "changed since the plan was made"}
    assert model.state is FileState.MISSING
    assert "registered again" in model.state_detail
    assert paths_below(tmp_path / "models") == set()


def test_the_database_itself_is_never_deleted(model_file, tmp_path):
    """
    Even if a model has it among its files.
    """
    status = model_file.stat()
    files = [FileRecord("m.gguf", 5000, fingerprint=str(file_fingerprint(model_file)))]
    model = DeletableModel(1, str(model_file), str(tmp_path), files)

    with pytest.raises(RefusedError, match="the catalog's database"):
        find_files(model, {(status.st_dev, status.st_ino)})


def test_a_shared_blob_that_gets_a_link_after_the_check_stays(tmp_path):
    """
    huggingface_hub has linked another repository to it, and has listed the link.
    """
    cache = HuggingFace(tmp_path / "hub")
    data = b"x" * 65536
    snapshot = cache.revision("org/a", C1, {"model.safetensors": data})
    blob = cache.share_blob("org/a", "model.safetensors", data)
    shared = blob.resolve()
    manifest = shared.with_name(f"{shared.name}.refs")
    manifest.write_text(f"{blob.relative_to(cache.root)}\n")
    deletion = prepare(snapshot / "model.safetensors", cache.root)
    (cache.repository("org/b") / "blobs").mkdir(parents=True)
    other = cache.repository("org/b") / "blobs" / blob.name
    other.symlink_to(os.path.relpath(shared, other.parent))
    manifest.write_text(f"{manifest.read_text()}{other.relative_to(cache.root)}\n")

    deletion.run(never, 10)

    assert other.read_bytes() == data
    assert manifest.is_file()
    assert not cache.repository("org/a").exists()
    assert deletion.freed_bytes < 65536


async def test_a_scan_does_not_overrule_a_deletion(catalog, database, tmp_path):
    """
    The files that it has seen may be deleted before its result is recorded.
    """
    cache = HuggingFace(tmp_path / "hub")
    cache.revision("org/m", C1, {"model.safetensors": b"x"})
    await manage_hub_cache(catalog, database, cache.root)
    found = await scan_store(catalog, "huggingface", cache.root)
    database.run("UPDATE models SET state = 'missing', state_detail = ?", BEING_DELETED)

    await adopt(catalog, found, headers=False)

    assert (await catalog.get_model("org/m", "hf")).state_detail == BEING_DELETED


async def test_the_error_of_a_full_disk_has_the_plan_that_makes_room(catalog, database, disk):
    """
    Only models on the same disk are planned. After the plan the download begins.
    """
    await manage_files(catalog, database, disk / "models", {"old": 3_000_000, "new": 500_000})

    async def download(claim):
        path = Path(await claim.create_folder(disk / "models")) / "m.gguf"
        path.write_bytes(make_gguf("llama", context_length=1))
        return path

    with pytest.raises(NotEnoughSpaceError) as caught:
        await get_or_download(catalog, "hf:m", download, root=disk / "models", size_bytes=2_500_000)
    await caught.value.plan.execute(catalog)
    await get_or_download(catalog, "hf:m", download, root=disk / "models", size_bytes=2_500_000)

    assert references(caught.value.plan.models) == ["old"]
    assert {model.reference for model in await catalog.list_models()} == {"new", "m"}
