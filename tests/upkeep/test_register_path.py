"""Register the model at a path, and accept new content."""

import asyncio
import hashlib
import json
import os
import pickle
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from model_catalog import (
    FileChangedError,
    InvalidModelError,
    ModelNotFoundError,
    NotAFileError,
    ProtectedFileError,
    open_catalog,
    upgrade,
)
from model_catalog.cli.commands.demo_files import make_gguf
from model_catalog.upkeep import accept_model, check_models, register_path, verify_models

# They test files more than statements, which the slow tests run on PostgreSQL too.
pytestmark = pytest.mark.slow_with("asyncpg")

FIXTURES = Path(
    os.environ.get(
        "MODEL_CATALOG_TEST_FIXTURES",
        Path(__file__).parents[2].parent / "shared" / "fixtures",
    )
)


async def test_a_file_is_registered_with_its_size_and_header_metadata(catalog, tmp_path):
    """
    The metadata of the header is recorded as claims, and the path is absolute.
    """
    path = tmp_path / "m.gguf"
    path.write_bytes(make_gguf("llama", context_length=4096))

    recorded = await register_path(catalog, path, provider="local", reference="m")

    assert recorded.reasons == ()
    model = await catalog.get_model("m", "local")
    assert (model.local_path, model.size_bytes) == (str(path), path.stat().st_size)
    assert (model.format, model.architecture, model.quantization) == ("gguf", "llama", "F32")
    assert (model.context_length, model.parameter_count) == (4096, 8)
    assert model.claimed_architecture == "llama"


async def test_registering_again_keeps_the_users_fields(catalog, tmp_path):
    """
    It replaces the metadata of the header. Fields, tags and the description that the user has set
    stay.
    """
    path = tmp_path / "m.gguf"
    path.write_bytes(make_gguf("llama", context_length=4096))
    await register_path(catalog, path, provider="local", reference="m")
    await catalog.update_model("m", "local", architecture="my llama", description="mine")
    await catalog.tag_model("m", "local", "chat")

    path.write_bytes(b"no header at all")
    recorded = await register_path(catalog, path, provider="local", reference="m")

    model = recorded.model
    assert (model.architecture, model.claimed_architecture) == ("my llama", None)
    assert (model.context_length, model.tags, model.description) == (None, ("chat",), "mine")
    assert (model.size_bytes, model.download_count) == (16, 2)
    assert recorded.reasons


async def test_a_folder_is_one_model(catalog, tmp_path):
    """
    Its size is that of all files. `config.json` completes the metadata of the headers.
    """
    header = json.dumps({"w": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    weights = len(header).to_bytes(8, "little") + header + bytes(4)
    (tmp_path / "model.safetensors").write_bytes(weights)
    config = json.dumps({"model_type": "qwen2", "max_position_embeddings": 32768})
    (tmp_path / "config.json").write_text(config)

    recorded = await register_path(catalog, tmp_path, provider="hf", reference="m", version="v1")

    model = recorded.model
    assert recorded.reasons == ()
    assert model.size_bytes == len(weights) + len(config)
    assert (model.format, model.architecture, model.context_length) == (
        "safetensors",
        "qwen2",
        32768,
    )
    assert (model.version, model.parameter_count) == ("v1", 2)


async def test_an_incomplete_set_is_registered_with_a_reason(catalog, tmp_path):
    """
    A missing shard is not an error.
    """
    (tmp_path / "m-00001-of-00002.gguf").write_bytes(make_gguf("llama", context_length=1))

    recorded = await register_path(
        catalog, tmp_path / "m-00001-of-00002.gguf", provider="local", reference="m"
    )

    assert any("m-00002-of-00002.gguf" in reason for reason in recorded.reasons)
    assert await catalog.find_model("m", "local") is not None


@pytest.mark.parametrize(
    ("name", "error"),
    [("missing", FileNotFoundError), ("pipe", NotAFileError), ("loop", OSError)],
)
async def test_a_path_that_is_not_a_readable_file_is_not_registered(catalog, tmp_path, name, error):
    """
    A missing file, a FIFO and a link to itself are errors, and no row is written.
    """
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")

    with pytest.raises(error):
        await register_path(catalog, tmp_path / name, provider="local", reference="m")

    assert await catalog.list_models() == []


async def test_an_invalid_name_is_refused(catalog, tmp_path):
    """
    The fields are validated as in `register_model`.
    """
    (tmp_path / "m.bin").write_bytes(b"m")

    with pytest.raises(InvalidModelError, match="provider ' ' must not be blank"):
        await register_path(catalog, tmp_path / "m.bin", provider=" ", reference="m")


REGISTER_IN_A_TRANSACTION = """
import asyncio, os, sqlite3, sys
from model_catalog import ProtectedFileError, open_catalog
from model_catalog.upkeep import accept_model, check_models, register_path, verify_models

async def main():
    async with open_catalog(sys.argv[1]) as catalog, catalog.transaction() as writing:
        try:
            await register_path(catalog, sys.argv[1], provider="p", reference="r")
        except ProtectedFileError:
            print("refused", flush=True)
        if sys.argv[2] == "folder":
            # Describing a folder opens its files, and must skip the database.
            from model_catalog.upkeep.worker_threads import file_identities
            from model_catalog.files.model_description import describe_model
            protected = file_identities(catalog.database_files)
            describe_model(os.path.dirname(sys.argv[1]), protected=protected)
        print("described", flush=True)
        sys.stdin.readline()

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.slow_with("folder")
@pytest.mark.parametrize("what", ["file", "folder"])
def test_registering_the_databases_folder_keeps_its_write_lock(tmp_path, what):
    """
    A process with SQLite's write lock still has it after it tried to register its own database, or
    described the folder that contains it.
    """
    path = tmp_path / "catalog.db"
    asyncio.run(upgrade(path))
    (tmp_path / "m.gguf").write_bytes(make_gguf("llama", context_length=1))
    with subprocess.Popen(
        [sys.executable, "-c", REGISTER_IN_A_TRANSACTION, path, what],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout.readline() == "refused\n"
        assert holder.stdout.readline() == "described\n"

        with (
            closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as other,
            pytest.raises(sqlite3.OperationalError, match="locked"),
        ):
            other.execute("BEGIN IMMEDIATE")
        holder.communicate("\n")
    assert holder.returncode == 0


async def test_a_cancelled_registration_records_nothing(tmp_path, catalog):
    """
    The thread stops, and no row is written.
    """
    (tmp_path / "m.gguf").write_bytes(make_gguf("llama", context_length=1))
    registering = asyncio.create_task(
        register_path(catalog, tmp_path / "m.gguf", provider="local", reference="m")
    )
    await asyncio.sleep(0)

    registering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await registering

    assert await catalog.list_models() == []


@pytest.mark.skipif(not FIXTURES.is_dir(), reason="the real model files are not available")
async def test_real_model_files_are_registered(tmp_path):
    """
    The headers are those that other programs have written.
    """
    async with open_catalog(tmp_path / "catalog.db") as catalog:
        bert = await register_path(
            catalog, FIXTURES / "ggml-vocab-bert-bge.gguf", provider="hf", reference="bge"
        )
        voices = await register_path(
            catalog, FIXTURES / "voices.safetensors", provider="hf", reference="voices"
        )
        shards = await register_path(
            catalog, FIXTURES / "synthetic" / "tiny-sharded", provider="local", reference="tiny"
        )

    assert (bert.model.format, bert.model.architecture) == ("gguf", "bert")
    assert bert.model.context_length == 512
    assert voices.model.format == "safetensors"
    assert shards.model.format == "safetensors"
    assert shards.reasons == ()


@pytest.mark.slow
def test_a_hard_link_to_the_database_is_protected(tmp_path):
    """
    It is recognised by its inode, not by its name.
    """

    async def register_link():
        async with open_catalog(tmp_path / "catalog.db") as catalog:
            os.link(tmp_path / "catalog.db", tmp_path / "model.gguf")
            with pytest.raises(ProtectedFileError):
                await register_path(
                    catalog, tmp_path / "model.gguf", provider="local", reference="m"
                )

    asyncio.run(register_link())


NAME = ("m", "local")


async def register(catalog, path, **options):
    return (await register_path(catalog, path, provider="local", reference="m", **options)).model


def sha256(content):
    return "sha256:" + hashlib.sha256(content).hexdigest()


def create_folder(folder):
    """Create files whose names sort differently in a locale than by bytes."""
    for name in ("b.bin", "A.bin", "\u00e4.bin", "inner/c.bin", "inner-d.bin"):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name.encode())
    return folder


def sha256sum(folder):
    command = "find . -type f | sed s,^./,, | LC_ALL=C sort | xargs -d'\\n' sha256sum | sha256sum"
    process = subprocess.run(
        command, shell=True, cwd=folder, capture_output=True, text=True, check=True
    )
    return "sha256:" + process.stdout.split()[0]


@pytest.mark.parametrize("how", ["registered", "verified", "accepted"])
async def test_the_digest_of_a_folder_is_that_of_sha256sum(catalog, tmp_path, how):
    """
    It is the digest of the lines of `sha256sum`, sorted by the bytes of the names. Registering,
    verifying and accepting compute the same.
    """
    (tmp_path / "folder").mkdir()
    folder = create_folder(tmp_path / "folder")
    await register(catalog, folder, digest=how == "registered")
    if how == "verified":
        assert [each.verdict async for each in verify_models(catalog)] == ["ok"]
    elif how == "accepted":
        await accept_model(catalog, *NAME)

    model = await catalog.get_model(*NAME)
    assert model.digest == sha256sum(folder)
    files = await catalog.list_files(*NAME)
    assert [file.path for file in files] == [
        "A.bin",
        "b.bin",
        "inner-d.bin",
        "inner/c.bin",
        "\u00e4.bin",
    ]
    for file in files:
        content = (folder / file.path).read_bytes()
        assert (file.digest, file.size_bytes) == (sha256(content), len(content))
        assert file.found_digest is None
        assert file.hashed_at <= model.verified_at


async def test_each_file_is_recorded_in_a_row(catalog, database, tmp_path):
    """
    The row has the path inside the model, the role, the size and the fingerprint.
    """
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    folder = tmp_path / "folder"
    (folder / "inner" / "m.gguf").write_bytes(make_gguf("llama", context_length=1))
    (folder / "config.json").write_text("{}")

    await register(catalog, folder)

    rows = database.run(
        "SELECT path, role, size_bytes, digest, fingerprint, hashed_at FROM model_files"
        " ORDER BY path"
    )
    expected = []
    for name, role in (("config.json", "config"), ("inner/m.gguf", "weights")):
        seen = (folder / name).stat()
        fingerprint = f"{seen.st_size}:{seen.st_mtime_ns}:{seen.st_ctime_ns}:{seen.st_ino}"
        expected.append((name, role, seen.st_size, None, fingerprint, None))
    assert rows == expected


async def test_progress_is_reported_while_hashing(tmp_path):
    """
    It ends with all bytes. Without a digest nothing is read or reported.
    """
    (tmp_path / "m.bin").write_bytes(b"x" * 3_000_000)
    reports = []
    async with open_catalog(tmp_path / "catalog.db") as catalog:
        await register(catalog, tmp_path / "m.bin", on_progress=reports.append)
        assert reports == []
        await register(catalog, tmp_path / "m.bin", digest=True, on_progress=reports.append)
        await asyncio.sleep(0)

    assert (reports[-1].done_bytes, reports[-1].total_bytes) == (3_000_000, 3_000_000)


async def test_a_file_written_to_before_it_is_hashed_is_refused(tmp_path):
    """
    Otherwise the header of the old content would be recorded with the digest of the new content.
    """
    folder = tmp_path / "folder"
    folder.mkdir()
    with (folder / "a.bin").open("wb") as file:
        file.truncate(128 * 1024 * 1024)
    (folder / "b.bin").write_bytes(b"before")

    def write(progress):
        (folder / "b.bin").write_bytes(b"after")

    async with open_catalog(tmp_path / "catalog.db") as catalog:
        with pytest.raises(FileChangedError, match=r"b\.bin"):
            await register(catalog, folder, digest=True, on_progress=write)

        assert await catalog.list_models() == []


async def test_registering_again_keeps_digests_that_may_still_be_valid(catalog, tmp_path):
    """
    If the files are unchanged, their digests and the time of verification stay. If a file of the
    same size was touched, its expected digest stays, but it no longer counts as verified.
    """
    path = tmp_path / "m.bin"
    path.write_bytes(b"right")
    first = await register(catalog, path, digest=True)
    again = await register(catalog, path)
    path.write_bytes(b"wrong")
    touched = await register(catalog, path)

    assert (again.digest, again.verified_at) == (first.digest, first.verified_at)
    assert again.verified_at is not None
    assert (touched.digest, touched.verified_at) == (first.digest, None)
    (found,) = [each async for each in verify_models(catalog)]
    assert found.verdict == "mismatch"
    assert found.model.digest == sha256(b"right")


async def test_registering_again_keeps_a_mismatch(catalog, database, tmp_path):
    """
    A damaged model stays damaged until its files are read again.
    """
    path = tmp_path / "m.bin"
    path.write_bytes(b"right")
    await register(catalog, path, digest=True)
    path.write_bytes(b"wrong")
    seen = path.stat()
    fingerprint = f"{seen.st_size}:{seen.st_mtime_ns}:{seen.st_ctime_ns}:{seen.st_ino}"
    database.run("UPDATE model_files SET fingerprint = ?", fingerprint)
    assert [each.verdict async for each in verify_models(catalog)] == ["mismatch"]

    model = await register(catalog, path)

    assert (model.digest, model.found_digest) == (sha256(b"right"), sha256(b"wrong"))
    (file,) = await catalog.list_files(*NAME)
    assert file.is_damaged
    assert not (await check_models(catalog)).is_as_recorded


async def test_accepting_replaces_digest_size_files_and_metadata(catalog, tmp_path):
    """
    It does not count as a download, and the fields of the user stay.
    """
    path = tmp_path / "m.gguf"
    path.write_bytes(make_gguf("llama", context_length=1))
    await register(catalog, path, digest=True)
    await catalog.update_model(*NAME, description="mine")
    path.write_bytes(make_gguf("gemma", context_length=2) + b"longer")

    accepted = await accept_model(catalog, *NAME)

    model = await catalog.get_model(*NAME)
    assert (model.digest, model.size_bytes) == (sha256(path.read_bytes()), path.stat().st_size)
    assert (model.architecture, model.context_length) == ("gemma", 2)
    assert (model.description, model.download_count) == ("mine", 1)
    assert (model.state, model.verified_at) == ("present", accepted.model.verified_at)
    assert (await check_models(catalog)).is_as_recorded


async def test_a_missing_model_or_file_cannot_be_accepted(catalog, tmp_path):
    """
    Both are errors, and the expected digest stays.
    """
    path = tmp_path / "m.bin"
    path.write_bytes(b"right")
    with pytest.raises(ModelNotFoundError):
        await accept_model(catalog, *NAME)
    await register(catalog, path, digest=True)
    path.unlink()

    with pytest.raises(FileNotFoundError):
        await accept_model(catalog, *NAME)

    assert (await catalog.get_model(*NAME)).digest == sha256(b"right")


async def test_a_pickle_is_recorded_as_unsafe(catalog, tmp_path):
    """
    It is recognised by its content, not by its name. A file without a pickle is not unsafe.
    """
    (tmp_path / "harmless.gguf").write_bytes(pickle.dumps({"weights": [1, 2, 3]}, protocol=2))
    (tmp_path / "m.gguf").write_bytes(make_gguf("llama", context_length=1))

    unsafe = await register(catalog, tmp_path / "harmless.gguf", version="pickle")
    safe = await register(catalog, tmp_path / "m.gguf", version="gguf")

    assert (unsafe.unsafe, safe.unsafe) == (True, False)
    assert (await catalog.get_model("m", "local", "pickle")).unsafe


async def test_a_file_name_that_is_not_utf8_is_recorded_and_hashed(catalog, tmp_path):
    """
    The file belongs to the model, and is recorded with the bytes of its name.
    """
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in (b"\xff.bin", b"a.bin"):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(name)

    model = await register(catalog, folder, digest=True)

    assert model.digest == sha256sum(folder)
    assert [os.fsencode(file.path) for file in await catalog.list_files(*NAME)] == [
        b"a.bin",
        b"\xff.bin",
    ]
    assert (await check_models(catalog)).is_as_recorded
