"""The same bytes several times: which are copies, and whose."""

import os

import pytest
from conftest import a_model
from layouts import C1, C2, HuggingFace, Ollama, fill, sha256

from model_catalog.stores.store_kinds import SCANNERS
from model_catalog.upkeep import adopt, find_duplicates, register_path

GGUF = b"GGUF" + bytes(100)
OTHER = b"GGUF" + bytes(99) + b"1"


async def own(catalog, path, reference):
    """A model of the user's own, of which the digest is known."""
    return await register_path(catalog, path, provider="local", reference=reference, digest=True)


async def adopted(catalog, store, root):
    return await adopt(catalog, SCANNERS[store](root))


async def test_the_same_bytes_in_two_stores_are_two_copies(catalog, tmp_path):
    """
    Whoever they belong to they are told of; of what is in stores alone nothing is reclaimable.
    """
    HuggingFace(tmp_path / "hub").revision("org/a", C1, {"m.gguf": GGUF})
    Ollama(tmp_path / "ollama").model("a", GGUF)
    await adopted(catalog, "huggingface", tmp_path / "hub")
    await adopted(catalog, "ollama", tmp_path / "ollama")

    (found,) = await find_duplicates(catalog)

    assert (found.digest, found.size_bytes) == (f"sha256:{sha256(GGUF)}", len(GGUF))
    assert [copy.places[0].store for copy in found.copies] == ["huggingface", "ollama"]
    assert (found.redundant_bytes, found.reclaimable_bytes) == (len(GGUF), 0)


async def test_what_is_reclaimable_is_the_users_own(catalog, tmp_path):
    """
    Beside a copy in a store all of the user's own may go; of none but his own one has to stay.
    """
    fill(tmp_path, a__gguf=GGUF, b__gguf=GGUF, c__gguf=OTHER, d__gguf=OTHER)
    for name in "abcd":
        await own(catalog, tmp_path / f"{name}.gguf", name)
    Ollama(tmp_path / "ollama").model("a", GGUF)
    await adopted(catalog, "ollama", tmp_path / "ollama")

    first, second = await find_duplicates(catalog)

    assert (len(first.copies), first.redundant_bytes) == (3, 2 * len(GGUF))
    assert first.reclaimable_bytes == 2 * len(GGUF)
    assert (len(second.copies), second.reclaimable_bytes) == (2, len(OTHER))


@pytest.mark.parametrize("link", [os.link, os.symlink], ids=["hard link", "symbolic link"])
async def test_two_names_of_one_file_are_one_copy(catalog, tmp_path, link):
    """
    Links take no room, and nothing is had back by removing one of them.
    """
    fill(tmp_path, a__gguf=GGUF)
    link(tmp_path / "a.gguf", tmp_path / "b.gguf")
    for name in "ab":
        await own(catalog, tmp_path / f"{name}.gguf", name)

    assert await find_duplicates(catalog) == ()


async def test_revisions_that_share_a_blob_are_one_copy(catalog, tmp_path):
    """
    A cache holds a file once, in however many revisions it is; a copy elsewhere is the second.
    """
    cache = HuggingFace(tmp_path / "hub")
    for commit, ref in ((C1, "main"), (C2, "v1")):
        cache.revision("org/a", commit, {"m.gguf": GGUF}, refs=(ref,))
    await adopted(catalog, "huggingface", cache.root)
    assert await find_duplicates(catalog) == ()
    fill(tmp_path, a__gguf=GGUF)
    await own(catalog, tmp_path / "a.gguf", "a")

    (found,) = await find_duplicates(catalog)

    assert [len(copy.places) for copy in found.copies] == [2, 1]
    assert found.reclaimable_bytes == len(GGUF)


async def test_a_file_that_has_a_name_nobody_recorded_gives_nothing_back(catalog, tmp_path):
    """
    As long as another hard link is there, removing the recorded ones frees no byte.
    """
    fill(tmp_path, a__gguf=GGUF)
    os.link(tmp_path / "a.gguf", tmp_path / "elsewhere")
    await own(catalog, tmp_path / "a.gguf", "a")
    Ollama(tmp_path / "ollama").model("a", GGUF)
    await adopted(catalog, "ollama", tmp_path / "ollama")

    (found,) = await find_duplicates(catalog)

    assert [copy.unknown_links for copy in found.copies] == [1, 0]
    assert (found.redundant_bytes, found.reclaimable_bytes) == (len(GGUF), 0)


@pytest.mark.parametrize("what", ["gone", "other size", "touched"])
async def test_what_is_not_the_recorded_file_is_no_copy(catalog, tmp_path, what):
    """
    Nobody is told that bytes are there twice which may be there once.
    """
    fill(tmp_path, a__gguf=GGUF, b__gguf=GGUF)
    for name in "ab":
        await own(catalog, tmp_path / f"{name}.gguf", name)
    path = tmp_path / "b.gguf"
    assert len(await find_duplicates(catalog)) == 1

    if what == "gone":
        path.unlink()
    elif what == "touched":
        os.utime(path, ns=(1, 1))
    else:
        path.write_bytes(GGUF + b"1")

    assert await find_duplicates(catalog) == ()


async def test_two_files_of_one_model_are_both_a_part_of_it(catalog, tmp_path):
    """
    A model may well have the same file twice; another model that has it is another matter.
    """
    folder = fill(tmp_path / "m", config__json=b"{}", a__safetensors=GGUF, b__safetensors=GGUF)
    await own(catalog, folder, "m")

    assert await find_duplicates(catalog) == ()


async def test_a_model_without_a_list_of_files_counts_by_its_own_digest(catalog, tmp_path):
    """
    The host has said what its bytes are, and that they lie there.
    """
    fill(tmp_path, a__gguf=GGUF, b__gguf=GGUF)
    await own(catalog, tmp_path / "a.gguf", "a")
    await catalog.register_model(
        a_model("b", local_path=str(tmp_path / "b.gguf"), digest=f"sha256:{sha256(GGUF)}")
    )

    (found,) = await find_duplicates(catalog)

    assert [str(copy.places[0].ref) for copy in found.copies] == ["hf:b@", "local:a@"]


async def test_all_pages_are_looked_at(catalog, tmp_path, monkeypatch):
    """
    However many digests are repeated, each is told of once, the most redundant first.
    """
    monkeypatch.setattr("model_catalog.upkeep.duplicates._BATCH_SIZE", 2)
    for number in range(5):
        for copy in "ab":
            path = tmp_path / f"{copy}{number}"
            path.write_bytes(bytes([number]) * (number + 1))
            await own(catalog, path, path.name)

    assert [each.size_bytes for each in await find_duplicates(catalog)] == [5, 4, 3, 2, 1]
