"""Models that lie elsewhere: found by their bytes, and recorded there."""

import asyncio
import os
import time
from pathlib import Path

import pytest
from conftest import a_model

from model_catalog import (
    DigestMismatchError,
    FileState,
    ModelNotFoundError,
)
from model_catalog.cli.commands.demo_files import make_gguf
from model_catalog.upkeep import check_models, find_moved, register_path, relink_model
from model_catalog.upkeep.relinking import _files_below

NAME = ("m", "local")


@pytest.fixture
def store(tmp_path):
    """A folder of models."""
    folder = tmp_path / "store"
    folder.mkdir()
    return folder


def a_file(folder, name="m.bin", content=b"the bytes of a model"):
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / name
    path.write_bytes(content)
    return path


def a_set(folder, count=3):
    for index in range(1, count + 1):
        name = f"m-{index:05}-of-{count:05}.gguf"
        a_file(folder, name, make_gguf("llama", context_length=index))
    return folder / f"m-00001-of-{count:05}.gguf"


async def recorded(catalog, path, reference="m", *, digest=True):
    found = await register_path(catalog, path, provider="local", reference=reference, digest=digest)
    return found.model


async def moved(catalog, *roots, **options):
    await check_models(catalog, force=True)
    found = await find_moved(catalog, roots, **options)
    return {each.model.reference: each.path for each in found}


async def test_a_model_is_recorded_where_its_bytes_are(catalog, store):
    """
    The same bytes elsewhere are the model, and what the user said of it stays.
    """
    path = a_file(store)
    before = await recorded(catalog, path)
    await catalog.tag_model(*NAME, "chat")
    path.rename(store / "renamed.bin")
    await check_models(catalog)

    found = await relink_model(catalog, *NAME, path=store / "renamed.bin")

    model = found.model
    assert (model.local_path, model.digest) == (str(store / "renamed.bin"), before.digest)
    assert (model.id, model.tags, model.download_count) == (before.id, ("chat",), 1)
    assert (model.state, model.missing_since) == ("present", None)
    assert [file.path for file in await catalog.list_files(*NAME)] == ["renamed.bin"]
    assert (await check_models(catalog)).is_as_recorded


async def test_other_bytes_are_refused_and_nothing_changes(catalog, store):
    """
    The error names both digests.
    """
    before = await recorded(catalog, a_file(store))
    files = await catalog.list_files(*NAME)
    other = a_file(store, "other.bin", b"THE BYTES OF A MODEL")

    with pytest.raises(DigestMismatchError, match=before.digest):
        await relink_model(catalog, *NAME, path=other)

    after = await catalog.get_model(*NAME)
    assert (after.local_path, after.digest) == (before.local_path, before.digest)
    assert await catalog.list_files(*NAME) == files


async def test_without_a_digest_the_size_has_to_be_the_same(catalog, store):
    """
    Nothing else is known of such a model; where not even that is, any file will do.
    """
    await recorded(catalog, a_file(store), digest=False)
    longer = a_file(store, "longer.bin", b"x" * 21)
    same = a_file(store, "same.bin", b"x" * 20)

    with pytest.raises(DigestMismatchError, match="20 bytes"):
        await relink_model(catalog, *NAME, path=longer)
    found = await relink_model(catalog, *NAME, path=same)
    await catalog.register_model(a_model("unknown", local_path="/nowhere"))
    unknown = await relink_model(catalog, "unknown", "hf", path=longer)

    assert (found.model.local_path, found.model.digest) == (str(same), None)
    assert unknown.model.size_bytes == 21


async def test_names_that_sha256sum_escapes_are_held_against_each_other(on_sqlite, store):
    """
    Of such files there is no digest together; each has its own, and has to have it elsewhere.
    """
    for name in ("back\\slash.bin", "b.bin"):
        for folder in ("here", "there", "wrong"):
            a_file(store / folder, name)
    a_file(store / "wrong", "b.bin", b"THE BYTES OF A MODEL")
    model = await recorded(on_sqlite, store / "here")

    with pytest.raises(DigestMismatchError):
        await relink_model(on_sqlite, *NAME, path=store / "wrong")
    found = await relink_model(on_sqlite, *NAME, path=store / "there")

    assert model.digest is None
    assert found.model.local_path == str(store / "there")


async def test_dots_in_a_path_are_for_the_system_to_follow(on_sqlite, tmp_path, store):
    """
    What lies behind a link and `..` is not what lies beside the link.
    """
    await recorded(on_sqlite, a_file(store))
    a_file(tmp_path / "other", "m.bin")
    a_file(tmp_path, "m.bin", b"beside the link, and another")
    (tmp_path / "other" / "inner").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "other" / "inner")

    found = await relink_model(on_sqlite, *NAME, path=tmp_path / "link" / ".." / "m.bin")

    assert Path(found.model.local_path).samefile(tmp_path / "other" / "m.bin")


async def test_an_unknown_model_or_place_is_an_error(on_sqlite, store):
    """
    Neither is recorded.
    """
    with pytest.raises(ModelNotFoundError):
        await relink_model(on_sqlite, *NAME, path=a_file(store))
    await recorded(on_sqlite, store / "m.bin")
    with pytest.raises(FileNotFoundError):
        await relink_model(on_sqlite, *NAME, path=store / "gone")


async def test_a_renamed_file_is_found_among_others_of_its_size(catalog, store):
    """
    By its digest, wherever it lies below the roots and whatever it is called; and nothing is
    recorded of it.
    """
    path = a_file(store)
    await recorded(catalog, path)
    a_file(store / "a", "same size.bin", b"THE BYTES OF A MODEL")
    (store / "z" / "deeper").mkdir(parents=True)
    path.rename(store / "z" / "deeper" / "renamed.bin")

    found = await moved(catalog, store)

    assert found == {"m": str(store / "z" / "deeper" / "renamed.bin")}
    model = await catalog.get_model(*NAME)
    assert (model.local_path, model.state) == (str(path), FileState.MISSING)
    await relink_model(catalog, *NAME, path=found["m"])
    assert await moved(catalog, store) == {}


@pytest.mark.parametrize("kind", ["set", "folder"])
async def test_shards_that_moved_together_are_found(catalog, store, kind):
    """
    A set is told by the shard that was recorded, a folder by the folder; one that lacks a shard, or
    has another one, is not it.
    """
    first = a_set(store / "old")
    await recorded(catalog, first if kind == "set" else store / "old")
    a_set(store / "a lacking one").unlink()
    a_file(a_set(store / "b other").parent, "m-00002-of-00003.gguf", make_gguf("llama", 9))
    (store / "old").rename(store / "new")

    found = await moved(catalog, store)

    assert found == {"m": str(store / "new" / first.name if kind == "set" else store / "new")}
    await relink_model(catalog, *NAME, path=found["m"])
    assert (await check_models(catalog)).is_as_recorded


async def test_a_digest_that_came_without_files_is_looked_for(on_sqlite, store):
    """
    A model that was registered by its digest and size alone is a single file.
    """
    path = a_file(store, "new.bin")
    digest = (await recorded(on_sqlite, path, "other")).digest
    await on_sqlite.register_model(
        a_model("m", provider="local", local_path="/nowhere/m", size_bytes=20, digest=digest)
    )

    assert await moved(on_sqlite, store) == {"m": str(path)}


async def test_what_cannot_be_told_from_another_is_not_looked_for(on_sqlite, store):
    """
    Without a digest any file of the size could be it.
    """
    path = a_file(store)
    await recorded(on_sqlite, path, digest=False)
    path.rename(store / "renamed.bin")

    assert await moved(on_sqlite, store) == {}


def hide(path):
    (path.parent / ".hidden").mkdir()
    path.rename(path.parent / ".hidden" / "m.bin")


def leave_unfinished(path):
    path.rename(path.with_name("m.bin.part"))


def put_behind_a_link_to_a_folder(path):
    (path.parent.parent / "away").mkdir()
    path.rename(path.parent.parent / "away" / "m.bin")
    (path.parent / "link").symlink_to(path.parent.parent / "away")


@pytest.mark.parametrize("move", [hide, leave_unfinished, put_behind_a_link_to_a_folder])
async def test_some_places_are_passed_over(on_sqlite, store, move):
    """
    Hidden folders, unfinished downloads and links to folders are not where models are.
    """
    path = a_file(store)
    await recorded(on_sqlite, path)
    move(path)

    assert await moved(on_sqlite, store) == {}


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no file that refuses a read")
async def test_what_cannot_be_read_is_passed_over(on_sqlite, store):
    """
    So is a FIFO, a link to itself, and one that leads nowhere; the model is found behind them.
    """
    path = a_file(store, content=b"")
    await recorded(on_sqlite, path)
    path.rename(store / "z.bin")
    # A file of no bytes, and of which none can be read.
    (store / "a.bin").symlink_to("/proc/self/mem")
    os.mkfifo(store / "b.bin")
    (store / "c.bin").symlink_to("c.bin")
    (store / "d.bin").symlink_to("nowhere")

    assert await moved(on_sqlite, store) == {"m": str(store / "z.bin")}


async def test_a_cache_of_links_to_blobs_is_searched(on_sqlite, tmp_path, store):
    """
    A link to a file is followed; overlapping roots, a root that is a link and one with a slash at
    its end name each place once.
    """
    path = a_file(store)
    await recorded(on_sqlite, path)
    (store / "snapshots").mkdir()
    path.rename(store / "blob")
    (store / "snapshots" / "m.bin").symlink_to(store / "blob")
    (tmp_path / "link").symlink_to(store)
    told = []

    found = await moved(on_sqlite, f"{store}/", store, store / "snapshots", on_progress=told.append)
    by_link = await moved(on_sqlite, tmp_path / "link")
    await asyncio.sleep(0)

    assert found == {"m": str(store / "blob")}
    assert by_link == {"m": str(tmp_path / "link" / "blob")}
    assert {each.total_bytes for each in told} == {40}


async def test_a_root_that_cannot_be_listed_is_an_error(on_sqlite, store):
    """
    A search that saw nothing is not one that found nothing.
    """
    path = a_file(store)
    await recorded(on_sqlite, path)
    path.unlink()

    with pytest.raises(FileNotFoundError):
        await moved(on_sqlite, store / "gone")


async def test_a_search_stops_when_it_is_cancelled(on_sqlite, store):
    """
    The thread is asked to stop between two files and within one; the next search has its turn.
    """
    size_bytes = 64 * 1024 * 1024 * 1024
    await on_sqlite.register_model(
        a_model(local_path="/nowhere/m", size_bytes=size_bytes, digest="0" * 64)
    )
    with (store / "m").open("wb") as file:
        file.truncate(size_bytes)
    await check_models(on_sqlite)
    began = asyncio.Event()

    search = asyncio.create_task(find_moved(on_sqlite, [store], on_progress=lambda _: began.set()))
    await asyncio.wait_for(began.wait(), 10)
    search.cancel()
    stopped_at = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await search

    assert time.monotonic() - stopped_at < 1
    assert list(_files_below(str(store), lambda: True)) == []
    (store / "m").unlink()
    assert await asyncio.wait_for(find_moved(on_sqlite, [store]), 5) == []
