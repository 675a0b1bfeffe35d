"""Models whose files are elsewhere by links, in a catalog: check, verify, add, sizes, copies."""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from adoption_helpers import SAFETENSORS
from hostile_entries import GGUF, link, on_open
from layouts import C1, HuggingFace, Ollama, sha256, write

from model_catalog import FileState, open_catalog
from model_catalog.cli import main
from model_catalog.files.safe_open import disk_bytes
from model_catalog.upkeep import (
    Verdict,
    adopt,
    check_models,
    find_duplicates,
    register_path,
    scan_store,
    verify_models,
)

SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture
async def catalog(tmp_path):
    async with open_catalog(tmp_path / "catalog.db") as opened:
        yield opened


async def adopt_store(catalog, store, root):
    return await adopt(catalog, await scan_store(catalog, store, root))


def lm_studio_import(tmp_path, data=SAFETENSORS):
    """Make a file and the link to it that `lms import --symbolic-link` makes."""
    target = write(tmp_path / "data/m.safetensors", data)
    path = tmp_path / "models/me/repo/m.safetensors"
    path.parent.mkdir(parents=True)
    return link(path, target), target


async def test_a_linked_model_is_checked_and_verified(tmp_path, catalog):
    """
    It is present, and a verification reads the file that the link leads to.
    """
    path, target = lm_studio_import(tmp_path)
    await adopt_store(catalog, "lmstudio", tmp_path / "models")

    report = await check_models(catalog)
    (verified,) = [each async for each in verify_models(catalog)]

    assert report.is_as_recorded
    assert verified.verdict is Verdict.OK
    model = await catalog.get_model("me/repo", "lmstudio", "m.safetensors")
    assert (model.local_path, model.state) == (str(path), FileState.PRESENT)
    assert model.digest == f"sha256:{hashlib.sha256(target.read_bytes()).hexdigest()}"
    assert model.parameter_count == 32


async def test_a_changed_target_is_noticed(tmp_path, catalog):
    """
    The state is that of the bytes, and not of the link.
    """
    _, target = lm_studio_import(tmp_path)
    await adopt_store(catalog, "lmstudio", tmp_path / "models")

    target.write_bytes(SAFETENSORS + b"1")
    changed = await check_models(catalog)
    target.unlink()
    missing = await check_models(catalog)

    assert [each.state for each in changed.findings] == [FileState.CHANGED]
    assert [each.state for each in missing.findings] == [FileState.MISSING]


async def test_bytes_behind_links_are_counted_once(tmp_path, catalog):
    """
    LM Studio has a link to a blob of Ollama: one file on the disk, and no duplicate.
    """
    store = Ollama(tmp_path / "ollama")
    store.model("m", GGUF)
    blob = store.root / f"blobs/sha256-{sha256(GGUF)}"
    (tmp_path / "lm/me/repo").mkdir(parents=True)
    link(tmp_path / "lm/me/repo/m.gguf", blob)

    await adopt_store(catalog, "ollama", store.root)
    alone = await catalog.get_disk_usage()
    await adopt_store(catalog, "lmstudio", tmp_path / "lm")
    verified = [each.verdict async for each in verify_models(catalog)]

    assert len(verified) == 2
    assert await catalog.get_disk_usage() == alone
    assert await catalog.get_disk_usage(provider="lmstudio") == disk_bytes(blob.stat())
    assert await find_duplicates(catalog) == ()


async def test_the_removal_of_a_link_frees_nothing(tmp_path, catalog):
    """
    A copy is reclaimable only if its own name is recorded, and not only a link to it.
    """
    path, target = lm_studio_import(tmp_path)
    copy = write(tmp_path / "copy.safetensors", SAFETENSORS)
    await register_path(catalog, copy, "copy", "local", digest=True)
    await register_path(catalog, path, "link", "local", digest=True)

    (with_link,) = await find_duplicates(catalog)
    await register_path(catalog, target, "target", "local", digest=True)
    (with_target,) = await find_duplicates(catalog)

    assert [each.is_reclaimable for each in with_link.copies] == [True, False]
    assert [each.is_reclaimable for each in with_target.copies] == [True, True]


async def test_the_removal_of_a_linked_model_leaves_the_file(tmp_path, catalog):
    """
    The catalog deletes records only, neither links nor files.
    """
    path, target = lm_studio_import(tmp_path)
    await adopt_store(catalog, "lmstudio", tmp_path / "models")

    assert await catalog.remove_model("me/repo", "lmstudio", "m.safetensors")

    assert path.is_symlink()
    assert target.read_bytes() == SAFETENSORS


async def test_a_link_is_added_by_its_own_path(tmp_path, catalog):
    """
    A later scan of the store leaves it to the user.
    """
    path, target = lm_studio_import(tmp_path)

    added = await register_path(catalog, path, "mine", "local")
    await adopt_store(catalog, "lmstudio", tmp_path / "models")

    assert (added.model.local_path, added.model.size_bytes) == (str(path), len(SAFETENSORS))
    assert await catalog.get_disk_usage() == disk_bytes(target.stat())
    assert (await check_models(catalog)).is_as_recorded


@pytest.mark.skipif(not SHARED_MEMORY.is_mount(), reason="there is no second disk")
@pytest.mark.parametrize("part", ["repository", "blobs"])
async def test_the_disk_of_a_linked_model_is_recorded(tmp_path, catalog, part):
    """
    When nothing is mounted there, the model is offline and not missing.
    """
    cache = HuggingFace(tmp_path / "hub")
    cache.revision("org/m", C1, {"m.safetensors": SAFETENSORS})
    moved = cache.repository("org/m") / ("" if part == "repository" else "blobs")
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as other_disk:
        shutil.move(moved, f"{other_disk}/moved")
        link(moved, f"{other_disk}/moved")
        await adopt_store(catalog, "huggingface", cache.root)
    (model,) = await catalog.list_models()

    assert model.mount_point == str(SHARED_MEMORY)
    assert os.path.ismount(model.mount_point)


async def test_a_link_that_is_moved_while_its_header_is_read_tells_nothing(tmp_path, catalog):
    """
    The header may be that of a file which only this user may read.
    """
    path, target = lm_studio_import(tmp_path)
    other = write(tmp_path / "other.safetensors", SAFETENSORS.replace(b"F16", b"I16"))
    scanned = await scan_store(catalog, "lmstudio", tmp_path / "models")

    def move_link(opened):
        if opened == str(path) and path.readlink() == target:
            path.unlink()
            link(path, other)

    with on_open(move_link):
        await adopt(catalog, scanned)

    (model,) = await catalog.list_models()
    assert path.readlink() == other
    assert (model.quantization, model.parameter_count) == (None, None)


def test_the_command_can_refuse_links(tmp_path, capsys):
    """
    It names each link that leads out of the store.
    """
    path, _ = lm_studio_import(tmp_path)
    words = ["scan", "--db", str(tmp_path / "c.db"), "--json", str(tmp_path / "models")]

    main([*words, "--no-follow-links"])
    (refused,) = json.loads(capsys.readouterr().out)["stores"]
    main(words)
    (followed,) = json.loads(capsys.readouterr().out)["stores"]

    assert refused["new"] == []
    assert refused["problems"] == [{"path": str(path), "reason": "it leads out of the store"}]
    assert [each["local_path"] for each in followed["new"]] == [str(path)]
    assert followed["problems"] == []
