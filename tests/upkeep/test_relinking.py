"""Models that lie elsewhere are found by their bytes, and recorded there if they are the same."""

import os
import shutil

import pytest
from conftest import a_model

from model_catalog import DigestMismatchError, FileState
from model_catalog.cli.commands.demo_files import make_gguf
from model_catalog.upkeep import (
    Verdict,
    check_models,
    find_moved,
    register_path,
    relink_model,
    verify_models,
)

NAME = ("m", "local")


@pytest.fixture
def catalog(on_sqlite):
    """What is on the disk is the same to every database."""
    return on_sqlite


def a_file(path, context_length=4096):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(make_gguf("llama", context_length=context_length))
    return path


async def recorded(catalog, path, reference="m", **options):
    return (
        await register_path(catalog, path, provider="local", reference=reference, **options)
    ).model


async def found_below(catalog, *roots):
    await check_models(catalog)
    return {each.model.reference: each.path for each in await find_moved(catalog, roots)}


async def test_a_file_is_found_whatever_it_is_called(catalog, tmp_path):
    """
    The digest tells it; others of its size do not pass for it.
    """
    path = a_file(tmp_path / "here" / "m.gguf")
    await recorded(catalog, path, digest=True)
    a_file(tmp_path / "there" / "a.gguf", context_length=1)
    place = tmp_path / "there" / "deep" / "z.gguf"
    place.parent.mkdir()
    path.rename(place)

    assert await found_below(catalog, tmp_path / "there") == {"m": str(place)}
    assert (await catalog.get_model(*NAME)).local_path == str(path)

    done = await relink_model(catalog, *NAME, path=place)

    assert (done.model.local_path, done.model.state) == (str(place), FileState.PRESENT)
    assert done.model.missing_since is None
    assert (await check_models(catalog)).is_as_recorded
    assert [each.verdict async for each in verify_models(catalog)] == [Verdict.OK]


@pytest.mark.parametrize("named", ["folder", "shard"])
async def test_files_that_belong_together_are_found_together(catalog, tmp_path, named):
    """
    A folder, or a set of which one shard is named, is where all of its files are.
    """
    old = tmp_path / "old"
    for number in (1, 2):
        a_file(old / f"m-0000{number}-of-00002.gguf", context_length=number)
    first = old / "m-00001-of-00002.gguf"
    await recorded(catalog, old if named == "folder" else first, digest=True)
    # One of them beside another of the right name and size is not it.
    alone = tmp_path / "new" / "alone"
    alone.mkdir(parents=True)
    shutil.copy(first, alone)
    a_file(alone / "m-00002-of-00002.gguf", context_length=3)
    place = tmp_path / "new" / "whole"
    old.rename(place)

    expected = place if named == "folder" else place / "m-00001-of-00002.gguf"
    assert await found_below(catalog, tmp_path / "new") == {"m": str(expected)}
    done = await relink_model(catalog, *NAME, path=expected)
    assert done.model.state is FileState.PRESENT
    assert (await check_models(catalog)).is_as_recorded


async def test_what_is_no_model_yet_is_passed_over(catalog, tmp_path):
    """
    Hidden folders, unfinished downloads and links to folders are not looked into.
    """
    path = a_file(tmp_path / "here" / "m.gguf")
    await recorded(catalog, path, digest=True)
    root = tmp_path / "there"
    a_file(root / ".hidden" / "m.gguf")
    a_file(root / "m.gguf.part")
    (root / "link").symlink_to(root / ".hidden")
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "pipe")
    path.unlink()

    assert await found_below(catalog, root) == {}


async def test_what_has_no_digest_cannot_be_told(catalog, tmp_path):
    """
    A size alone is many models': nothing is offered.
    """
    path = a_file(tmp_path / "here" / "m.gguf")
    await recorded(catalog, path)
    path.rename(tmp_path / "m.gguf")

    assert await found_below(catalog, tmp_path) == {}


async def test_a_model_that_was_only_registered_is_found_by_its_digest(catalog, tmp_path):
    """
    What its downloader said of it is enough.
    """
    path = a_file(tmp_path / "there" / "m.gguf")
    known = await recorded(catalog, path, "other", digest=True)
    await catalog.register_model(
        a_model(
            "m",
            provider="local",
            local_path="/nowhere/x.gguf",
            size_bytes=path.stat().st_size,
            digest=known.digest,
        )
    )

    assert await found_below(catalog, tmp_path / "there") == {"m": str(path)}


async def test_a_root_that_is_not_there_is_an_error(catalog, tmp_path):
    """
    A folder that was mistyped holds no model, and that is not what was found out.
    """
    path = a_file(tmp_path / "m.gguf")
    await recorded(catalog, path, digest=True)
    path.unlink()
    await check_models(catalog)

    with pytest.raises(FileNotFoundError):
        await find_moved(catalog, [tmp_path / "typo"])


@pytest.mark.parametrize("digest", [True, False], ids=["digest", "size"])
async def test_other_bytes_are_not_linked(catalog, tmp_path, digest):
    """
    They are another model: nothing of this one is changed.
    """
    path = a_file(tmp_path / "m.gguf")
    before = await recorded(catalog, path, digest=digest)
    other = a_file(tmp_path / "other.gguf", context_length=1)
    if not digest:
        other.write_bytes(b"short")

    with pytest.raises(DigestMismatchError, match="is another model") as refused:
        await relink_model(catalog, *NAME, path=other)

    assert refused.value.path == str(other)
    after = await catalog.get_model(*NAME)
    assert (after.local_path, after.digest) == (before.local_path, before.digest)
    assert after.state is FileState.PRESENT


async def test_what_is_known_of_a_model_goes_along(catalog, tmp_path):
    """
    Tags, words, uses and the count of downloads stay.
    """
    path = a_file(tmp_path / "m.gguf")
    await recorded(catalog, path, digest=True)
    await catalog.tag_model(*NAME, "chat")
    await catalog.update_model(*NAME, description="mine", architecture="my llama")
    await catalog.record_use(*NAME)
    path.rename(tmp_path / "new.gguf")

    model = (await relink_model(catalog, *NAME, path=tmp_path / "new.gguf")).model

    assert (model.tags, model.description, model.architecture) == (("chat",), "mine", "my llama")
    assert (model.use_count, model.download_count) == (1, 1)
