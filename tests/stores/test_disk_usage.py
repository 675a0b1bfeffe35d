"""Bytes on the disk are counted once, as du counts them, in every total of the catalog."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from adoption_helpers import adopt_scan
from conftest import a_model
from layouts import C1, C2, C3, HuggingFace, Ollama, write
from new_layouts import Docker, KaggleHub, ModelScope, RamaLama

from model_catalog import FileRecord, open_catalog
from model_catalog.cli import main
from model_catalog.stores.scan_result import disk_usage
from model_catalog.stores.store_kinds import SCANNERS
from model_catalog.upkeep import adopt, register_path, scan_store

WEIGHTS = os.urandom(300_000)
MORE = os.urandom(200_000)


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MODEL_CATALOG_URL", str(tmp_path / "c.db"))

    def run(*arguments):
        code = main(arguments)
        out, err = capsys.readouterr()
        return code, out, err

    return run


def du(*paths):
    """
    Return what du(1) of GNU coreutils 9 says of the files below some paths, in bytes.

    The folders and the links themselves are taken off: du counts their own blocks too.
    """
    command = ["du", "--summarize", "--block-size=1", "--total", *map(str, paths)]
    total = int(subprocess.run(command, capture_output=True, check=True).stdout.split()[-2])
    for path in paths:
        for folder, folders, names in os.walk(path):
            links = [name for name in (*folders, *names) if Path(folder, name).is_symlink()]
            own = [folder, *(f"{folder}/{name}" for name in links)]
            total -= sum(os.lstat(each).st_blocks * 512 for each in own)
    return total


def make_hub(folder):
    """Make a cache in which three revisions share one blob, and one of them has another one."""
    cache = HuggingFace(folder / "hub")
    for commit in (C1, C2, C3):
        cache.revision("org/a", commit, {"m.safetensors": WEIGHTS}, refs=())
    cache.revision("org/a", C3, {"n.safetensors": MORE}, refs=())
    return cache


async def test_blobs_that_revisions_share_count_once(catalog, tmp_path):
    """
    Another repository has a copy of its own, which counts too.
    """
    cache = make_hub(tmp_path)
    cache.revision("org/b", C1, {"m.safetensors": WEIGHTS}, refs=())

    await adopt_scan(catalog, cache)

    assert await catalog.get_disk_usage() == du(cache.root)
    assert await catalog.get_disk_usage(reference="org/b") == du(cache.repository("org/b"))
    assert await catalog.get_disk_usage(version=C2) < await catalog.get_disk_usage(version=C3)
    assert await catalog.get_total_size() == 4 * len(WEIGHTS) + len(MORE)
    found = await catalog.stats()
    assert found.total.disk_bytes == found.by_provider["hf"].disk_bytes == du(cache.root)
    assert found.total.size_bytes == 4 * len(WEIGHTS) + len(MORE)


async def test_hard_links_and_sparse_files_count_as_in_du(catalog, tmp_path):
    """
    The link is made after its file was registered, which changes the time in its status.
    """
    folder = tmp_path / "models"
    first = write(folder / "a.gguf", WEIGHTS)
    sparse = write(folder / "sparse.gguf", MORE)
    os.truncate(sparse, 50_000_000)
    await register_path(catalog, first, provider="local", reference="a")
    (folder / "b.gguf").hardlink_to(first)
    (folder / "c.gguf").symlink_to("a.gguf")
    for name in ("b", "c", "sparse"):
        await register_path(catalog, folder / f"{name}.gguf", provider=name, reference=name)

    found = await catalog.stats()

    assert await catalog.get_disk_usage() == found.total.disk_bytes == du(folder) < 1_000_000
    assert found.by_provider["c"].disk_bytes == found.by_provider["local"].disk_bytes
    assert await catalog.get_total_size() == 3 * len(WEIGHTS) + 50_000_000


async def test_models_without_facts_of_the_disk_count_with_their_sizes(catalog):
    """
    Equal paths count once. So do equal fingerprints of an older release. Sums are exact.
    """
    big = 2**63 - 1
    for reference in ("a", "b"):
        await catalog.register_model(a_model(reference, size_bytes=big, local_path="/same"))
    await catalog.register_model(a_model("c", size_bytes=big, local_path="/c"))
    await catalog.register_model(a_model("unknown", size_bytes=None))
    for reference in ("d", "e"):
        files = [FileRecord("m.gguf", 7, fingerprint="7:1:1:1"), FileRecord("n.gguf", 5)]
        await catalog.register_model(a_model(reference, size_bytes=12), files=files)

    assert await catalog.get_disk_usage() == 2 * big + 7 + 5 + 5
    assert (await catalog.stats()).total.disk_bytes == 2 * big + 7 + 5 + 5
    assert await catalog.get_disk_usage(provider="none") == 0


async def test_a_scan_records_a_new_number_of_the_disk_without_reporting_it(database, tmp_path):
    """
    Rows of an older release have no identity, and a mounted disk can have another number.
    """
    cache = make_hub(tmp_path)
    async with open_catalog(database.target) as catalog:
        await adopt_scan(catalog, cache)
        database.run("UPDATE model_files SET file_id = NULL, disk_bytes = NULL")
        without = await catalog.get_disk_usage()
        done = await adopt_scan(catalog, cache)
        after = await catalog.get_disk_usage()
        files = await catalog.list_files("org/a", "hf", C1)

    assert (done.changed, len(done.unchanged)) == ((), 3)
    # The shared fingerprint stands in for the identity, and the size for the blocks.
    assert without == len(WEIGHTS) + len(MORE)
    assert after == du(cache.root)
    status = (cache.repository("org/a") / f"snapshots/{C1}/m.safetensors").stat()
    assert [file.file_id for file in files] == [f"{status.st_dev}:{status.st_ino}"]
    assert [file.disk_bytes for file in files] == [status.st_blocks * 512]


def test_leftovers_of_a_hub_cache_are_counted_and_named(tmp_path):
    """
    huggingface_hub 2.4 leaves blobs of deleted revisions and unfinished downloads.
    """
    cache = make_hub(tmp_path)
    repository = cache.repository("org/a")
    partial = write(repository / "blobs" / f"{'1' * 64}.{'2' * 8}.incomplete", MORE)
    orphan = cache.blob("org/a", "old.safetensors", os.urandom(100_000))

    scan = SCANNERS["huggingface"](cache.root)

    assert {(each.path, each.kind) for each in scan.leftovers} == {
        (str(partial), "partial"),
        (str(orphan), "orphan"),
    }
    assert sum(each.size_bytes for each in scan.leftovers) == len(MORE) + 100_000
    assert scan.disk_bytes == du(cache.root)


def test_leftovers_of_other_stores_are_counted_and_named(tmp_path):
    """
    Ollama keeps blobs without a manifest, and programs leave unfinished files in plain folders.
    """
    ollama = Ollama(tmp_path / "ollama")
    ollama.model("llama3", WEIGHTS)
    orphan = write(ollama.root / "blobs" / f"sha256-{'1' * 64}", MORE)
    partial = write(ollama.root / "blobs" / f"sha256-{'2' * 64}-partial", MORE)
    plain = tmp_path / "plain"
    write(plain / "me/repo/m.gguf", b"GGUF")
    unfinished = write(plain / "me/repo/n.gguf.part", MORE)

    scans = [
        SCANNERS["ollama"](ollama.root),
        SCANNERS["lmstudio"](plain),
        SCANNERS["directory"](plain),
    ]

    named = [[(each.path, each.kind) for each in scan.leftovers] for scan in scans]
    assert named == [
        [(str(orphan), "orphan"), (str(partial), "partial")],
        [(str(unfinished), "partial")],
        [(str(unfinished), "partial")],
    ]
    # The folder that was scanned twice counts once.
    manifests = du(ollama.root / "manifests")
    assert disk_usage(scans) == du(tmp_path) - manifests


def test_a_leftover_that_is_a_file_of_a_model_by_another_name_does_not_count(tmp_path):
    """
    A blob has a second hard link as a file of a snapshot.
    """
    cache = HuggingFace(tmp_path / "hub")
    snapshot = cache.revision("org/a", C1, {"m.gguf": WEIGHTS}, refs=())
    blob = os.path.realpath(snapshot / "m.gguf")
    (snapshot / "m.gguf").unlink()
    (snapshot / "m.gguf").hardlink_to(blob)

    scan = SCANNERS["huggingface"](cache.root)

    assert scan.leftovers == ()
    assert scan.disk_bytes == du(cache.root)


def test_the_command_line_says_what_is_on_the_disk(cli, tmp_path):
    """
    Sizes are sums of the models' sizes, and `on the disk` counts shared files once.
    """
    cache = make_hub(tmp_path)
    partial = write(cache.repository("org/a") / "blobs" / f"{'1' * 64}.incomplete", MORE)
    used = du(cache.root)
    models = used - partial.stat().st_blocks * 512

    code, out, err = cli("scan", str(cache.root))
    listed = cli("ls")[2]
    totals = json.loads(cli("du", "--json")[1])
    again = json.loads(cli("scan", str(cache.root), "--json")[1])

    assert code == 0
    assert "an unfinished download" in out
    assert "1 leftover file, 201 kB" in err
    assert f"{used / 1000:.0f} kB on the disk" in err.splitlines()[-1]
    assert f"1.1 MB, {models / 1000:.0f} kB on the disk" in listed
    assert (totals["size_bytes"], totals["disk_bytes"]) == (1_100_000, models)
    assert cli("du", "--format", "quiet")[1] == f"{models}\n"
    assert (again["disk_bytes"], again["stores"][0]["leftovers"][0]["kind"]) == (used, "partial")


def test_pieces_of_a_split_file_are_not_called_unneeded(cli, tmp_path):
    """Together they may be the only copy of a model."""
    folder = tmp_path / "plain"
    for number in (1, 2):
        write(folder / f"big.gguf.part{number}of2", MORE)

    _, out, err = cli("scan", str(folder))

    assert out.count("a piece of a file, which can be loaded after all pieces were joined") == 2
    assert "2 pieces of files, 401 kB: they can be loaded after all pieces were joined" in err
    assert "needs them" not in err


async def test_an_export_leaves_out_the_facts_of_this_disk(catalog, tmp_path):
    """
    On another machine the same numbers would name another file.
    """
    path = write(tmp_path / "m.gguf", WEIGHTS)
    await register_path(catalog, path, provider="local", reference="m")
    with (tmp_path / "out").open("w+") as stream:
        await catalog.export_catalog(stream)
        stream.seek(0)
        text = stream.read()
        await catalog.remove_model("m", "local")
        stream.seek(0)
        await catalog.import_catalog(stream)

    assert "file_id" not in text
    assert await catalog.get_disk_usage() == len(WEIGHTS)


@pytest.mark.parametrize("store", ["directory", "lmstudio"])
async def test_a_file_in_two_stores_counts_once(on_sqlite, tmp_path, store):
    """
    A folder is scanned as a store of one kind, and a folder of links to it as another one.
    """
    write(tmp_path / "one/me/repo/m.gguf", WEIGHTS)
    (tmp_path / "two/me/repo").mkdir(parents=True)
    (tmp_path / "two/me/repo/m.gguf").hardlink_to(tmp_path / "one/me/repo/m.gguf")

    await adopt(on_sqlite, await scan_store(on_sqlite, "directory", tmp_path / "one"))
    await adopt(on_sqlite, await scan_store(on_sqlite, store, tmp_path / "two"))

    assert await on_sqlite.count_models() == 2
    assert await on_sqlite.get_disk_usage() == du(tmp_path / "one")


def make_docker(root):
    store = Docker(root)
    manifest = store.model("ai/m:a", WEIGHTS, more=[store.layer("mmproj", MORE)])
    store.manifest(["docker.io/ai/m:b"], [store.layer("gguf.v3", WEIGHTS)])
    bundle = store.bundle(manifest, model__gguf=WEIGHTS, model__mmproj=MORE)
    (bundle / "config.json").unlink()
    write(root / f"blobs/sha256/{'1' * 64}.incomplete", MORE)
    return ["models.json", "layout.json", "manifests"]


def make_ramalama(root):
    store = RamaLama(root)
    for tag in ("a", "b"):
        store.model("file/m.gguf", tag, {"m.gguf": ("gguf", WEIGHTS), "c": ("other", MORE)})
    write(root / "file/m.gguf/blobs/sha256-2.partial", MORE)
    write(root / "file/m.gguf/blobs/sha256-3", MORE)
    return ["file/m.gguf/refs"]


def make_modelscope(root):
    cache = ModelScope(root)
    cache.revision("org/m", "master", m__gguf=WEIGHTS, n__gguf=MORE, README__md=MORE)
    cache.old_model("org/n", m__gguf=WEIGHTS)
    write(root / "hub/models/._____temp/org/n/b.gguf", MORE)
    return [f"hub/models/org/n/{name}" for name in (".msc", ".mdl", ".mv")] + [
        "models/org--m/snapshots/master/README.md"
    ]


def make_kagglehub(root):
    cache = KaggleHub(root)
    folder = cache.version("o/m/f/v/1", m__safetensors=WEIGHTS, config__json=MORE)
    cache.version("o/m/f/v/2", complete=False, m__safetensors=MORE)
    write(folder.with_name("2.archive"), MORE)
    return []


@pytest.mark.parametrize(
    ("store", "make"),
    [
        ("docker", make_docker),
        ("ramalama", make_ramalama),
        ("modelscope", make_modelscope),
        ("kagglehub", make_kagglehub),
    ],
)
def test_the_bytes_of_stores_of_more_programs_are_counted_once(tmp_path, store, make):
    """
    As `du` counts them, without the files that list models. Of two quantizations in a folder,
    neither has the README.
    """
    others = make(tmp_path / "store")

    scanned = SCANNERS[store](tmp_path / "store")

    assert scanned.problems == ()
    listed = sum(du(path) for name in others if (path := tmp_path / "store" / name).exists())
    assert scanned.disk_bytes == du(tmp_path / "store") - listed
