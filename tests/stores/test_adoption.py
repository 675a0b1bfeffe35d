"""What a scan found gets into the catalog, where it lies, and nothing is written twice."""

import asyncio
import os
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace

import pytest
from conftest import a_model
from layouts import C1, C2, HuggingFace, Ollama, fill, listing, sha256
from schema_shape import digest

from model_catalog import FileState, open_catalog
from model_catalog.cli.commands.demo_files import make_gguf
from model_catalog.stores.store_kinds import SCANNERS
from model_catalog.upkeep import (
    adopt,
    check_models,
    register_path,
    relink_model,
    scan_store,
    verify_models,
)
from model_catalog.upkeep.store_sync import adoption

GGUF = b"GGUF" + bytes(100)
OTHER = b"GGUF" + bytes(99) + b"1"
FILES = {"m.gguf": GGUF, "config.json": b"{}"}


@pytest.fixture
def hub(tmp_path):
    """A cache with two revisions of one repository and one of another."""
    cache = HuggingFace(tmp_path / "hub")
    cache.write_marker_files()
    cache.revision("org/a", C1, FILES, refs=("main", "v1"))
    cache.revision("org/a", C2, {"m.gguf": OTHER}, refs=("next",))
    cache.revision("org/b", C1, {"b.gguf": GGUF})
    return cache


def scan(store, root):
    return SCANNERS[store](root)


async def adopted(catalog, cache, **options):
    return await adopt(catalog, scan("huggingface", cache.root), **options)


def names(sightings):
    return [(each.ref.reference, each.ref.version) for each in sightings]


async def test_what_a_scan_found_is_recorded_where_it_lies(catalog, hub):
    """
    Every revision is a version, its refs are aliases, and the store says whose it is.
    """
    before = listing(hub.root)

    done = await adopted(catalog, hub)

    assert names(done.new) == [("org/a", C1), ("org/a", C2), ("org/b", C1)]
    assert (done.changed, done.gone, done.unchanged, done.problems) == ((), (), (), ())
    model = await catalog.get_model("org/a", "hf", "v1")
    assert (model.version, model.state, model.format) == (C1, FileState.PRESENT, "gguf")
    assert (model.store, model.store_root) == ("huggingface", str(hub.root))
    assert model.foreign
    assert model.local_path == str(hub.repository("org/a") / "snapshots" / C1)
    assert model.size_bytes == len(GGUF) + 2
    assert listing(hub.root) == before


async def test_expected_digests_are_those_of_the_store(catalog, hub, tmp_path):
    """
    The name of a blob is what its bytes ought to be: nothing is hashed, and a verification tells.
    """
    Ollama(tmp_path / "ollama").model("llama3:8b", GGUF)
    hub.blob("org/b", "b.gguf", GGUF).write_bytes(OTHER)

    await adopted(catalog, hub)
    await adopt(catalog, scan("ollama", tmp_path / "ollama"))

    (file,) = await catalog.list_files("org/b", "hf")
    assert (file.digest, file.hashed_at) == (f"sha256:{sha256(GGUF)}", None)
    model = await catalog.get_model("llama3", "ollama", "8b")
    assert (model.architecture, model.quantization) == ("llama", "Q4_K_M")
    assert {each.role for each in await catalog.list_files("llama3", "ollama")} >= {"weights"}
    bad = [each async for each in verify_models(catalog, reference="org/b")]
    assert [str(each.verdict) for each in bad] == ["mismatch"]
    assert (await adopted(catalog, hub)).changed == ()


async def test_a_second_run_writes_nothing(database, hub):
    """
    Where nothing differs not one byte of the database is another, nor of its log.
    """
    async with open_catalog(database.target) as catalog:
        await adopted(catalog, hub)
        before = digest(database)

        again = await adopted(catalog, hub)
        after = digest(database)

    assert (again.new, again.changed, again.gone) == ((), (), ())
    assert len(again.unchanged) == 3
    assert without_index(after) == without_index(before)


def without_index(files):
    """The index of the log is memory that is shared by readers, and no part of the database."""
    if not any(str(name).startswith("catalog.db") for name in files):
        return files
    return {name: value for name, value in files.items() if not name.endswith("-shm")}


async def test_a_dry_run_says_the_same_and_writes_nothing(database, hub):
    """
    What it returns is what the adoption returns after it.
    """
    async with open_catalog(database.target) as catalog:
        before = without_index(digest(database))
        dry = await adopted(catalog, hub, dry_run=True)
        after = without_index(digest(database))

        assert dry == await adopted(catalog, hub)
    assert before == after


async def test_what_vanished_becomes_missing_and_is_never_deleted(catalog, hub):
    """
    The row stays with all that the user has attached, and is there again when the model is.
    """
    await adopted(catalog, hub)
    await catalog.tag_model("org/b", "hf", "Chat")
    await catalog.update_model("org/b", "hf", description="mine")
    await catalog.pin_model("org/b", "hf", reason="why not")
    away = hub.root.parent / "away"
    hub.repository("org/b").rename(away)

    gone = await adopted(catalog, hub)
    missing = await catalog.get_model("org/b", "hf")
    once_more = await adopted(catalog, hub)
    away.rename(hub.repository("org/b"))
    back = await adopted(catalog, hub)

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


async def test_a_check_does_not_bring_back_what_its_store_has_forgotten(catalog, tmp_path):
    """
    Ollama removes a manifest and keeps the blobs that another one names: the model has gone.
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


async def test_what_a_problem_hides_is_not_gone(catalog, tmp_path):
    """
    Of a half-written manifest, and of a root that is not there, nothing is learned.
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


async def test_a_store_whose_disk_is_not_mounted_is_offline(catalog, disk):
    """
    An empty mount point is no reason to call its models missing.
    """
    cache = HuggingFace(disk / "hub")
    cache.revision("org/a", C1, FILES)
    await adopted(catalog, cache)
    os.system(f"umount {disk}")
    cache.root.mkdir()

    done = await adopted(catalog, cache)

    assert done.gone == ()
    assert [problem.path for problem in done.problems] == [str(cache.root)]
    assert (await catalog.get_model("org/a", "hf")).state is FileState.OFFLINE
    assert (await adopted(catalog, cache)).changed == ()


async def test_an_alias_moves_as_its_ref_does(catalog, hub):
    """
    A ref that names another commit moves its alias; one that is no more takes it away.
    """
    await adopted(catalog, hub)
    refs = hub.repository("org/a") / "refs"
    refs.joinpath("main").write_text(C2)
    refs.joinpath("v1").unlink()

    done = await adopted(catalog, hub)

    assert sorted(each.detail for each in done.changed) == ["alias main set", "alias v1 removed"]
    pointed = {each.alias: each.version for each in await catalog.list_aliases("org/a", "hf")}
    assert pointed == {"main": C2, "next": C2}
    assert (await adopted(catalog, hub)).changed == ()


async def test_an_alias_of_a_ref_that_cannot_be_read_stays(catalog, hub):
    """
    A damaged ref is a problem, and says nothing of where it points.
    """
    await adopted(catalog, hub)
    hub.repository("org/a").joinpath("refs/main").write_text("../../etc/passwd")

    done = await adopted(catalog, hub)

    assert (len(done.problems), done.changed) == (1, ())
    assert (await catalog.get_model("org/a", "hf", "main")).version == C1


async def test_the_users_own_alias_wins_and_is_told_of(catalog, hub):
    """
    Nobody moves what the user has pointed somewhere, be it before the ref or after it.
    """
    await adopted(catalog, hub)
    await catalog.set_alias("org/a", "hf", "main", C2)

    done = await adopted(catalog, hub)

    assert (await catalog.get_model("org/a", "hf", "main")).version == C2
    assert [("'main'" in problem.reason, problem.version) for problem in done.problems] == [
        (True, C1)
    ]
    assert done.changed == ()


async def test_aliases_of_a_store_travel_as_such(catalog, hub, tmp_path):
    """
    After an export and an import a ref still moves its alias.
    """
    await adopted(catalog, hub)
    with (tmp_path / "out").open("w+") as stream:
        await catalog.export_catalog(stream)
        for model in await catalog.list_models():
            await catalog.remove_model(model.reference, model.provider)
        stream.seek(0)
        await catalog.import_catalog(stream)
    assert (await adopted(catalog, hub)).changed == ()
    hub.repository("org/a").joinpath("refs/main").write_text(C2)

    done = await adopted(catalog, hub)

    assert done.problems == ()
    assert (await catalog.get_model("org/a", "hf", "main")).version == C2


async def test_a_touched_file_is_not_taken_for_the_one_that_had_the_digest(catalog, hub):
    """
    It is changed, as a check would say, until somebody has read it.
    """
    await adopted(catalog, hub)
    blob = hub.repository("org/b") / "blobs" / sha256(GGUF)
    blob.write_bytes(OTHER)

    done = await adopted(catalog, hub)

    assert [(each.ref.reference, each.detail) for each in done.changed] == [("org/b", "changed")]
    assert (await catalog.get_model("org/b", "hf")).state is FileState.CHANGED
    assert (await adopted(catalog, hub)).changed == ()
    blob.write_bytes(GGUF)
    assert [each async for each in verify_models(catalog, reference="org/b")]
    assert (await catalog.get_model("org/b", "hf")).state is FileState.PRESENT
    assert (await adopted(catalog, hub)).changed == ()


async def test_a_damaged_model_that_is_back_is_present_and_damaged(catalog, hub, tmp_path):
    """
    That its bytes were not the expected ones is no reason to call it missing.
    """
    hub.blob("org/b", "b.gguf", GGUF).write_bytes(OTHER)
    await adopted(catalog, hub)
    assert [each async for each in verify_models(catalog, reference="org/b")]
    away = hub.repository("org/b").rename(tmp_path / "away")
    await adopted(catalog, hub)
    away.rename(hub.repository("org/b"))

    await adopted(catalog, hub)

    model = await catalog.get_model("org/b", "hf")
    assert (model.state, model.found_digest) == (FileState.PRESENT, f"sha256:{sha256(OTHER)}")


async def test_files_that_came_later_are_listed(catalog, hub):
    """
    A download that went on makes the model another; its tags stay, its verification does not.
    """
    await adopted(catalog, hub)
    await catalog.tag_model("org/b", "hf", "Chat")
    assert [each async for each in verify_models(catalog, reference="org/b")]
    blob = hub.blob("org/b", "c.gguf", OTHER)
    hub.link(hub.repository("org/b") / "snapshots" / C1, "c.gguf", blob)

    done = await adopted(catalog, hub)

    assert [(each.ref.reference, each.detail) for each in done.changed] == [
        ("org/b", "its files changed")
    ]
    model = await catalog.get_model("org/b", "hf")
    assert (model.size_bytes, model.verified_at, model.tags) == (208, None, ("Chat",))
    files = await catalog.list_files("org/b", "hf")
    assert [(file.path, file.hashed_at is None) for file in files] == [
        ("b.gguf", False),
        ("c.gguf", True),
    ]
    assert (await check_models(catalog)).is_as_recorded


async def test_what_is_not_whole_is_recorded_with_the_reasons(catalog, tmp_path):
    """
    A partial download is a model all the same, and whole once the rest is there.
    """
    cache = HuggingFace(tmp_path)
    tree = {**FILES, "more.gguf": OTHER}
    snapshot = cache.revision("org/a", C1, FILES, tree=tree)
    await adopted(catalog, cache)
    partial = await catalog.get_model("org/a", "hf")
    cache.link(snapshot, "more.gguf", cache.blob("org/a", "more.gguf", OTHER))

    await adopted(catalog, cache)

    assert "more.gguf" in partial.incomplete_reason
    assert (await catalog.get_model("org/a", "hf")).incomplete_reason is None


async def test_two_stores_may_hold_a_model_of_one_name(catalog, tmp_path):
    """
    The second is called by the path of its store as well, in whatever order they are scanned again.
    """
    first, second = Ollama(tmp_path / "mine"), Ollama(tmp_path / "service")
    for store in (first, second):
        store.model("llama3", GGUF)

    await adopt(catalog, scan("ollama", first.root))
    done = await adopt(catalog, scan("ollama", second.root))

    apart = f"{second.root}/llama3"
    assert names(done.new) == [(apart, "latest")]
    for store in (second, first):
        again = await adopt(catalog, scan("ollama", store.root))
        assert (again.new, again.changed, again.gone, again.problems) == ((), (), (), ())
    shutil.rmtree(second.root / "manifests")
    gone = await adopt(catalog, scan("ollama", second.root))
    assert names(gone.gone) == [(apart, "latest")]


async def test_what_the_user_recorded_elsewhere_stays_where_it_is(catalog, hub, tmp_path):
    """
    A model of the same name that lies in another place is another copy, and the user's own.
    """
    fill(tmp_path, mine__gguf=GGUF)
    await register_path(
        catalog, tmp_path / "mine.gguf", provider="hf", reference="org/b", version=C1
    )

    done = await adopted(catalog, hub)

    assert names(done.new)[-1] == (f"{hub.root}/org/b", C1)
    mine = await catalog.get_model("org/b", "hf")
    assert (mine.local_path, mine.foreign) == (str(tmp_path / "mine.gguf"), False)


@pytest.mark.parametrize("below", ["", "/b.gguf"], ids=["the folder", "a file in it"])
async def test_what_the_user_recorded_in_the_store_is_the_stores(catalog, hub, below):
    """
    A row of the same name for the very files becomes the store's, and keeps what the user said.
    """
    path = f"{hub.repository('org/b')}/snapshots/{C1}{below}"
    await catalog.register_model(a_model("org/b", version=C1, local_path=path, architecture="mine"))

    done = await adopted(catalog, hub)

    assert ("org/b", C1) in names(done.changed)
    model = await catalog.get_model("org/b", "hf")
    assert (model.store, model.architecture) == ("huggingface", "mine")


async def test_a_store_that_was_moved_is_followed(catalog, hub, tmp_path):
    """
    Where the old path leads nowhere it is the same model, with all that hangs on it.
    """
    await adopted(catalog, hub)
    await catalog.tag_model("org/b", "hf", "Chat")
    moved = HuggingFace(hub.root.rename(tmp_path / "moved"))

    done = await adopted(catalog, moved)

    assert (done.new, len(done.changed)) == ((), 3)
    model = await catalog.get_model("org/b", "hf")
    assert (model.store_root, model.tags) == (str(moved.root), ("Chat",))
    assert model.local_path.startswith(str(moved.root))
    assert (await adopted(catalog, moved)).changed == ()


async def test_what_the_user_says_lies_elsewhere_is_his_own(catalog, hub, tmp_path):
    """
    With another path a model leaves its store, and the store's own is recorded beside it.
    """
    await adopted(catalog, hub)
    fill(tmp_path, mine__gguf=GGUF)
    await catalog.update_model("org/b", "hf", local_path=str(tmp_path / "mine.gguf"))

    done = await adopted(catalog, hub)

    mine = await catalog.get_model("org/b", "hf")
    assert (mine.local_path, mine.foreign) == (str(tmp_path / "mine.gguf"), False)
    assert (names(done.new), done.gone) == ([(f"{hub.root}/org/b", C1)], ())


async def test_what_was_found_elsewhere_is_not_gone_from_there(catalog, hub, tmp_path):
    """
    A model of a store that was relinked is no longer looked for in the store.
    """
    await adopted(catalog, hub)
    away = hub.repository("org/b").rename(tmp_path / "away")
    await adopted(catalog, hub)
    path = away / "snapshots" / C1
    await relink_model(catalog, "org/b", "hf", path=path)

    done = await adopted(catalog, hub)

    assert (done.gone, done.new) == ((), ())
    model = await catalog.get_model("org/b", "hf")
    assert (model.local_path, model.state) == (str(path), FileState.PRESENT)
    assert model.foreign


async def test_what_was_read_of_a_model_is_no_news(catalog, tmp_path):
    """
    A verification, which takes digests of what the store knows none of, changes no adoption.
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


async def test_foreign_models_can_be_told_from_the_users_own(catalog, hub, tmp_path):
    """
    The filters say so, and so does every model.
    """
    fill(tmp_path / "plain", mine__gguf=GGUF)
    await register_path(catalog, tmp_path / "plain/mine.gguf", provider="local", reference="mine")
    await adopted(catalog, hub)

    assert [model.reference for model in await catalog.list_models(foreign=False)] == ["mine"]
    assert await catalog.count_models(foreign=True) == 3
    assert await catalog.count_models(store="huggingface") == 3
    assert await catalog.count_models(store="ollama") == 0


@pytest.mark.parametrize("store", ["lmstudio", "llamacpp", "directory"])
async def test_every_kind_of_store_is_adopted(catalog, tmp_path, store):
    """
    Folders that keep no book are adopted as well, and are no news the second time.
    """
    fill(tmp_path / store, org___a___m__gguf=GGUF, b__gguf=OTHER)
    first = await adopt(catalog, scan(store, tmp_path / store))

    again = await adopt(catalog, scan(store, tmp_path / store))

    assert first.new
    assert (again.new, again.changed, again.gone) == ((), (), ())
    assert again.unchanged == tuple(each.ref for each in first.new)
    assert (await check_models(catalog)).is_as_recorded


async def test_a_scan_runs_beside_the_loop_and_steps_over_the_catalog(tmp_path):
    """
    It is told how far it has come, and the catalog's own database is not opened.
    """
    fill(tmp_path / "models", **{f"m{number}__gguf": GGUF for number in range(5)})
    told = []
    async with open_catalog(tmp_path / "models/catalog.gguf") as catalog:
        found = await scan_store(catalog, "directory", tmp_path / "models", on_progress=told.append)
        await asyncio.sleep(0)

    assert told[0] == 1
    assert [model.reference for model in found.found] == [f"m{number}.gguf" for number in range(5)]
    assert [problem.reason for problem in found.problems] == ["it is the catalog's own database"]


async def test_what_is_removed_while_it_is_adopted_is_told(catalog, hub, monkeypatch):
    """
    A model that another task has forgotten in between is left out, and the rest is recorded.
    """
    await adopted(catalog, hub)
    hub.link(
        hub.repository("org/b") / "snapshots" / C1, "c.gguf", hub.blob("org/b", "c.gguf", OTHER)
    )
    found = scan("huggingface", hub.root)
    read = adoption.load_store_rows

    async def stored(*arguments):
        rows = await read(*arguments)
        await catalog.remove_model("org/b", "hf")
        # SQLite gives it the number of the one that was removed.
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
    ("said", "field"),
    [
        ({"source_url": "\0"}, "source_url"),
        ({"aliases": ("a@b",)}, "alias"),
        ({"reference": " "}, "reference"),
    ],
    ids=["a NUL in its URL", "an alias that is none", "a blank reference"],
)
async def test_what_a_catalog_cannot_take_is_a_problem(catalog, hub, said, field):
    """
    Whatever is wrong with one model, the others are recorded.
    """
    found = scan("huggingface", hub.root)
    first, *others = found.found

    done = await adopt(catalog, replace(found, found=(replace(first, **said), *others)))

    assert names(done.new) == [("org/a", C2), ("org/b", C1)]
    assert [problem.reason.split()[0] for problem in done.problems] == [field]
    assert await catalog.count_models() == 2


async def test_a_list_of_files_that_leads_out_of_its_model_is_not_recorded(catalog, hub):
    """
    A stranger's list is not trusted, and what else was found is recorded.
    """
    found = scan("huggingface", hub.root)
    first, *others = found.found
    outside = replace(first.files[0], path="../../etc/passwd")

    done = await adopt(catalog, replace(found, found=(replace(first, files=(outside,)), *others)))

    assert names(done.new) == [("org/a", C2), ("org/b", C1)]
    assert ["files.path" in problem.reason for problem in done.problems] == [True]


async def test_an_alias_that_the_user_sets_meanwhile_is_not_moved(catalog, hub, monkeypatch):
    """
    It is the user's own from that moment, whatever was read before.
    """
    await catalog.register_model(a_model("org/a", version="mine"))
    read = adoption.load_store_rows

    async def stored(*arguments):
        rows = await read(*arguments)
        await catalog.set_alias("org/a", "hf", "main", "mine")
        return rows

    monkeypatch.setattr(adoption, "load_store_rows", stored)
    await adopted(catalog, hub)

    assert (await catalog.get_model("org/a", "hf", "main")).version == "mine"


async def test_a_run_without_news_asks_for_no_lock(tmp_path, hub):
    """
    While another process writes, a scan that finds nothing new does not wait for it.
    """
    path = tmp_path / "catalog.db"
    async with open_catalog(path) as catalog:
        await adopted(catalog, hub)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            async with open_catalog(path, timeout_s=0.1) as impatient:
                done = await adopted(impatient, hub)
            other.execute("ROLLBACK")

    assert len(done.unchanged) == 3
