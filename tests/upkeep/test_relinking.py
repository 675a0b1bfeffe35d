"""Relink models that were moved, after comparing their content."""

import os
import shutil

import pytest
from conftest import a_model

from model_catalog import DigestMismatchError, FileState
from model_catalog.cli.commands.demo_files import make_gguf
from model_catalog.upkeep import (
    Verdict,
    adopt,
    check_models,
    find_moved,
    register_path,
    relink_model,
    scan_store,
    verify_models,
)

NAME = ("m", "local")


@pytest.fixture
def catalog(on_sqlite):
    """SQLite only: these tests are about files, which are the same for every database."""
    return on_sqlite


def create_file(path, context_length=4096):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(make_gguf("llama", context_length=context_length))
    return path


async def register(catalog, path, reference="m", **options):
    return (
        await register_path(catalog, path, provider="local", reference=reference, **options)
    ).model


async def find_paths(catalog, *roots):
    await check_models(catalog)
    return {each.model.reference: each.path for each in await find_moved(catalog, roots)}


async def test_a_renamed_file_is_found_by_its_digest(catalog, tmp_path):
    """
    Other files of the same size are not a match.
    """
    path = create_file(tmp_path / "here" / "m.gguf")
    await register(catalog, path, digest=True)
    create_file(tmp_path / "there" / "a.gguf", context_length=1)
    new_path = tmp_path / "there" / "deep" / "z.gguf"
    new_path.parent.mkdir()
    path.rename(new_path)

    assert await find_paths(catalog, tmp_path / "there") == {"m": str(new_path)}
    assert (await catalog.get_model(*NAME)).local_path == str(path)

    result = await relink_model(catalog, *NAME, path=new_path)

    assert (result.model.local_path, result.model.state) == (str(new_path), FileState.PRESENT)
    assert result.model.missing_since is None
    assert (await check_models(catalog)).is_as_recorded
    assert [each.verdict async for each in verify_models(catalog)] == [Verdict.OK]


@pytest.mark.parametrize("named", ["folder", "shard"])
async def test_a_moved_folder_or_set_is_found_with_all_its_files(catalog, tmp_path, named):
    """
    All files of a folder or of a set of shards must be at the new path.
    """
    old = tmp_path / "old"
    for number in (1, 2):
        create_file(old / f"m-0000{number}-of-00002.gguf", context_length=number)
    first = old / "m-00001-of-00002.gguf"
    await register(catalog, old if named == "folder" else first, digest=True)
    # One shard beside a different file with the name and size of the other is not a match.
    partial = tmp_path / "new" / "partial"
    partial.mkdir(parents=True)
    shutil.copy(first, partial)
    create_file(partial / "m-00002-of-00002.gguf", context_length=3)
    complete = tmp_path / "new" / "complete"
    old.rename(complete)

    expected = complete if named == "folder" else complete / "m-00001-of-00002.gguf"
    assert await find_paths(catalog, tmp_path / "new") == {"m": str(expected)}
    result = await relink_model(catalog, *NAME, path=expected)
    assert result.model.state is FileState.PRESENT
    assert (await check_models(catalog)).is_as_recorded


async def test_hidden_and_unfinished_files_are_skipped(catalog, tmp_path):
    """
    The search also skips links to folders, links to themselves and FIFOs.
    """
    path = create_file(tmp_path / "here" / "m.gguf")
    await register(catalog, path, digest=True)
    root = tmp_path / "there"
    create_file(root / ".hidden" / "m.gguf")
    create_file(root / "m.gguf.part")
    (root / "link").symlink_to(root / ".hidden")
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "pipe")
    path.unlink()

    assert await find_paths(catalog, root) == {}


async def test_a_model_without_a_digest_is_not_found(catalog, tmp_path):
    """
    Many models have the same size, so a size alone does not identify one.
    """
    path = create_file(tmp_path / "here" / "m.gguf")
    await register(catalog, path)
    path.rename(tmp_path / "m.gguf")

    assert await find_paths(catalog, tmp_path) == {}


async def test_a_registered_digest_is_enough_to_find_a_model(catalog, tmp_path):
    """
    `register_model` recorded the digest, and the files were never listed.
    """
    path = create_file(tmp_path / "there" / "m.gguf")
    known = await register(catalog, path, "other", digest=True)
    await catalog.register_model(
        a_model(
            "m",
            provider="local",
            local_path="/nowhere/x.gguf",
            size_bytes=path.stat().st_size,
            digest=known.digest,
        )
    )

    assert await find_paths(catalog, tmp_path / "there") == {"m": str(path)}


async def test_a_root_that_does_not_exist_is_an_error(catalog, tmp_path):
    """
    A mistyped folder must not look like a folder without the model.
    """
    path = create_file(tmp_path / "m.gguf")
    await register(catalog, path, digest=True)
    path.unlink()
    await check_models(catalog)

    with pytest.raises(FileNotFoundError):
        await find_moved(catalog, [tmp_path / "typo"])


@pytest.mark.parametrize("digest", [True, False], ids=["digest", "size"])
async def test_other_content_is_not_relinked(catalog, tmp_path, digest):
    """
    The file is another model, and the record does not change.
    """
    path = create_file(tmp_path / "m.gguf")
    before = await register(catalog, path, digest=digest)
    other = create_file(tmp_path / "other.gguf", context_length=1)
    if not digest:
        other.write_bytes(b"short")

    with pytest.raises(DigestMismatchError, match="is another model") as refused:
        await relink_model(catalog, *NAME, path=other)

    assert refused.value.path == str(other)
    after = await catalog.get_model(*NAME)
    assert (after.local_path, after.digest) == (before.local_path, before.digest)
    assert after.state is FileState.PRESENT


async def test_relinking_keeps_tags_fields_and_counters(catalog, tmp_path):
    """
    Tags, the description, fields of the user, use count and download count stay.
    """
    path = create_file(tmp_path / "m.gguf")
    await register(catalog, path, digest=True)
    await catalog.tag_model(*NAME, "chat")
    await catalog.update_model(*NAME, description="mine", architecture="my llama")
    await catalog.record_use(*NAME)
    path.rename(tmp_path / "new.gguf")

    model = (await relink_model(catalog, *NAME, path=tmp_path / "new.gguf")).model

    assert (model.tags, model.description, model.architecture) == (("chat",), "mine", "my llama")
    assert (model.use_count, model.download_count) == (1, 1)


async def test_a_model_of_a_store_is_relinked_with_the_files_beside_its_weights(catalog, tmp_path):
    """
    Its digest is that of all of them.
    """
    for name in ("m.gguf", "mmproj.gguf"):
        create_file(tmp_path / "store/org/m" / name)
    await adopt(catalog, await scan_store(catalog, "lmstudio", tmp_path / "store"))
    async for verified in verify_models(catalog):
        assert verified.verdict is Verdict.OK
    (model,) = await catalog.list_models()
    (tmp_path / "store/org/m").rename(tmp_path / "moved")

    relinked = await relink_model(catalog, model.ref, path=tmp_path / "moved/m.gguf")

    assert relinked.model.size_bytes == model.size_bytes
    assert [file.path for file in await catalog.list_files(model.ref)] == ["m.gguf", "mmproj.gguf"]
    (tmp_path / "moved/mmproj.gguf").unlink()
    with pytest.raises(DigestMismatchError):
        await relink_model(catalog, model.ref, path=tmp_path / "moved/m.gguf")
