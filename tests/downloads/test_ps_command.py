"""`model-catalog ps` shows running downloads and models in use."""

import asyncio
import json
import os

import pytest
from download_helpers import NAME, Downloader

from model_catalog import Model
from model_catalog.cli import main
from model_catalog.downloads import get_or_download, use_model


@pytest.fixture
async def busy(catalog, database, tmp_path):
    """A catalog with a model in use, a running download, and one that failed."""
    await catalog.register_model(Model(reference="used", provider="local", local_path="/m"))

    async def fail(_claim):
        raise RuntimeError("no space\x1b[2J")

    with pytest.raises(RuntimeError):
        await get_or_download(catalog, "hf:org/failed", fail)
    release = asyncio.Event()
    download = Downloader(tmp_path / "m", release=release)
    task = asyncio.create_task(get_or_download(catalog, NAME, download))
    await download.started.wait()
    database.run("UPDATE model_downloads SET done_bytes = 500000, total_bytes = 2000000")
    async with use_model(catalog, "local:used"):
        yield str(database.target)
    release.set()
    await task


async def ps(target, *options):
    """The command has an event loop of its own."""
    return await asyncio.to_thread(main, ["ps", "--db", target, *options])


async def test_running_downloads_and_models_in_use_are_listed(busy, capsys):
    """
    Downloads that have ended are listed with `--all` only.
    """
    code = await ps(busy)
    printed, notice = capsys.readouterr()
    await ps(busy, "--all")
    everything, whole_notice = capsys.readouterr()

    assert code == 0
    lines = printed.splitlines()
    assert lines[0].split() == ["STATE", "MODEL", "PROGRESS", "SINCE", "PROCESS"]
    assert lines[1].startswith("running  hf:org/tiny  25% of 2.0 MB")
    assert lines[2].startswith("in use   local:used")
    assert lines[2].endswith(f":{os.getpid()}")
    assert notice == "1 running download, 1 model in use\n"
    assert whole_notice == "1 running download, 1 ended, 1 model in use\n"
    assert "RuntimeError: no space\N{REPLACEMENT CHARACTER}[2J" in everything


async def test_the_other_formats_have_bytes_and_times(busy, capsys):
    """
    `--json` has a list of objects, and `--format quiet` names only.
    """
    await ps(busy, "--json")
    rows = json.loads(capsys.readouterr().out)
    await ps(busy, "--format", "tsv")
    table = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    await ps(busy, "--format", "quiet")
    names = capsys.readouterr().out.splitlines()

    assert [(row["state"], row["model"]) for row in rows] == [
        ("running", NAME),
        ("in use", "local:used@"),
    ]
    assert (rows[0]["done_bytes"], rows[0]["total_bytes"]) == (500_000, 2_000_000)
    assert rows[0]["started_at"].endswith("Z")
    assert table[0] == list(rows[0])
    assert names == [NAME, "local:used@"]


def test_without_a_catalog_nothing_runs(tmp_path, monkeypatch, capsys):
    """
    The default catalog is not created.
    """
    monkeypatch.chdir(tmp_path)

    code = main(["ps"])

    assert code == 0
    assert capsys.readouterr().err == "0 running downloads, 0 models in use\n"
    assert list(tmp_path.iterdir()) == []
