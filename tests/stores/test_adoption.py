"""Adoption: it records the models of a scan in place, and a second run writes nothing."""

import asyncio
import os
import sqlite3
import struct
from contextlib import closing
from dataclasses import replace

import pytest
from adoption_helpers import FILES, GGUF, OTHER, adopt_scan, make_hub, names, scan
from conftest import a_model
from layouts import C1, C2, HuggingFace, Ollama, fill, listing, sha256
from schema_shape import digest

from model_catalog import FileState, open_catalog
from model_catalog.cli.commands.demo_files import make_gguf
from model_catalog.upkeep import (
    adopt,
    check_models,
    register_path,
    scan_store,
    verify_models,
)
from model_catalog.upkeep.store_sync import adoption

# They test files more than statements, which the slow tests run on PostgreSQL too.
pytestmark = pytest.mark.slow_with("asyncpg")


@pytest.fixture
def hub(tmp_path):
    return make_hub(tmp_path)


async def test_found_models_are_recorded_in_place(catalog, hub):
    """
    Each revision is a version, its refs are aliases, and the model states its store.
    """
    before = listing(hub.root)

    done = await adopt_scan(catalog, hub)

    assert names(done.new) == [("org/a", C1), ("org/a", C2), ("org/b", C1)]
    assert (done.changed, done.gone, done.unchanged, done.problems) == ((), (), (), ())
    model = await catalog.get_model("org/a", "hf", "v1")
    assert (model.version, model.state, model.format) == (C1, FileState.PRESENT, "gguf")
    assert (model.store, model.store_root) == ("huggingface", str(hub.root))
    assert model.foreign
    assert model.local_path == str(hub.repository("org/a") / "snapshots" / C1)
    assert model.size_bytes == len(GGUF) + 2
    assert listing(hub.root) == before


async def test_expected_digests_come_from_the_store(catalog, hub, tmp_path):
    """
    The name of a blob is its expected digest. Nothing is hashed until a verification.
    """
    Ollama(tmp_path / "ollama").model("llama3:8b", GGUF)
    hub.blob("org/b", "b.gguf", GGUF).write_bytes(OTHER)

    await adopt_scan(catalog, hub)
    await adopt(catalog, scan("ollama", tmp_path / "ollama"))

    (file,) = await catalog.list_files("org/b", "hf")
    assert (file.digest, file.hashed_at) == (f"sha256:{sha256(GGUF)}", None)
    model = await catalog.get_model("llama3", "ollama", "8b")
    assert (model.architecture, model.quantization) == ("llama", "Q4_K_M")
    assert {each.role for each in await catalog.list_files("llama3", "ollama")} >= {"weights"}
    bad = [each async for each in verify_models(catalog, reference="org/b")]
    assert [str(each.verdict) for each in bad] == ["mismatch"]
    assert (await adopt_scan(catalog, hub)).changed == ()


async def test_a_second_run_writes_nothing(database, hub):
    """
    Without differences no byte of the database or of its log changes.
    """
    async with open_catalog(database.target) as catalog:
        await adopt_scan(catalog, hub)
        before = digest(database)

        again = await adopt_scan(catalog, hub)
        after = digest(database)

    assert (again.new, again.changed, again.gone) == ((), (), ())
    assert len(again.unchanged) == 3
    assert without_index(after) == without_index(before)


def without_index(files):
    """Leave out the -shm file of SQLite: readers write to it, and it contains no data."""
    if not any(str(name).startswith("catalog.db") for name in files):
        return files
    return {name: value for name, value in files.items() if not name.endswith("-shm")}


async def test_a_dry_run_returns_the_same_report_and_writes_nothing(database, hub):
    """
    The adoption that follows returns an equal report.
    """
    async with open_catalog(database.target) as catalog:
        before = without_index(digest(database))
        dry = await adopt_scan(catalog, hub, dry_run=True)
        after = without_index(digest(database))

        assert dry == await adopt_scan(catalog, hub)
    assert before == after


async def test_a_removed_model_becomes_missing_and_is_never_deleted(catalog, hub):
    """
    The row keeps all that the user has added, and is present again when the model is.
    """
    await adopt_scan(catalog, hub)
    await catalog.tag_model("org/b", "hf", "Chat")
    await catalog.update_model("org/b", "hf", description="mine")
    await catalog.pin_model("org/b", "hf", reason="why not")
    away = hub.root.parent / "away"
    hub.repository("org/b").rename(away)

    gone = await adopt_scan(catalog, hub)
    missing = await catalog.get_model("org/b", "hf")
    once_more = await adopt_scan(catalog, hub)
    away.rename(hub.repository("org/b"))
    back = await adopt_scan(catalog, hub)

    assert names(gone.gone) == [("org/b", C1)]
    assert (missing.state, missing.missing_since is None) == (FileState.MISSING, False)
    assert (once_more.gone, once_more.changed, once_more.new) == ((), (), ())
    assert [(each.ref.reference, each.detail) for each in back.changed] == [
        ("org/b", "present again")
    ]
    model = await catalog.get_model("org/b", "hf")
    assert (model.state, model.missing_since) == (FileState.PRESENT, None)
    assert (model.tags, model.description, model.pin_reason) == (("Chat",), "mine", "why not")
    assert model.id == missing.id


async def test_a_check_does_not_restore_a_model_that_its_store_removed(catalog, tmp_path):
    """
    Ollama removes a manifest and keeps the blobs that another manifest lists.
    """
    store = Ollama(tmp_path / "ollama")
    manifest = store.model("a:one", GGUF)
    store.model("a:two", GGUF)
    await adopt(catalog, scan("ollama", store.root))
    text = manifest.read_text()
    manifest.unlink()

    gone = await adopt(catalog, scan("ollama", store.root))
    checked = await check_models(catalog)
    again = await adopt(catalog, scan("ollama", store.root))
    manifest.write_text(text)
    back = await adopt(catalog, scan("ollama", store.root))

    assert names(gone.gone) == [("a", "one")]
    assert checked.counts == {FileState.MISSING: 1, FileState.PRESENT: 1}
    assert (again.gone, again.changed) == ((), ())
    assert names(back.changed) == [("a", "one")]
    assert (await check_models(catalog)).is_as_recorded


async def test_a_model_that_a_problem_hides_is_not_missing(catalog, tmp_path):
    """
    A truncated manifest, or a root that does not exist, tells nothing about its models.
    """
    store = Ollama(tmp_path / "ollama")
    store.model("a", GGUF)
    manifest = store.model("b", OTHER)
    await adopt(catalog, scan("ollama", store.root))
    manifest.write_bytes(manifest.read_bytes()[:-5])

    broken = await adopt(catalog, scan("ollama", store.root))
    store.root.rename(tmp_path / "elsewhere")
    nowhere = await adopt(catalog, scan("ollama", store.root))

    assert (broken.gone, nowhere.gone) == ((), ())
    assert len(broken.problems) == len(nowhere.problems) == 1
    assert await catalog.count_models(state=FileState.PRESENT) == 2


async def test_a_store_on_an_unmounted_disk_is_offline(catalog, disk):
    """
    The models of an empty mount point do not become missing.
    """
    cache = HuggingFace(disk / "hub")
    cache.revision("org/a", C1, FILES)
    await adopt_scan(catalog, cache)
    os.system(f"umount {disk}")
    cache.root.mkdir()

    done = await adopt_scan(catalog, cache)

    assert done.gone == ()
    assert [problem.path for problem in done.problems] == [str(cache.root)]
    assert (await catalog.get_model("org/a", "hf")).state is FileState.OFFLINE
    assert (await adopt_scan(catalog, cache)).changed == ()


async def test_a_modified_file_is_changed_until_it_is_verified(catalog, hub):
    """
    Its state is that of a check, until its bytes have been read.
    """
    await adopt_scan(catalog, hub)
    blob = hub.repository("org/b") / "blobs" / sha256(GGUF)
    blob.write_bytes(OTHER)

    done = await adopt_scan(catalog, hub)

    assert [(each.ref.reference, each.detail) for each in done.changed] == [("org/b", "changed")]
    assert (await catalog.get_model("org/b", "hf")).state is FileState.CHANGED
    assert (await adopt_scan(catalog, hub)).changed == ()
    blob.write_bytes(GGUF)
    assert [each async for each in verify_models(catalog, reference="org/b")]
    assert (await catalog.get_model("org/b", "hf")).state is FileState.PRESENT
    assert (await adopt_scan(catalog, hub)).changed == ()


async def test_a_damaged_model_that_returns_is_present_and_damaged(catalog, hub, tmp_path):
    """
    Wrong bytes do not make a model missing.
    """
    hub.blob("org/b", "b.gguf", GGUF).write_bytes(OTHER)
    await adopt_scan(catalog, hub)
    assert [each async for each in verify_models(catalog, reference="org/b")]
    away = hub.repository("org/b").rename(tmp_path / "away")
    await adopt_scan(catalog, hub)
    away.rename(hub.repository("org/b"))

    await adopt_scan(catalog, hub)

    model = await catalog.get_model("org/b", "hf")
    assert (model.state, model.found_digest) == (FileState.PRESENT, f"sha256:{sha256(OTHER)}")


async def test_files_that_are_added_later_are_listed(catalog, hub):
    """
    A continued download changes the model: it keeps its tags and loses its verification.
    """
    await adopt_scan(catalog, hub)
    await catalog.tag_model("org/b", "hf", "Chat")
    assert [each async for each in verify_models(catalog, reference="org/b")]
    blob = hub.blob("org/b", "c.txt", OTHER)
    hub.link(hub.repository("org/b") / "snapshots" / C1, "c.txt", blob)

    done = await adopt_scan(catalog, hub)

    assert [(each.ref.reference, each.detail) for each in done.changed] == [
        ("org/b", "its files changed")
    ]
    model = await catalog.get_model("org/b", "hf")
    assert (model.size_bytes, model.verified_at, model.tags) == (208, None, ("Chat",))
    files = await catalog.list_files("org/b", "hf")
    assert [(file.path, file.hashed_at is None) for file in files] == [
        ("b.gguf", False),
        ("c.txt", True),
    ]
    assert (await check_models(catalog)).is_as_recorded


async def test_an_incomplete_model_is_recorded_with_the_reasons(catalog, tmp_path):
    """
    A partial download is a model. The reasons disappear when it is complete.
    """
    cache = HuggingFace(tmp_path)
    files = {"model.safetensors": struct.pack("<Q", 2) + b"{}", "config.json": b"{}"}
    tree = {**files, "tokenizer.json": b"{}"}
    snapshot = cache.revision("org/a", C1, files, tree=tree)
    await adopt_scan(catalog, cache)
    partial = await catalog.get_model("org/a", "hf")
    cache.link(snapshot, "tokenizer.json", cache.blob("org/a", "tokenizer.json", b"{}"))

    await adopt_scan(catalog, cache)

    assert partial.incomplete_reason == "not downloaded: 'tokenizer.json'"
    assert (await catalog.get_model("org/a", "hf")).incomplete_reason is None


async def test_a_verification_does_not_change_the_next_adoption(catalog, tmp_path):
    """
    It adds digests that the store does not state, and the adoption reports no change.
    """
    weights = make_gguf("llama", context_length=2048)
    HuggingFace(tmp_path / "hub").revision("o/m", C1, {"m.gguf": weights, "config.json": b"{}"})
    Ollama(tmp_path / "ollama").model("m", weights)
    fill(tmp_path / "plain", m__gguf=weights)
    stores = [("huggingface", "hub"), ("ollama", "ollama"), ("directory", "plain")]
    for store, name in stores:
        await adopt(catalog, scan(store, tmp_path / name))

    verdicts = [str(each.verdict) async for each in verify_models(catalog)]
    checked = await check_models(catalog)

    assert verdicts == ["ok"] * 3
    assert checked.is_as_recorded
    for store, name in stores:
        done = await adopt(catalog, scan(store, tmp_path / name))
        assert (done.changed, len(done.unchanged)) == ((), 1), store
    assert await catalog.count_models(state=FileState.PRESENT) == 3


async def test_models_of_stores_can_be_filtered(catalog, hub, tmp_path):
    """
    The filters `foreign` and `store` select them.
    """
    fill(tmp_path / "plain", mine__gguf=GGUF)
    await register_path(catalog, tmp_path / "plain/mine.gguf", provider="local", reference="mine")
    await adopt_scan(catalog, hub)

    assert [model.reference for model in await catalog.list_models(foreign=False)] == ["mine"]
    assert await catalog.count_models(foreign=True) == 3
    assert await catalog.count_models(store="huggingface") == 3
    assert await catalog.count_models(store="ollama") == 0


@pytest.mark.parametrize("store", ["lmstudio", "llamacpp", "directory"])
async def test_every_kind_of_store_is_adopted(catalog, tmp_path, store):
    """
    A second adoption of a store without manifests reports no change either.
    """
    fill(tmp_path / store, org___a___m__gguf=GGUF, b__gguf=OTHER)
    first = await adopt(catalog, scan(store, tmp_path / store))

    again = await adopt(catalog, scan(store, tmp_path / store))

    assert first.new
    assert (again.new, again.changed, again.gone) == ((), (), ())
    assert again.unchanged == tuple(each.ref for each in first.new)
    assert (await check_models(catalog)).is_as_recorded


async def test_a_scan_runs_in_a_thread_and_skips_the_catalog(tmp_path):
    """
    It reports progress, and does not open the database of the catalog.
    """
    fill(tmp_path / "models", **{f"m{number}__gguf": GGUF for number in range(5)})
    counts = []
    async with open_catalog(tmp_path / "models/catalog.gguf") as catalog:
        found = await scan_store(
            catalog, "directory", tmp_path / "models", on_progress=counts.append
        )
        await asyncio.sleep(0)

    assert counts[0] == 1
    assert [model.reference for model in found.found] == [f"m{number}.gguf" for number in range(5)]
    assert [problem.reason for problem in found.problems] == ["it is the catalog's own database"]


async def test_an_adoption_reports_its_progress(catalog, hub):
    """
    The function is called in the event loop with the number of models that were compared.
    """
    counts = []

    await adopt_scan(catalog, hub, on_progress=counts.append)

    assert counts[0] == 1


async def test_a_model_that_is_removed_during_the_adoption_is_a_problem(catalog, hub, monkeypatch):
    """
    Another task removes it. It is left out, and the other models are recorded.
    """
    await adopt_scan(catalog, hub)
    hub.link(hub.repository("org/b") / "snapshots" / C1, "c.txt", hub.blob("org/b", "c.txt", OTHER))
    found = scan("huggingface", hub.root)
    read = adoption.load_store_rows

    async def stored(*arguments):
        rows = await read(*arguments)
        await catalog.remove_model("org/b", "hf")
        # SQLite gives it the id of the removed model.
        await catalog.register_model(a_model("org/z"))
        return rows

    monkeypatch.setattr(adoption, "load_store_rows", stored)
    done = await adopt(catalog, found)

    assert done.changed == ()
    assert not (await catalog.get_model("org/z", "hf")).foreign
    assert [problem.reason for problem in done.problems] == [
        "the model was registered or removed during the scan; scan again"
    ]
    assert await catalog.find_model("org/b", "hf") is None


@pytest.mark.parametrize(
    ("invalid", "field"),
    [
        ({"source_url": "\0"}, "source_url"),
        ({"aliases": ("a@b",)}, "alias"),
        ({"reference": " "}, "reference"),
    ],
    ids=["NUL in the URL", "invalid alias", "blank reference"],
)
async def test_a_model_with_an_invalid_field_is_a_problem(catalog, hub, invalid, field):
    """
    The other models are recorded.
    """
    found = scan("huggingface", hub.root)
    first, *others = found.found

    done = await adopt(catalog, replace(found, found=(replace(first, **invalid), *others)))

    assert names(done.new) == [("org/a", C2), ("org/b", C1)]
    assert [problem.reason.split()[0] for problem in done.problems] == [field]
    assert await catalog.count_models() == 2


async def test_a_model_with_a_file_path_outside_of_it_is_a_problem(catalog, hub):
    """
    The list of a scanner is validated, and the other models are recorded.
    """
    found = scan("huggingface", hub.root)
    first, *others = found.found
    outside = replace(first.files[0], path="../../etc/passwd")

    done = await adopt(catalog, replace(found, found=(replace(first, files=(outside,)), *others)))

    assert names(done.new) == [("org/a", C2), ("org/b", C1)]
    assert ["files.path" in problem.reason for problem in done.problems] == [True]


async def test_a_run_without_changes_takes_no_write_lock(tmp_path, hub):
    """
    It does not wait while another process writes.
    """
    path = tmp_path / "catalog.db"
    async with open_catalog(path) as catalog:
        await adopt_scan(catalog, hub)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            async with open_catalog(path, timeout_s=0.1) as waiting_briefly:
                done = await adopt_scan(waiting_briefly, hub)
            other.execute("ROLLBACK")

    assert len(done.unchanged) == 3
