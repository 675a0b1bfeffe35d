"""The scan of the store of RamaLama: refs that list the files of snapshots."""

import subprocess
import sys
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from layouts import sha256, write
from new_layouts import RamaLama

from model_catalog import open_catalog
from model_catalog.stores.scan_result import Claims
from model_catalog.stores.scanners.ramalama import scan
from model_catalog.stores.store_kinds import detect_store
from model_catalog.upkeep import adopt, scan_store

GGUF = b"GGUF" + bytes(100)
SNAPSHOT = "sha256-" + "1" * 64


@pytest.fixture
def store(tmp_path):
    return RamaLama(tmp_path / "store")


def only(scanned):
    assert scanned.problems == ()
    (model,) = scanned.found
    return model


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("huggingface/org/name", "hf://org/name"),
        ("huggingface/org/name/m.gguf", "hf://org/name/m.gguf"),
        ("ollama/library/tiny", "ollama://library/tiny"),
        ("file/home/ada/m.gguf", "file:///home/ada/m.gguf"),
        ("https/example.org/m.gguf", "https://example.org/m.gguf"),
        ("modelscope/org/name", "modelscope://org/name"),
    ],
)
def test_a_model_has_the_name_that_the_program_lists(store, name, reference):
    """
    The version is the tag.
    """
    store.model(name, "Q4_K_M", {"m.gguf": ("gguf", GGUF)})

    model = only(scan(store.root))

    assert (model.store, model.provider) == ("ramalama", "ramalama")
    assert (model.reference, model.version, model.aliases) == (reference, "Q4_K_M", ())


def test_no_hash_is_taken_for_a_digest(store):
    """
    It can be that of the name, as for every file that was downloaded by its URL.
    """
    store.model("file/m.gguf", "latest", {"m.gguf": ("gguf", GGUF)})

    assert [file.digest for file in only(scan(store.root)).files] == [None]


def test_the_types_in_a_ref_are_roles(store):
    """
    A file from Ollama's registry has no ending. Other files have the role of their names.
    """
    files = {
        "tiny": ("gguf", GGUF),
        "mm": ("mmproj", GGUF),
        "chat_template_extracted": ("chat_template", b"{{ x }}"),
        "config.json": ("other", b"{}"),
        "README.md": ("other", b"#"),
    }
    store.model("ollama/library/tiny", "latest", files)

    model = only(scan(store.root))

    assert {file.path: file.role for file in model.files} == {
        "tiny": "weights",
        "mm": "projector",
        "chat_template_extracted": "template",
        "config.json": "config",
        "README.md": "other",
    }
    folder = store.root / "ollama/library/tiny/snapshots" / SNAPSHOT
    assert (model.local_path, model.folder) == (f"{folder}/tiny", str(folder))
    assert (model.claims, model.is_complete) == (Claims(format="gguf"), True)


@pytest.mark.parametrize(
    "files",
    [
        {
            "model.safetensors": ("safetensor", b"w"),
            "config.json": ("other", b"{}"),
            "tokenizer.json": ("other", b"{}"),
        },
        {"Q4/m-00001-of-00002.gguf": ("gguf", GGUF), "Q4/m-00002-of-00002.gguf": ("other", GGUF)},
    ],
)
def test_weights_that_are_no_single_gguf_file_have_the_path_of_the_snapshot(store, files):
    """
    The program gives such a folder to its engine.
    """
    store.model("huggingface/org/name", "latest", files)

    model = only(scan(store.root))

    assert model.local_path == str(store.root / "huggingface/org/name/snapshots" / SNAPSHOT)
    assert [file.path for file in model.files] == sorted(files)
    assert model.is_complete


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"m.gguf": ("gguf", None)}, "missing: 'm.gguf'"),
        ({"m.gguf": ("gguf", GGUF), "mm.gguf": ("mmproj", None)}, "missing: 'mm.gguf'"),
        ({"m.gguf": ("gguf", GGUF), "README.md": ("other", None)}, None),
        ({"m.gguf": ("gguf", GGUF), "config.json": ("other", None)}, None),
        (
            {"m.safetensors": ("safetensor", b"w"), "config.json": ("other", None)},
            "not downloaded: 'config.json'",
        ),
        (
            {"m-00001-of-00002.gguf": ("gguf", GGUF), "m-00002-of-00002.gguf": ("other", None)},
            "missing: 'm-00002-of-00002.gguf'",
        ),
    ],
)
def test_only_files_that_loading_needs_make_a_model_incomplete(store, files, reason):
    """
    A ref lists all files before the first one is downloaded.
    """
    store.model("huggingface/org/name", "latest", files)

    assert only(scan(store.root)).reasons == (() if reason is None else (reason,))


async def test_a_model_whose_files_cannot_be_read_stays_as_it_is_recorded(store, tmp_path):
    """
    A scan does not know its files, so it records neither other ones nor other reasons.
    """
    ref = store.model("huggingface/org/name", "latest", {"m.gguf": ("gguf", GGUF)})
    (path,) = ref.parents[1].glob("snapshots/*/m.gguf")
    async with open_catalog(tmp_path / "catalog.db") as catalog:
        await adopt(catalog, await scan_store(catalog, "ramalama", store.root))
        before = await catalog.list_files("hf://org/name", "ramalama")
        path.unlink()
        path.symlink_to(path)

        report = await adopt(catalog, await scan_store(catalog, "ramalama", store.root))

        assert (report.changed, report.gone) == ((), ())
        assert await catalog.list_files("hf://org/name", "ramalama") == before
    assert [problem.path for problem in report.problems] == [str(path)]


def test_an_unfinished_download_is_a_reason_and_a_leftover(store):
    """
    The blob gets its name at the end of the download.
    """
    store.model("file/m.gguf", "latest", {"m.gguf": ("gguf", None)})
    blob = f"sha256-{sha256(b'm.gguf')}"
    partial = write(store.root / f"file/m.gguf/blobs/{blob}.partial", b"half")

    scanned = scan(store.root)

    assert only(scanned).reasons == ("missing: 'm.gguf'", "unfinished downloads: 'm.gguf'")
    assert [(each.path, each.kind) for each in scanned.leftovers] == [(str(partial), "partial")]


def test_links_and_tags_share_bytes(store):
    """
    A snapshot is hard links, or symbolic links on a file system without those.
    """
    store.model("file/m.gguf", "latest", {"m.gguf": ("gguf", GGUF)})
    store.model("file/m.gguf", "other", {"m.gguf": ("gguf", GGUF)})
    lost = write(store.root / f"file/m.gguf/blobs/sha256-{'2' * 64}", b"lost")
    before = scan(store.root)
    (snapshot,) = (store.root / "file/m.gguf/snapshots").glob("*/m.gguf")
    snapshot.unlink()
    snapshot.symlink_to(f"../../blobs/sha256-{sha256(b'm.gguf')}")

    after = scan(store.root)

    assert [model.version for model in after.found] == ["latest", "other"]
    assert after.disk_bytes == before.disk_bytes
    assert [each.path for each in after.leftovers] == [str(lost)]


def test_a_ref_of_an_older_release_is_read(store):
    """
    It is a text file without an ending: the hash of the snapshot, then a line for each file.
    """
    ref = store.model(
        "file/m.gguf",
        "latest",
        {"m.gguf": ("gguf", GGUF), "config.json": ("other", b"{}")},
    )
    ref.unlink()
    write(ref.with_suffix(""), f"sha256:{'1' * 64}\nm.gguf---model\nconfig.json---\n")

    model = only(scan(store.root))

    assert [(file.path, file.role) for file in model.files] == [
        ("config.json", "config"),
        ("m.gguf", "weights"),
    ]
    assert (model.version, model.is_complete) == ("latest", True)


@pytest.mark.parametrize("is_hard", [True, False])
def test_weights_that_are_linked_to_the_store_of_ollama_are_found(store, tmp_path, is_hard):
    """
    The ref lists only the other files. The link has the name of the model.
    """
    blob = write(tmp_path / f"ollama/blobs/sha256-{sha256(GGUF)}", GGUF)
    store.model("ollama/library/tiny", "1b", {"config.json": ("other", b"{}")})
    path = store.root / "ollama/library/tiny/snapshots" / SNAPSHOT / "tiny"
    if is_hard:
        path.hardlink_to(blob)
    else:
        path.symlink_to(blob)

    model = only(scan(store.root))

    assert {file.path: file.role for file in model.files} == {
        "tiny": "weights",
        "config.json": "config",
    }
    assert (model.local_path, model.is_complete) == (str(path), True)


def test_the_folder_above_the_store_is_understood(store, tmp_path):
    """
    That is the folder which RAMALAMA_STORE names.
    """
    store.model("file/m.gguf", "latest", {"m.gguf": ("gguf", GGUF)})
    write(tmp_path / "benchmarks/benchmarks.jsonl", b"")

    assert detect_store(tmp_path) == detect_store(store.root) == "ramalama"
    assert scan(tmp_path).found == scan(store.root).found


def test_the_store_that_the_program_writes_is_read(tmp_path):
    """
    RamaLama copies a local file, and writes a snapshot from content, in a process of its own.
    """
    pytest.importorskip("ramalama")
    write(tmp_path / "m.gguf", GGUF)
    code = """
import sys
from types import SimpleNamespace
from ramalama.model_store.global_store import GlobalModelStore
from ramalama.model_store.snapshot_file import LocalSnapshotFile, SnapshotFileType
from ramalama.model_store.store import ModelStore
from ramalama.transports.base import trim_model_name
from ramalama.transports.url import URL

base = sys.argv[1]
URL(f"{base}/m.gguf", base, "file").pull(SimpleNamespace(verify=False, quiet=True))
files = [
    LocalSnapshotFile(b"w", "model.safetensors", SnapshotFileType.SafetensorModel),
    LocalSnapshotFile(b"{}", "config.json", SnapshotFileType.Other),
]
store = ModelStore(GlobalModelStore(base), "name", "huggingface", "org")
store.new_snapshot("v1", "sha256:" + "a" * 64, files, verify=False)
for name, files in GlobalModelStore(base).list_models("", False).items():
    print(trim_model_name(name), *(f"{file.name}:{file.size}" for file in files), sep="|")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        env={
            "HOME": str(tmp_path),
            "PYTHONPATH": ":".join(sys.path),
            "RAMALAMA_STORE": str(tmp_path),
        },
        capture_output=True,
        text=True,
        check=True,
    )

    scanned = scan(tmp_path)

    said = {
        f"{model.reference}{'' if model.version == 'latest' else f':{model.version}'}": {
            f"{file.path}:{file.size_bytes}" for file in model.files
        }
        for model in scanned.found
    }
    lines = [line.split("|") for line in done.stdout.splitlines()]
    assert said == {name: set(files) for name, *files in lines}
    assert len(said) == 2
    assert all(model.is_complete for model in scanned.found)
    assert (scanned.problems, scanned.leftovers) == ((), ())


HALF = 8 * 2**20


class HalfOfFile(BaseHTTPRequestHandler):
    """Send half of a file, and then nothing until the client is gone."""

    def do_GET(self):
        """Send more than the buffers of two sockets hold: the client has written some of it."""
        self.send_response(200)
        self.send_header("Content-Length", str(4 * HALF))
        self.end_headers()
        self.wfile.write(bytes(2 * HALF))
        self.server.is_half_sent.set()
        with suppress(ConnectionResetError):
            self.connection.recv(1)

    def log_message(self, *arguments):
        """Print nothing."""


@pytest.mark.slow
def test_a_download_that_is_killed_is_incomplete(tmp_path):
    """
    RamaLama downloads by HTTP from a server on this machine.
    """
    pytest.importorskip("ramalama")
    server = ThreadingHTTPServer(("127.0.0.1", 0), HalfOfFile)
    server.is_half_sent = threading.Event()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    code = """
import sys
from types import SimpleNamespace
from ramalama.transports.url import URL

URL(sys.argv[2], sys.argv[1], "http").pull(SimpleNamespace(verify=False, quiet=True))
"""
    address = f"127.0.0.1:{server.server_port}/org/m.gguf"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), address],
        env={
            "HOME": str(tmp_path),
            "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": ":".join(filter(None, sys.path)),
            "RAMALAMA_STORE": str(tmp_path),
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert server.is_half_sent.wait(60)
    finally:
        process.kill()
        process.wait()
        server.shutdown()
        server.server_close()
        thread.join()

    scanned = scan(tmp_path)

    assert only(scanned).reasons == ("missing: 'm.gguf'", "unfinished downloads: 'm.gguf'")
    assert [each.kind for each in scanned.leftovers] == ["partial"]
