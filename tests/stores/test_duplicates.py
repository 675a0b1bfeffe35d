"""Duplicate files: which files are copies, and who owns each copy."""

import os

import pytest
from conftest import a_model
from layouts import C1, C2, HuggingFace, Ollama, fill, sha256

from model_catalog.stores.store_kinds import SCANNERS
from model_catalog.upkeep import adopt, find_duplicates, register_path

# They test files more than statements, which the slow tests run on PostgreSQL too.
pytestmark = pytest.mark.slow_with("asyncpg")

GGUF = b"GGUF" + bytes(100)
OTHER = b"GGUF" + bytes(99) + b"1"


async def register_own(catalog, path, reference):
    """Register a model of the user with its digest."""
    return await register_path(catalog, path, provider="local", reference=reference, digest=True)


async def adopted(catalog, store, root):
    return await adopt(catalog, SCANNERS[store](root))


async def test_equal_files_in_two_stores_are_two_copies(catalog, tmp_path):
    """
    They are reported. Copies that belong to stores only are not reclaimable.
    """
    HuggingFace(tmp_path / "hub").revision("org/a", C1, {"m.gguf": GGUF})
    Ollama(tmp_path / "ollama").model("a", GGUF)
    await adopted(catalog, "huggingface", tmp_path / "hub")
    await adopted(catalog, "ollama", tmp_path / "ollama")

    (found,) = await find_duplicates(catalog)

    assert (found.digest, found.size_bytes) == (f"sha256:{sha256(GGUF)}", len(GGUF))
    assert [copy.places[0].store for copy in found.copies] == ["huggingface", "ollama"]
    assert (found.redundant_bytes, found.reclaimable_bytes) == (len(GGUF), 0)


async def test_only_copies_of_the_user_are_reclaimable(catalog, tmp_path):
    """
    If a store has a copy, all of the user's copies are. Otherwise one of them must stay.
    """
    fill(tmp_path, a__gguf=GGUF, b__gguf=GGUF, c__gguf=OTHER, d__gguf=OTHER)
    for name in "abcd":
        await register_own(catalog, tmp_path / f"{name}.gguf", name)
    Ollama(tmp_path / "ollama").model("a", GGUF)
    await adopted(catalog, "ollama", tmp_path / "ollama")

    first, second = await find_duplicates(catalog)

    assert (len(first.copies), first.redundant_bytes) == (3, 2 * len(GGUF))
    assert first.reclaimable_bytes == 2 * len(GGUF)
    assert (len(second.copies), second.reclaimable_bytes) == (2, len(OTHER))


@pytest.mark.parametrize("link", [os.link, os.symlink], ids=["hard link", "symbolic link"])
async def test_two_names_of_one_file_are_one_copy(catalog, tmp_path, link):
    """
    A link takes no space, so deleting one frees none.
    """
    fill(tmp_path, a__gguf=GGUF)
    link(tmp_path / "a.gguf", tmp_path / "b.gguf")
    for name in "ab":
        await register_own(catalog, tmp_path / f"{name}.gguf", name)

    assert await find_duplicates(catalog) == ()


async def test_revisions_that_share_a_blob_are_one_copy(catalog, tmp_path):
    """
    A cache stores a file once for all revisions. A copy elsewhere is the second.
    """
    cache = HuggingFace(tmp_path / "hub")
    for commit, ref in ((C1, "main"), (C2, "v1")):
        cache.revision("org/a", commit, {"m.gguf": GGUF}, refs=(ref,))
    await adopted(catalog, "huggingface", cache.root)
    assert await find_duplicates(catalog) == ()
    fill(tmp_path, a__gguf=GGUF)
    await register_own(catalog, tmp_path / "a.gguf", "a")

    (found,) = await find_duplicates(catalog)

    assert [len(copy.places) for copy in found.copies] == [2, 1]
    assert found.reclaimable_bytes == len(GGUF)


async def test_a_file_with_an_unrecorded_hard_link_is_not_reclaimable(catalog, tmp_path):
    """
    While another hard link exists, deleting the recorded ones frees no byte.
    """
    fill(tmp_path, a__gguf=GGUF)
    os.link(tmp_path / "a.gguf", tmp_path / "elsewhere")
    await register_own(catalog, tmp_path / "a.gguf", "a")
    Ollama(tmp_path / "ollama").model("a", GGUF)
    await adopted(catalog, "ollama", tmp_path / "ollama")

    (found,) = await find_duplicates(catalog)

    assert [copy.unknown_links for copy in found.copies] == [1, 0]
    assert (found.redundant_bytes, found.reclaimable_bytes) == (len(GGUF), 0)


@pytest.mark.parametrize("change", ["deleted", "other size", "other time"])
async def test_a_file_that_is_not_as_recorded_is_not_a_copy(catalog, tmp_path, change):
    """
    Its bytes may differ from the recorded ones.
    """
    fill(tmp_path, a__gguf=GGUF, b__gguf=GGUF)
    for name in "ab":
        await register_own(catalog, tmp_path / f"{name}.gguf", name)
    path = tmp_path / "b.gguf"
    assert len(await find_duplicates(catalog)) == 1

    if change == "deleted":
        path.unlink()
    elif change == "other time":
        os.utime(path, ns=(1, 1))
    else:
        path.write_bytes(GGUF + b"1")

    assert await find_duplicates(catalog) == ()


async def test_two_equal_files_of_one_model_are_not_duplicates(catalog, tmp_path):
    """
    A model may contain the same file twice.
    """
    folder = fill(tmp_path / "m", config__json=b"{}", a__safetensors=GGUF, b__safetensors=GGUF)
    await register_own(catalog, folder, "m")

    assert await find_duplicates(catalog) == ()


async def test_a_model_without_a_file_list_counts_by_its_digest(catalog, tmp_path):
    """
    The caller has stated its digest and its path.
    """
    fill(tmp_path, a__gguf=GGUF, b__gguf=GGUF)
    await register_own(catalog, tmp_path / "a.gguf", "a")
    await catalog.register_model(
        a_model("b", local_path=str(tmp_path / "b.gguf"), digest=f"sha256:{sha256(GGUF)}")
    )

    (found,) = await find_duplicates(catalog)

    assert [str(copy.places[0].ref) for copy in found.copies] == ["hf:b@", "local:a@"]


async def test_all_pages_of_digests_are_read(catalog, tmp_path, monkeypatch):
    """
    Each duplicate digest is reported once, those with the most redundant bytes first.
    """
    monkeypatch.setattr("model_catalog.upkeep.duplicates._BATCH_SIZE", 2)
    for number in range(5):
        for copy in "ab":
            path = tmp_path / f"{copy}{number}"
            path.write_bytes(bytes([number]) * (number + 1))
            await register_own(catalog, path, path.name)

    assert [each.size_bytes for each in await find_duplicates(catalog)] == [5, 4, 3, 2, 1]
