"""A pointer of Git LFS in place of weights names the size and the digest that are expected."""

import hashlib

import pytest

from model_catalog import FileRecord, FileState, Model
from model_catalog.cli.commands.demo_files import make_gguf
from model_catalog.upkeep import (
    Verdict,
    adopt,
    check_models,
    find_duplicates,
    register_path,
    scan_store,
    verify_models,
)

WEIGHTS = make_gguf("llama", context_length=1)
DIGEST = f"sha256:{hashlib.sha256(WEIGHTS).hexdigest()}"
POINTER = (
    f"version https://git-lfs.github.com/spec/v1\noid {DIGEST}\nsize {len(WEIGHTS)}\n".encode()
)
REASON = f"the file has {len(WEIGHTS)} bytes and {DIGEST}"


@pytest.fixture
def catalog(on_sqlite):
    """SQLite only: these tests are about files, which are the same for every database."""
    return on_sqlite


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "repo/m.gguf"
    path.parent.mkdir()
    path.write_bytes(POINTER)
    return path


async def add(catalog, path, **options):
    return (await register_path(catalog, path, "m", "local", **options)).model


async def scan(catalog, path):
    await adopt(catalog, await scan_store(catalog, "directory", path.parent))
    return (await catalog.list_models())[0]


RECORD = {"add": add, "scan": scan}


async def verify(catalog, level="full"):
    (result,) = [each async for each in verify_models(catalog, level)]
    return result


async def files_of(catalog, model):
    return [(f.size_bytes, f.digest, f.found_digest) for f in await catalog.list_files(model)]


@pytest.mark.parametrize("record", RECORD.values(), ids=RECORD)
async def test_the_digest_that_a_pointer_names_is_the_expected_one(catalog, path, record):
    """
    The pointer is not read as if it were the content, and makes the model incomplete.
    """
    model = await record(catalog, path)

    result = await verify(catalog)

    assert REASON in (model.incomplete_reason or "")
    assert (result.verdict, REASON in result.detail) == (Verdict.INCOMPLETE, True)
    assert await files_of(catalog, model) == [(len(POINTER), DIGEST, None)]
    assert (result.model.digest, result.model.found_digest) == (DIGEST, None)
    assert (await verify(catalog, "structure")).detail == result.detail


@pytest.mark.parametrize("is_right", [True, False], ids=["right", "wrong"])
@pytest.mark.parametrize("records_again", [True, False], ids=["recorded again", "only verified"])
@pytest.mark.parametrize("record", RECORD.values(), ids=RECORD)
async def test_the_file_that_replaces_a_pointer_is_compared_with_it(
    catalog, path, record, records_again, is_right
):
    """
    `git lfs pull` may be cut short, or fetch from a server with other bytes.
    """
    model = await record(catalog, path)
    path.write_bytes(WEIGHTS if is_right else WEIGHTS[::-1])
    if records_again:
        await record(catalog, path)

    result = await verify(catalog)

    assert result.verdict is (Verdict.OK if is_right else Verdict.MISMATCH)
    if is_right:
        assert result.model.size_bytes == len(WEIGHTS)
        assert await files_of(catalog, model) == [(len(WEIGHTS), DIGEST, None)]
        assert not (await check_models(catalog)).findings


async def test_adding_with_a_digest_records_that_of_the_content(catalog, path):
    """
    The digest of the pointer's text is of no use.
    """
    model = await add(catalog, path, digest=True)

    assert model.digest == DIGEST


async def test_a_pointer_in_place_of_a_recorded_file_keeps_its_digest(catalog, path):
    """
    As after `git checkout` without Git LFS. The state says that the file has changed.
    """
    path.write_bytes(WEIGHTS)
    await add(catalog, path, digest=True)
    path.write_bytes(POINTER)

    result = await verify(catalog)

    assert (result.verdict, result.model.digest) == (Verdict.INCOMPLETE, DIGEST)
    (changed,) = (await check_models(catalog)).findings
    assert changed.state is FileState.CHANGED


async def test_a_pointer_is_no_duplicate_of_its_file(catalog, path, tmp_path):
    """
    It has the digest of the file.
    """
    await add(catalog, path)
    other = tmp_path / "m.gguf"
    other.write_bytes(WEIGHTS)
    await register_path(catalog, other, "n", "local", digest=True)

    assert await find_duplicates(catalog) == ()


async def test_a_registered_digest_of_a_small_file_stays_when_the_file_grows(catalog, path):
    """
    The host knows which bytes are right. A verification finds the others.
    """
    files = [FileRecord("m.gguf", len(POINTER), digest=DIGEST)]
    model = Model(reference="m", provider="local", local_path=str(path.parent))
    await catalog.register_model(model, files=files)
    path.write_bytes(WEIGHTS[::-1])

    assert (await verify(catalog)).verdict is Verdict.MISMATCH


async def test_a_repository_that_was_cloned_without_git_lfs_is_whole_after_the_pull(catalog, path):
    """
    Its config is there, and its weights are pointers.
    """
    folder = path.parent / "clone"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    path.unlink()
    header = b'{"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'
    content = len(header).to_bytes(8, "little") + header + bytes(8)
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    named = POINTER.replace(DIGEST.encode(), digest.encode())
    (folder / "model.safetensors").write_bytes(named)
    cloned = await scan(catalog, folder)
    first = await verify(catalog)
    (folder / "model.safetensors").write_bytes(content)

    pulled = await scan(catalog, folder)
    second = await verify(catalog)

    assert "Git LFS pointer" in cloned.incomplete_reason
    assert (first.verdict, second.verdict) == (Verdict.INCOMPLETE, Verdict.OK)
    assert (pulled.incomplete_reason, pulled.id) == (None, cloned.id)
    files = {file.path: file.digest for file in await catalog.list_files(pulled)}
    assert files["model.safetensors"] == digest
