"""The verdict about a model stays the same in scans and verifications of the same bytes."""

import json
from pathlib import Path

import pytest
from adoption_helpers import SAFETENSORS as WEIGHTS
from adoption_helpers import adopt_scan, scan
from layouts import C1, HuggingFace, fill, write
from new_layouts import KaggleHub

from model_catalog.cli.commands.demo_files import make_gguf
from model_catalog.upkeep import accept_model, adopt, register_path, scan_store, verify_models

"""A whole file, by the package safetensors 0.8."""
POINTER = (
    f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 12345\n".encode()
)
SHARDS = [f"m-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
INDEX = json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}).encode()
REPOSITORIES = {
    "org/whole": {"m.safetensors": WEIGHTS, "config.json": b"{}", "tokenizer.json": b"{}"},
    "org/truncated": {"m.safetensors": WEIGHTS[:-1]},
    "org/pointer": {"m.safetensors": POINTER},
    "org/page": {"pytorch_model.bin": b"<!DOCTYPE html>"},
    "org/damaged": {"m.gguf": b"GGUF"},
    "org/listed": {"m.safetensors": WEIGHTS, "README.md": b"r"},
    "org/gone": {"m.safetensors": WEIGHTS, "config.json": b"{}"},
    "org/onnx": {"onnx/model.onnx": b"\x08\x0a", "config.json": b"{}"},
    "org/ct2": {"model.bin": b"\x06\0\0\0\x0c\0WhisperSpec\0" + bytes(50)},
    "org/named": {"m.ckpt": b"\x01\x02\x03" * 9},
    "org/tokenizer": {"tokenizer.json": b"{}"},
    # The index lists two of the three shards that the names count.
    "org/index": {SHARDS[0]: WEIGHTS, SHARDS[1]: WEIGHTS, "m.safetensors.index.json": INDEX},
}
INCOMPLETE = {"truncated", "pointer", "page", "damaged", "listed", "gone"}
UNKNOWN = {"onnx", "ct2", "named"}


def make_cache(folder):
    cache = HuggingFace(folder / "hub")
    for name, files in REPOSITORIES.items():
        tree = dict(files)
        if name == "org/listed":
            tree["config.json"] = b"{}"
        cache.revision(name, C1, files, tree=tree)
    gone = cache.repository("org/gone") / f"snapshots/{C1}/config.json"
    gone.resolve().unlink()
    return cache


async def verdicts(catalog):
    return {
        model.reference.removeprefix("org/"): (
            model.incomplete_reason,
            model.unknown_reason,
            model.listing_reason,
            model.content_reason,
            model.format,
        )
        for model in await catalog.list_models()
    }


@pytest.mark.parametrize("level", ["structure", "full"])
async def test_a_scan_after_a_verification_changes_nothing(on_sqlite, tmp_path, level):
    """
    The words are the same too. A scan that reads no headers keeps those that others have read.
    """
    catalog, cache = on_sqlite, make_cache(tmp_path)
    await adopt_scan(catalog, cache)
    scanned = await verdicts(catalog)

    found = {
        each.model.reference.removeprefix("org/"): each.verdict
        async for each in verify_models(catalog, level)
    }
    verified = await verdicts(catalog)
    reports = [await adopt_scan(catalog, cache, headers=headers) for headers in (True, False)]

    assert {name for name, values in scanned.items() if values[0]} == INCOMPLETE
    assert {name for name, values in scanned.items() if values[1]} == UNKNOWN
    assert verified == scanned == await verdicts(catalog)
    assert [len(report.unchanged) for report in reports] == [len(REPOSITORIES)] * 2
    assert {name for name, verdict in found.items() if verdict == "incomplete"} == INCOMPLETE
    assert {verdict for name, verdict in found.items() if name not in INCOMPLETE} == {"ok"}


async def test_a_verification_tells_more_than_a_scan_that_reads_nothing(on_sqlite, tmp_path):
    """
    The next scan without headers keeps it. A scan that reads headers first finds the same.
    """
    catalog, cache = on_sqlite, make_cache(tmp_path)
    await adopt_scan(catalog, cache, headers=False)
    by_names = await verdicts(catalog)
    async for _ in verify_models(catalog, "structure"):
        pass
    verified = await verdicts(catalog)

    await adopt_scan(catalog, cache, headers=False)
    kept = await verdicts(catalog)
    await adopt_scan(catalog, cache)

    assert {name for name, values in by_names.items() if values[0]} == {"listed", "gone", "index"}
    assert by_names["named"][4] == "pickle"
    assert {name for name, values in verified.items() if values[0]} == INCOMPLETE
    assert verified["named"][4] is None
    assert kept == verified == await verdicts(catalog)


async def test_another_file_of_a_model_does_not_erase_what_was_read_of_its_weights(
    on_sqlite, tmp_path
):
    """
    New weights are read again, or nothing is known of their content.
    """
    catalog, cache = on_sqlite, HuggingFace(tmp_path / "hub")
    snapshot = cache.revision("org/m", C1, {"m.safetensors": WEIGHTS[:-1]})
    await adopt_scan(catalog, cache)
    before = (await catalog.get_model("org/m", "hf")).incomplete_reason

    cache.link(snapshot, "README.md", cache.blob("org/m", "README.md", b"r"))
    await adopt_scan(catalog, cache, headers=False)
    with_readme = (await catalog.get_model("org/m", "hf")).incomplete_reason
    (snapshot / "m.safetensors").unlink()
    cache.link(snapshot, "m.safetensors", cache.blob("org/m", "m.safetensors", WEIGHTS))
    await adopt_scan(catalog, cache, headers=False)

    assert before == with_readme is not None
    assert (await catalog.get_model("org/m", "hf")).incomplete_reason is None


async def test_a_finished_download_ends_its_reason_in_a_scan_without_headers(on_sqlite, tmp_path):
    """
    The reasons of the names are those of the last scan.
    """
    folder = tmp_path / "models/pub/repo"
    write(folder / "config.json", b"{}")
    write(folder / "m.safetensors", WEIGHTS)
    partial = write(folder / "tokenizer.json.part", b"{")
    await adopt(on_sqlite, scan("lmstudio", tmp_path / "models"))
    (before,) = await on_sqlite.list_models()

    partial.unlink()
    report = await adopt(on_sqlite, scan("lmstudio", tmp_path / "models"), headers=False)

    assert before.incomplete_reason == "unfinished downloads: 'tokenizer.json.part'"
    assert [finding.detail for finding in report.changed] == ["complete"]


async def test_add_says_what_a_scan_says(on_sqlite, tmp_path):
    """
    A model that the user has added keeps its verdict in a scan.
    """
    folder = tmp_path / "models/pub"
    write(folder / "one/config.json", b"{}")
    write(folder / "one/m-00001-of-00002.safetensors", WEIGHTS[:-1])
    write(folder / "one/tokenizer.json.part", b"{")
    await adopt(on_sqlite, scan("lmstudio", tmp_path / "models"))
    (scanned,) = await on_sqlite.list_models()

    added = await register_path(on_sqlite, folder / "one", "one", "local")
    (model,) = await on_sqlite.list_models(provider="local")
    await adopt(on_sqlite, scan("lmstudio", tmp_path / "models"))

    assert len(added.reasons) == 3
    assert model.incomplete_reason == scanned.incomplete_reason
    assert await on_sqlite.list_models(provider="local", incomplete=True)


async def test_a_model_of_a_store_is_verified_with_the_files_that_the_scan_has_listed(
    on_sqlite, tmp_path
):
    """
    Another quantization in the same folder is another model, and its damage is not this one's.
    """
    cache = HuggingFace(tmp_path / "hub")
    cache.revision(
        "org/m", C1, {"m.safetensors": WEIGHTS, "config.json": b"{}", "m-Q4_K_M.gguf": b"GGUF"}
    )
    await adopt_scan(on_sqlite, cache)

    found = {
        each.model.version: each.verdict async for each in verify_models(on_sqlite, "structure")
    }

    assert found == {C1: "ok", f"{C1}/m-Q4_K_M.gguf": "incomplete"}


async def test_accepted_files_of_a_store_are_those_that_the_scan_listed(catalog, tmp_path):
    """
    Files beside the weights, the kind and the reasons of the store stay. The next scan changes
    nothing.
    """
    files = {
        "m__gguf": make_gguf("llama", context_length=1),
        "mmproj__gguf": make_gguf("clip", context_length=1),
    }
    stores = {name: tmp_path / name for name in ("kagglehub", "lmstudio", "directory")}
    KaggleHub(stores["kagglehub"]).version("a/b/gguf/c/1", complete=False, **files)
    fill(stores["lmstudio"] / "org/m", **files)
    write(stores["directory"] / "models/loras/l.safetensors", WEIGHTS)
    write(stores["directory"] / "models/checkpoints/c.ckpt", b"\x01\x02\x03" * 9)
    for name, root in stores.items():
        await adopt(catalog, await scan_store(catalog, name, root))
    before = await catalog.list_models()

    for model in before:
        await accept_model(catalog, model.ref)

    for name, root in stores.items():
        assert (await adopt(catalog, await scan_store(catalog, name, root))).changed == ()
    after = await catalog.list_models()
    facts = [(each.kind, each.size_bytes, each.incomplete_reason) for each in before]
    assert [(each.kind, each.size_bytes, each.incomplete_reason) for each in after] == facts
    assert all(each.digest is not None for each in after)


@pytest.mark.parametrize("name", ["m.gguf", "m.safetensors"], ids=["file", "folder"])
async def test_a_model_of_a_store_that_is_gone_is_not_accepted(on_sqlite, tmp_path, name):
    """
    Its record stays, also if another file of it still exists.
    """
    folder = tmp_path / "org/m"
    files = {name: b"1", "mmproj.gguf": b"2"} if name == "m.gguf" else {name: b"1"}
    for each, content in {**files, "config.json": b"{}"}.items():
        write(folder / each, content)
    await adopt(on_sqlite, await scan_store(on_sqlite, "lmstudio", tmp_path))
    (before,) = await on_sqlite.list_models()
    Path(before.local_path).rename(tmp_path / "moved")

    with pytest.raises(FileNotFoundError):
        await accept_model(on_sqlite, before.ref)

    (after,) = await on_sqlite.list_models()
    assert (after.size_bytes, after.checked_at) == (before.size_bytes, before.checked_at)
    assert len(await on_sqlite.list_files(after)) == len(files) + (before.version == "")
