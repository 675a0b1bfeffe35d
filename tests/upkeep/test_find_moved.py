"""Search for models that were moved, by their content, and record their new paths."""

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


def create_file(folder, name="m.bin", content=b"the bytes of a model"):
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / name
    path.write_bytes(content)
    return path


def create_shards(folder, count=3):
    for index in range(1, count + 1):
        name = f"m-{index:05}-of-{count:05}.gguf"
        create_file(folder, name, make_gguf("llama", context_length=index))
    return folder / f"m-00001-of-{count:05}.gguf"


async def register(catalog, path, reference="m", *, digest=True):
    found = await register_path(catalog, path, provider="local", reference=reference, digest=digest)
    return found.model


async def find_moved_paths(catalog, *roots, **options):
    await check_models(catalog, force=True)
    found = await find_moved(catalog, roots, **options)
    return {each.model.reference: each.path for each in found}


async def test_a_renamed_file_is_relinked(catalog, store):
    """
    A path with the same content becomes the path of the model. The fields that the user has set
    stay.
    """
    path = create_file(store)
    before = await register(catalog, path)
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


async def test_relinking_to_other_content_changes_nothing(catalog, store):
    """
    The error contains the expected digest and the digest that was read.
    """
    before = await register(catalog, create_file(store))
    files = await catalog.list_files(*NAME)
    other = create_file(store, "other.bin", b"THE BYTES OF A MODEL")

    with pytest.raises(DigestMismatchError, match=before.digest):
        await relink_model(catalog, *NAME, path=other)

    after = await catalog.get_model(*NAME)
    assert (after.local_path, after.digest) == (before.local_path, before.digest)
    assert await catalog.list_files(*NAME) == files


async def test_without_a_digest_the_size_must_be_the_same(catalog, store):
    """
    If the size is not known either, every file is accepted.
    """
    await register(catalog, create_file(store), digest=False)
    longer = create_file(store, "longer.bin", b"x" * 21)
    same = create_file(store, "same.bin", b"x" * 20)

    with pytest.raises(DigestMismatchError, match="20 bytes"):
        await relink_model(catalog, *NAME, path=longer)
    found = await relink_model(catalog, *NAME, path=same)
    await catalog.register_model(a_model("unknown", local_path="/nowhere"))
    unknown = await relink_model(catalog, "unknown", "hf", path=longer)

    assert (found.model.local_path, found.model.digest) == (str(same), None)
    assert unknown.model.size_bytes == 21


async def test_files_whose_names_sha256sum_escapes_are_compared_one_by_one(on_sqlite, store):
    """
    Such a model has no combined digest. Each file has its own, and must have the same one at the
    new path.
    """
    for name in ("back\\slash.bin", "b.bin"):
        for folder in ("here", "there", "wrong"):
            create_file(store / folder, name)
    create_file(store / "wrong", "b.bin", b"THE BYTES OF A MODEL")
    model = await register(on_sqlite, store / "here")

    with pytest.raises(DigestMismatchError):
        await relink_model(on_sqlite, *NAME, path=store / "wrong")
    found = await relink_model(on_sqlite, *NAME, path=store / "there")

    assert model.digest is None
    assert found.model.local_path == str(store / "there")


async def test_dot_dot_after_a_link_is_resolved_by_the_system(on_sqlite, tmp_path, store):
    """
    `link/..` is the parent of the folder that the link points to, not the folder of the link.
    """
    await register(on_sqlite, create_file(store))
    create_file(tmp_path / "other", "m.bin")
    create_file(tmp_path, "m.bin", b"beside the link, and another")
    (tmp_path / "other" / "inner").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "other" / "inner")

    found = await relink_model(on_sqlite, *NAME, path=tmp_path / "link" / ".." / "m.bin")

    assert Path(found.model.local_path).samefile(tmp_path / "other" / "m.bin")


async def test_relinking_an_unknown_model_or_path_fails(on_sqlite, store):
    """
    Neither the model nor the path is recorded.
    """
    with pytest.raises(ModelNotFoundError):
        await relink_model(on_sqlite, *NAME, path=create_file(store))
    await register(on_sqlite, store / "m.bin")
    with pytest.raises(FileNotFoundError):
        await relink_model(on_sqlite, *NAME, path=store / "gone")


async def test_a_renamed_file_is_found_among_others_of_the_same_size(catalog, store):
    """
    The search finds it by digest at any depth and under any name, and records nothing.
    """
    path = create_file(store)
    await register(catalog, path)
    create_file(store / "a", "same size.bin", b"THE BYTES OF A MODEL")
    (store / "z" / "deeper").mkdir(parents=True)
    path.rename(store / "z" / "deeper" / "renamed.bin")

    found = await find_moved_paths(catalog, store)

    assert found == {"m": str(store / "z" / "deeper" / "renamed.bin")}
    model = await catalog.get_model(*NAME)
    assert (model.local_path, model.state) == (str(path), FileState.MISSING)
    await relink_model(catalog, *NAME, path=found["m"])
    assert await find_moved_paths(catalog, store) == {}


@pytest.mark.parametrize("kind", ["set", "folder"])
async def test_moved_shards_and_folders_are_found(catalog, store, kind):
    """
    A set is returned by its recorded shard, a folder by its path. A set that lacks a shard, or has
    another one, is not a match.
    """
    first = create_shards(store / "old")
    await register(catalog, first if kind == "set" else store / "old")
    create_shards(store / "a incomplete set").unlink()
    create_file(
        create_shards(store / "b other set").parent, "m-00002-of-00003.gguf", make_gguf("llama", 9)
    )
    (store / "old").rename(store / "new")

    found = await find_moved_paths(catalog, store)

    assert found == {"m": str(store / "new" / first.name if kind == "set" else store / "new")}
    await relink_model(catalog, *NAME, path=found["m"])
    assert (await check_models(catalog)).is_as_recorded


async def test_a_model_without_listed_files_is_found_by_its_digest(on_sqlite, store):
    """
    A model that was registered with digest and size only is a single file.
    """
    path = create_file(store, "new.bin")
    digest = (await register(on_sqlite, path, "other")).digest
    await on_sqlite.register_model(
        a_model("m", provider="local", local_path="/nowhere/m", size_bytes=20, digest=digest)
    )

    assert await find_moved_paths(on_sqlite, store) == {"m": str(path)}


async def test_a_model_without_a_digest_is_not_searched_for(on_sqlite, store):
    """
    Any file of the same size could be the model.
    """
    path = create_file(store)
    await register(on_sqlite, path, digest=False)
    path.rename(store / "renamed.bin")

    assert await find_moved_paths(on_sqlite, store) == {}


def hide(path):
    (path.parent / ".hidden").mkdir()
    path.rename(path.parent / ".hidden" / "m.bin")


def make_unfinished(path):
    path.rename(path.with_name("m.bin.part"))


def move_behind_a_link(path):
    (path.parent.parent / "away").mkdir()
    path.rename(path.parent.parent / "away" / "m.bin")
    (path.parent / "link").symlink_to(path.parent.parent / "away")


@pytest.mark.parametrize("move", [hide, make_unfinished, move_behind_a_link])
async def test_hidden_unfinished_and_linked_files_are_skipped(on_sqlite, store, move):
    """
    The search skips hidden folders, unfinished downloads and links to folders.
    """
    path = create_file(store)
    await register(on_sqlite, path)
    move(path)

    assert await find_moved_paths(on_sqlite, store) == {}


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="/proc/self/mem does not exist")
async def test_unreadable_files_are_skipped(on_sqlite, store):
    """
    The search also skips a FIFO, a link to itself and a dangling link, and finds the model after
    them.
    """
    path = create_file(store, content=b"")
    await register(on_sqlite, path)
    path.rename(store / "z.bin")
    # A file with size 0 that cannot be read.
    (store / "a.bin").symlink_to("/proc/self/mem")
    os.mkfifo(store / "b.bin")
    (store / "c.bin").symlink_to("c.bin")
    (store / "d.bin").symlink_to("nowhere")

    assert await find_moved_paths(on_sqlite, store) == {"m": str(store / "z.bin")}


async def test_a_file_is_hashed_once_although_roots_overlap(on_sqlite, tmp_path, store):
    """
    Links to files are followed. Overlapping roots and a root with a trailing slash do not list a
    path twice. A root may be a link.
    """
    path = create_file(store)
    await register(on_sqlite, path)
    (store / "snapshots").mkdir()
    path.rename(store / "blob")
    (store / "snapshots" / "m.bin").symlink_to(store / "blob")
    (tmp_path / "link").symlink_to(store)
    reports = []

    found = await find_moved_paths(
        on_sqlite, f"{store}/", store, store / "snapshots", on_progress=reports.append
    )
    by_link = await find_moved_paths(on_sqlite, tmp_path / "link")
    await asyncio.sleep(0)

    assert found == {"m": str(store / "blob")}
    assert by_link == {"m": str(tmp_path / "link" / "blob")}
    assert {each.total_bytes for each in reports} == {40}


async def test_a_root_that_cannot_be_listed_is_an_error(on_sqlite, store):
    """
    An empty result would look as if the models had not been found.
    """
    path = create_file(store)
    await register(on_sqlite, path)
    path.unlink()

    with pytest.raises(FileNotFoundError):
        await find_moved_paths(on_sqlite, store / "gone")


async def test_a_cancelled_search_stops(on_sqlite, store):
    """
    The thread stops between two files and inside a file. Then another search can run.
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
