"""What lies at a path is looked at, and then recorded."""

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from model_catalog import (
    InvalidModelError,
    NotAFileError,
    ProtectedFileError,
    open_catalog,
    upgrade,
)
from model_catalog.cli.demo import gguf_of
from model_catalog.upkeep import register_path

FIXTURES = Path(
    os.environ.get(
        "MODEL_CATALOG_TEST_FIXTURES",
        Path(__file__).parents[2].parent / "shared" / "fixtures",
    )
)


async def test_a_file_is_recorded_with_its_size_and_its_claims(catalog, tmp_path):
    """
    What the header says is a claim; the path is recorded whole.
    """
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_of("llama", context_length=4096))

    recorded = await register_path(catalog, path, provider="local", reference="m")

    assert recorded.reasons == ()
    model = await catalog.get_model("m", "local")
    assert (model.local_path, model.size_bytes) == (str(path), path.stat().st_size)
    assert (model.format, model.architecture, model.quantization) == ("gguf", "llama", "F32")
    assert (model.context_length, model.parameter_count) == (4096, 8)
    assert model.claimed_architecture == "llama"


async def test_the_users_word_outlives_another_look(catalog, tmp_path):
    """
    Looking again replaces what was claimed, and nothing that was said or attached.
    """
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_of("llama", context_length=4096))
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
    Its files together are its size; config.json fills in what the headers do not say.
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


async def test_a_set_that_is_not_whole_is_recorded_and_told_of(catalog, tmp_path):
    """
    A missing shard is a reason, not an error.
    """
    (tmp_path / "m-00001-of-00002.gguf").write_bytes(gguf_of("llama", context_length=1))

    recorded = await register_path(
        catalog, tmp_path / "m-00001-of-00002.gguf", provider="local", reference="m"
    )

    assert any("m-00002-of-00002.gguf" in reason for reason in recorded.reasons)
    assert await catalog.find_model("m", "local") is not None


@pytest.mark.parametrize(
    ("name", "error"),
    [("missing", FileNotFoundError), ("pipe", NotAFileError), ("loop", OSError)],
)
async def test_what_cannot_be_looked_at_is_not_recorded(catalog, tmp_path, name, error):
    """
    No file, a FIFO or a link to itself: an error, and no row.
    """
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")

    with pytest.raises(error):
        await register_path(catalog, tmp_path / name, provider="local", reference="m")

    assert await catalog.list_models() == []


async def test_a_bad_name_is_refused(catalog, tmp_path):
    """
    The rules for what may be stored are those of register_model.
    """
    (tmp_path / "m.bin").write_bytes(b"m")

    with pytest.raises(InvalidModelError, match="provider ' ' is blank"):
        await register_path(catalog, tmp_path / "m.bin", provider=" ", reference="m")


LOCKED = """
import asyncio, os, sqlite3, sys
from model_catalog import ProtectedFileError, open_catalog
from model_catalog.upkeep import register_path

async def main():
    async with open_catalog(sys.argv[1]) as catalog, catalog.transaction() as writing:
        try:
            await register_path(catalog, sys.argv[1], provider="p", reference="r")
        except ProtectedFileError:
            print("refused", flush=True)
        if sys.argv[2] == "folder":
            # Reading a folder opens the files in it, and must step over this one.
            from model_catalog.upkeep.threads import identities
            from model_catalog.files.description import describe
            describe(os.path.dirname(sys.argv[1]), forbidden=identities(catalog.database_files))
        print("looked", flush=True)
        sys.stdin.readline()

asyncio.run(main())
"""


@pytest.mark.parametrize("what", ["file", "folder"])
def test_the_catalogs_own_lock_outlives_a_look_at_its_folder(tmp_path, what):
    """
    A process that holds SQLite's write lock still holds it after it was asked to look at its own
    database, and at the folder that lies in.
    """
    path = tmp_path / "catalog.db"
    asyncio.run(upgrade(path))
    (tmp_path / "m.gguf").write_bytes(gguf_of("llama", context_length=1))
    with subprocess.Popen(
        [sys.executable, "-c", LOCKED, path, what],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout.readline() == "refused\n"
        assert holder.stdout.readline() == "looked\n"

        with (
            closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as other,
            pytest.raises(sqlite3.OperationalError, match="locked"),
        ):
            other.execute("BEGIN IMMEDIATE")
        holder.communicate("\n")
    assert holder.returncode == 0


async def test_a_look_that_is_cancelled_records_nothing(tmp_path, catalog):
    """
    The thread is asked to stop, and the caller does not wait for a row that nobody wants.
    """
    (tmp_path / "m.gguf").write_bytes(gguf_of("llama", context_length=1))
    look = asyncio.create_task(
        register_path(catalog, tmp_path / "m.gguf", provider="local", reference="m")
    )
    await asyncio.sleep(0)

    look.cancel()
    with pytest.raises(asyncio.CancelledError):
        await look

    assert await catalog.list_models() == []


@pytest.mark.skipif(not FIXTURES.is_dir(), reason="no real model files beside this checkout")
async def test_real_model_files_are_recorded(tmp_path):
    """
    Files that other programs wrote are known by what they say.
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


def test_the_database_is_protected_by_what_it_is(tmp_path):
    """
    A hard link to it is the same file, whatever it is called.
    """

    async def look():
        async with open_catalog(tmp_path / "catalog.db") as catalog:
            os.link(tmp_path / "catalog.db", tmp_path / "model.gguf")
            with pytest.raises(ProtectedFileError):
                await register_path(
                    catalog, tmp_path / "model.gguf", provider="local", reference="m"
                )

    asyncio.run(look())
