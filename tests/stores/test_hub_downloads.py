"""Downloads by huggingface_hub 2.4 from a loopback hub: a scan says what the library says."""

import json
import os
import signal
import subprocess
import sys

import pytest
from loopback_hub import LoopbackHub

from model_catalog.stores.scanners import directory
from model_catalog.stores.scanners.huggingface import scan
from model_catalog.upkeep import Verdict, adopt, register_path, scan_store, verify_models

np = pytest.importorskip("numpy")
save = pytest.importorskip("safetensors.numpy").save

hub = pytest.importorskip("huggingface_hub")

COMMIT = "d" * 40
SHARDS = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
FILES = {
    **{name: save({name: np.zeros(20_000, np.float32)}) for name in SHARDS},
    "model.safetensors.index.json": json.dumps({"weight_map": {n: n for n in SHARDS}}).encode(),
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b'{"version": "1.0"}' + b" " * 2000,
    "README.md": b"about",
    ".gitattributes": b"*.safetensors filter=lfs",
    "onnx/model.onnx": b"\x08\x0a" + bytes(50),
}
CODE = """
import sys, json
from huggingface_hub import snapshot_download
snapshot_download("o/m", revision=sys.argv[1], **json.loads(sys.argv[2]))
"""


@pytest.fixture
def served():
    with LoopbackHub(COMMIT, FILES).serve() as loopback:
        yield loopback


def start_download(served, cache, **options):
    """Start `snapshot_download` in a process of its own, which reads the hub's address once."""
    if "local_dir" not in options:
        options["cache_dir"] = str(cache / "hub")
    env = {
        **os.environ,
        "HF_ENDPOINT": served.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HOME": str(cache / "home"),
    }
    return subprocess.Popen(
        [sys.executable, "-c", CODE, COMMIT, json.dumps(options)],
        env=env,
        stderr=subprocess.PIPE,
    )


def download(served, cache, **options):
    process = start_download(served, cache, **options)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors.decode()


def kill_in_the_middle(served, cache, name, **options):
    """Kill a download with SIGKILL when the hub has sent half of a file, and all of another one."""
    first = {"allow_patterns": ["*.json"], "ignore_patterns": [name, "tok*"]}
    download(served, cache, **{**options, **first})
    served.held = {name}
    process = start_download(served, cache, **options)
    assert served.is_half_sent.wait(60)
    # The other files, which other threads download, may or may not be there.
    process.send_signal(signal.SIGKILL)
    process.communicate()
    served.held = set()
    served.release.set()


def files_of_the_library(cache):
    """The files of the only revision, with sizes, as `scan_cache_dir` lists them."""
    (repo,) = hub.scan_cache_dir(cache / "hub").repos
    (revision,) = repo.revisions
    return {
        str(file.file_path.relative_to(revision.snapshot_path)): file.size_on_disk
        for file in revision.files
    }


def files_of(found):
    folder = (
        found[0].local_path
        if len(found) == 1
        else os.path.commonpath([model.folder for model in found])
    )
    return {
        os.path.relpath(f"{model.folder}/{file.path}", folder): file.size_bytes
        for model in found
        for file in model.files
    }


def main_model(found):
    return next(model for model in found if model.version == COMMIT)


def test_a_download_by_patterns_is_whole(served, tmp_path):
    """
    The library itself says that the snapshot is complete for these patterns only. Loading needs
    none of the files that were left out.
    """
    patterns = ["*.json", "*.safetensors"]
    download(served, tmp_path, allow_patterns=patterns)

    (model,) = scan(tmp_path / "hub").found

    assert files_of([model]) == files_of_the_library(tmp_path)
    assert (model.reasons, model.completeness.verdict) == ((), "whole")
    offline = {"cache_dir": tmp_path / "hub", "revision": COMMIT, "local_files_only": True}
    assert hub.snapshot_download("o/m", **offline, allow_patterns=patterns) == model.local_path
    with pytest.raises(hub.errors.IncompleteSnapshotError):
        hub.snapshot_download("o/m", **offline)


@pytest.mark.slow
def test_a_killed_download_is_incomplete_until_it_is_repeated(served, tmp_path):
    """
    The second try leaves the partial file of the first one beside the finished blob.
    """
    kill_in_the_middle(served, tmp_path, SHARDS[1])
    killed = scan(tmp_path / "hub").found
    killed_files = files_of_the_library(tmp_path)
    download(served, tmp_path)

    repeated = scan(tmp_path / "hub").found

    assert files_of(killed) == killed_files
    assert not main_model(killed).is_complete
    assert SHARDS[1] in "; ".join(main_model(killed).reasons)
    assert (
        files_of(repeated)
        == files_of_the_library(tmp_path)
        == {name: len(data) for name, data in FILES.items()}
    )
    leftovers = hub.scan_cache_dir(tmp_path / "hub").incomplete_files
    assert any(served.etag(SHARDS[1]) in each.file_path.name for each in leftovers)
    assert main_model(repeated).completeness.verdict == "whole"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        SHARDS[1],
        pytest.param(SHARDS[0], marks=pytest.mark.slow),
        pytest.param("tokenizer.json", marks=pytest.mark.slow),
    ],
)
async def test_a_killed_download_to_a_folder_is_incomplete_until_it_is_repeated(
    on_sqlite, served, tmp_path, name
):
    """
    The library names the partial file by a hash of the file's name. The second try leaves it.
    """
    folder = tmp_path / "models" / "m"
    kill_in_the_middle(served, tmp_path, name, local_dir=str(folder), max_workers=1)
    killed = directory.scan(tmp_path / "models")
    added = (await register_path(on_sqlite, folder, "o/m", "hf")).reasons
    download(served, tmp_path, local_dir=str(folder))

    repeated = directory.scan(tmp_path / "models")
    added_again = await register_path(on_sqlite, folder, "o/m", "hf")

    reason = f"unfinished downloads: {name!r}"
    assert reason in killed.found[0].reasons
    assert reason in added
    for scanned in (killed, repeated):
        (leftover,) = scanned.leftovers
        assert (leftover.kind, leftover.path.endswith(".incomplete")) == ("partial", True)
    assert (repeated.found[0].reasons, added_again.reasons) == ((), ())
    assert {file.path: file.size_bytes for file in repeated.found[0].files} == {
        path: len(data) for path, data in FILES.items() if not path.startswith(".")
    }
    assert repeated.problems == killed.problems == ()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", SHARDS[0]])
def test_any_file_that_loading_needs_makes_a_killed_download_incomplete(served, tmp_path, name):
    """
    The tree of the library tells which file an unfinished blob becomes.
    """
    kill_in_the_middle(served, tmp_path, name, allow_patterns=["*.json", "*.safetensors"])

    found = scan(tmp_path / "hub").found

    assert files_of(found) == files_of_the_library(tmp_path)
    assert not any(model.is_complete for model in found)


@pytest.mark.slow
def test_a_killed_download_of_a_file_that_loading_does_not_need_changes_nothing(served, tmp_path):
    """
    All other files were downloaded before. The library still calls the snapshot incomplete.
    """
    download(served, tmp_path, allow_patterns=["*.json", "*.safetensors"])
    kill_in_the_middle(served, tmp_path, "README.md")

    model = main_model(scan(tmp_path / "hub").found)

    assert model.completeness.verdict == "whole"
    with pytest.raises(hub.errors.IncompleteSnapshotError):
        hub.snapshot_download(
            "o/m", cache_dir=tmp_path / "hub", revision=COMMIT, local_files_only=True
        )


@pytest.mark.slow
async def test_a_verification_finds_a_damaged_file_that_is_not_in_lfs(catalog, served, tmp_path):
    """
    The library names the blob of such a file by its Git blob id.
    """
    download(served, tmp_path)
    await adopt(catalog, await scan_store(catalog, "huggingface", tmp_path / "hub"))
    (whole,) = [each async for each in verify_models(catalog)]
    blob = (tmp_path / f"hub/models--o--m/blobs/{served.etag('README.md')}").resolve()
    blob.write_bytes(FILES["README.md"].upper())
    # No digest is recorded then.
    await catalog.remove_model(whole.model)
    await adopt(catalog, await scan_store(catalog, "huggingface", tmp_path / "hub"))

    (damaged,) = [each async for each in verify_models(catalog)]

    assert (whole.verdict, damaged.verdict) == (Verdict.OK, Verdict.MISMATCH)
    assert damaged.detail == "'README.md' does not match the name of its blob"
