"""Verification compares files of a hub cache with the Git blob ids that name their blobs."""

import hashlib
import subprocess

import pytest
from layouts import C1, HuggingFace

from model_catalog.cli.commands.demo_files import make_gguf
from model_catalog.files.digest import blob_id_of_link, hash_file
from model_catalog.upkeep import Verdict, accept_model, adopt, scan_store, verify_models
from model_catalog.upkeep.queries.verification_queries import save_file_digest
from model_catalog.upkeep.verification.digest_comparison import compare_digest

CONFIG = b'{"model_type": "llama"}'
FILES = {
    "m.gguf": make_gguf("llama", context_length=1),
    "config.json": CONFIG,
    "sub/vocab.txt": b"a\nb\n",
}


def sha256(data):
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.fixture
def cache(tmp_path):
    store = HuggingFace(tmp_path / "hub")
    store.revision("o/m", C1, FILES)
    return store


async def scan(catalog, cache):
    await adopt(catalog, await scan_store(catalog, "huggingface", cache.root))


async def verify(catalog):
    (result,) = [each async for each in verify_models(catalog)]
    return result


def damage(cache, name):
    """Change a byte of a blob; its size stays."""
    path = cache.repository("o/m") / "snapshots" / C1 / name
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.resolve().write_bytes(data)
    return bytes(data)


def test_the_id_is_that_of_git(tmp_path):
    """
    `git hash-object` computes it.
    """
    path = tmp_path / "f"
    path.write_bytes(CONFIG)
    git = subprocess.run(["git", "hash-object", path], capture_output=True, text=True, check=True)

    assert hash_file(path, blob_id=git.stdout.strip()).has_blob_id is True
    assert hash_file(path, blob_id="0" * 40).has_blob_id is False
    assert hash_file(path).has_blob_id is None


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("../../blobs/" + "a" * 40, "a" * 40),
        ("../../../blobs/" + "0" * 40, "0" * 40),
        ("../../blobs/" + "a" * 64, None),
        ("../../blobs/" + "A" * 40, None),
        ("../../other/" + "a" * 40, None),
        ("a" * 40, None),
        (None, None),
    ],
)
def test_only_a_link_into_blobs_names_an_id(tmp_path, target, expected):
    """
    A file, a link elsewhere and a name of another length name none.
    """
    path = tmp_path / "f"
    if target is None:
        path.write_bytes(b"")
    else:
        path.symlink_to(target)

    assert blob_id_of_link(path) == expected


async def test_files_with_the_bytes_that_their_blobs_are_named_by_are_right(on_sqlite, cache):
    """
    Their SHA-256 is recorded as before.
    """
    await scan(on_sqlite, cache)

    result = await verify(on_sqlite)

    assert (result.verdict, result.detail) == (Verdict.OK, None)
    files = await on_sqlite.list_files(result.model)
    assert {file.path: file.digest for file in files} == {
        name: sha256(data) for name, data in FILES.items()
    }


async def test_a_damaged_blob_is_found_by_its_name(catalog, cache):
    """
    No digest was recorded before, and the damaged bytes do not become the expected ones. After
    another download the file is right.
    """
    damaged = damage(cache, "config.json")
    await scan(catalog, cache)

    first, second = await verify(catalog), await verify(catalog)

    assert (first.verdict, first.detail) == (
        Verdict.MISMATCH,
        "'config.json' does not match the name of its blob",
    )
    assert (first.is_new, second.verdict, second.is_new) == (True, Verdict.MISMATCH, False)
    files = {file.path: file for file in await catalog.list_files(first.model)}
    assert (files["config.json"].digest, files["config.json"].found_digest) == (
        None,
        sha256(damaged),
    )
    assert (first.model.digest, first.model.found_digest is None) == (None, False)
    damage(cache, "config.json")
    await scan(catalog, cache)
    repaired = await verify(catalog)
    assert (repaired.verdict, repaired.model.found_digest) == (Verdict.OK, None)


async def test_an_accepted_file_is_no_longer_compared_with_its_name(on_sqlite, cache):
    """
    The user may have edited the file on purpose.
    """
    damaged = damage(cache, "config.json")
    await scan(on_sqlite, cache)
    result = await verify(on_sqlite)

    await accept_model(on_sqlite, result.model)

    assert (await verify(on_sqlite)).verdict is Verdict.OK
    files = {file.path: file for file in await on_sqlite.list_files(result.model)}
    assert files["config.json"].digest == sha256(damaged)


async def test_a_digest_that_another_process_has_recorded_stays(catalog, cache):
    """
    The file was repaired and read in the meantime.
    """
    await scan(catalog, cache)
    model = (await catalog.list_models())[0]
    file = next(f for f in await catalog.list_files(model) if f.path == "config.json")
    path = cache.repository("o/m") / "snapshots" / C1 / "config.json"
    right, wrong = hash_file(path), hash_file(path, blob_id="0" * 40)

    await save_file_digest(catalog, model, compare_digest(file, right))
    await save_file_digest(catalog, model, compare_digest(file, wrong))

    (stored,) = [f for f in await catalog.list_files(model) if f.path == "config.json"]
    assert (stored.digest, stored.found_digest) == (right.digest, None)


async def test_files_on_a_system_without_links_have_no_id(on_sqlite, cache):
    """
    The names of their blobs are not known.
    """
    damage(cache, "config.json")
    cache.replace_links_with_files("o/m")
    await scan(on_sqlite, cache)

    assert (await verify(on_sqlite)).verdict is Verdict.OK
