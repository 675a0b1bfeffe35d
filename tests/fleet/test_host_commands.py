"""The option `--host`, and the copy of one host's catalog into a shared database and back."""

import asyncio
import json
from pathlib import Path

import pytest
from conftest import Database, a_model, moment

from model_catalog import FileRecord, open_catalog
from model_catalog.cli import main

DIGEST = f"sha256:{7:064x}"


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Run a command that must succeed in an empty folder, and return its standard output."""
    monkeypatch.chdir(tmp_path)
    for name in ("MODEL_CATALOG_URL", "MODEL_CATALOG_HOST"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str) -> str:
        code = main(arguments)
        found = capsys.readouterr()
        assert code == 0, found.err
        return found.out

    return run


def fill(target, host: str | None = None) -> None:
    """Record a model with a value in every group of fields, and a row in every child table."""
    asyncio.run(fill_catalog(target, host))


async def fill_catalog(target, host: str | None) -> None:
    async with open_catalog(target, host=host) as catalog:
        await record_models(catalog)


async def record_models(catalog) -> None:
    model = a_model("m", version="v1", size_bytes=7, license="mit", downloaded_at=moment(0))
    await catalog.register_model(
        model,
        [FileRecord("m.gguf", 7, digest=DIGEST, found_digest=None, fingerprint="7:1:2:3")],
    )
    await catalog.register_model(a_model("m", version="v2", downloaded_at=moment(1)))
    await catalog.tag_model("m", "hf", tags=["Chat"], version="v1")
    await catalog.pin_model("m", "hf", "v1", reason="mine")
    await catalog.set_alias("m", "hf", "stable", version="v1")
    await catalog.record_use("m", "hf", "v1", count=5)
    await catalog.update_model("m", "hf", "v1", description="für alle", claimed_license="bsd")


# The results of checks and verifications, which need files on the disk.
RESULTS = """
    UPDATE models SET state = 'present', checked_at = 1729000000, verified_at = 1729000001,
        signed_by = ?, signature_verdict = 'valid', signature_checked_at = 1729000002,
        mount_point = '/', store = 'huggingface', store_root = '/hub', managed_root = '/hub',
        unknown_reason = 'not read'
    WHERE version = 'v1'"""


@pytest.mark.slow
def test_the_catalog_of_a_host_is_copied_into_a_shared_database_and_back(database, run, tmp_path):
    """
    `export` and `import --host` lose nothing: usage, verification, files, tags, aliases, pins and
    stores. The export of the host has the same bytes, and other hosts keep their rows.
    """
    own = tmp_path / "own.db"
    fill(own)
    Database("sqlite", str(own), path=own).run(RESULTS, DIGEST)
    for host in ("b", None):
        fill(database.target, host)
    before = database.run("SELECT * FROM models ORDER BY id")
    shared = ("--db", str(database.target), "--host", "gpu-07")

    run("export", "own.ndjson", "--db", str(own))
    run("import", "own.ndjson", "--trust-source", *shared)
    run("export", "shared.ndjson", *shared)
    run("import", "shared.ndjson", "--trust-source", "--db", "back.db")
    run("export", "back.ndjson", "--db", "back.db")

    exported = Path("own.ndjson").read_bytes()
    assert exported.count(b"\n") == 3
    assert b'"use_count": 5' in exported
    assert b'"host"' not in exported
    assert Path("shared.ndjson").read_bytes() == Path("back.ndjson").read_bytes() == exported
    assert database.run("SELECT * FROM models WHERE host <> 'gpu-07' ORDER BY id") == before


def test_the_commands_work_on_the_models_of_the_host(database, run, monkeypatch):
    """`--host` has priority over the variable, which belongs to the default target."""
    db = ("--db", str(database.target))
    Path("m.bin").write_bytes(b"7" * 7)
    add = ("add", "m.bin", "--provider", "hf", "--reference")
    run(*add, "one", *db, "--host", "a")
    run(*add, "two", *db)

    listed = {
        host: run("ls", "--format", "quiet", *db, *(("--host", host) if host else ())).split()
        for host in ("a", "b", "")
    }
    shown = json.loads(run("show", "hf:one", "--json", *db, "--host", "a"))
    run("check", *db, "--host", "a")
    run("tag", "hf:one", "chat", *db, "--host", "a")
    monkeypatch.setenv("MODEL_CATALOG_URL", str(database.target))
    monkeypatch.setenv("MODEL_CATALOG_HOST", "a")

    assert listed == {"a": ["hf:one"], "b": [], "": ["hf:two"]}
    assert shown["host"] == "a"
    assert run("ls", "--format", "quiet").split() == ["hf:one"]
    assert run("ls", "--format", "quiet", "--host", "b").split() == []
    assert run("ls", "--format", "quiet", *db).split() == ["hf:two"]
    run("rm", "-y", "hf:one")
    assert database.run("SELECT reference FROM models") == [("two",)]


def test_an_invalid_host_is_an_error_in_one_line(run, capsys):
    """It is refused before a catalog is created."""
    code = main(["add", ".", "--provider", "hf", "--reference", "m", "--host", "a b"])

    assert code != 0
    assert "host 'a b'" in capsys.readouterr().err
    assert not Path(".rbee").exists()
