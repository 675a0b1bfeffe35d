"""The scan of the cache of ModelScope, in the layouts of old and new releases."""

import json
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest
from layouts import sha256, write
from new_layouts import ModelScope

from model_catalog.stores.scanners.modelscope import scan
from model_catalog.stores.store_kinds import detect_store

GGUF = b"GGUF" + bytes(100)
FILES = {"model__safetensors": b"w", "config__json": b"{}", "tokenizer__json": b"{}"}


@pytest.fixture
def cache(tmp_path):
    return ModelScope(tmp_path / "modelscope")


def only(scanned):
    assert scanned.problems == ()
    (model,) = scanned.found
    return model


def test_a_revision_in_the_new_layout_is_a_model(cache):
    """
    The version is the revision. Nothing in the cache states a digest.
    """
    folder = cache.revision("Qwen/Qwen3-0.6B", "master", **FILES)
    cache.revision("Qwen/Qwen3-0.6B", "v1", **FILES)

    first, second = scan(cache.root).found

    assert (first.store, first.provider) == ("modelscope", "modelscope")
    assert (first.reference, first.version) == ("Qwen/Qwen3-0.6B", "master")
    assert (first.local_path, first.folder) == (str(folder), str(folder))
    assert [(file.path, file.digest) for file in first.files] == [
        *(("config.json", None), ("model.safetensors", None), ("tokenizer.json", None))
    ]
    assert first.is_complete
    assert second.version == "v1"


@pytest.mark.parametrize("parent", ["hub/models", "models", "hub", "."])
def test_a_model_in_the_old_layout_has_its_name_with_dots(cache, parent):
    """
    The file .mv names the revision. The link with the dots is the same model.
    """
    folder = cache.old_model("Qwen/Qwen2.5-0.5B", parent=parent, revision="v1.0.0", **FILES)

    model = only(scan(cache.root))

    assert (model.reference, model.version) == ("Qwen/Qwen2.5-0.5B", "v1.0.0")
    assert (model.local_path, len(model.files)) == (str(folder), 3)
    assert model.is_complete


@pytest.mark.parametrize(
    ("text", "revision"),
    [
        (None, "master"),
        ("v2", "v2"),
        ("Revision:v1,CreatedAt:1\n", "v1"),
        ("Revision:feature/x", "feature/x"),
    ],
)
def test_the_revision_of_the_old_layout_is_read(cache, text, revision):
    """
    A model without .mv has the default revision, as the program shows it.
    """
    folder = cache.old_model("org/m", revision=None, **FILES)
    if text is not None:
        write(folder / ".mv", text)

    assert only(scan(cache.root)).version == revision


def test_quantizations_are_models_of_their_own(cache):
    """
    Each has the path of its file behind the revision.
    """
    cache.revision("org/m", "master", a__gguf=GGUF, b__gguf=GGUF + b"1")

    assert [model.version for model in scan(cache.root).found] == ["master/a.gguf", "master/b.gguf"]


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors.incomplete",
        "model.safetensors.parallel_tmp",
        "model.safetensors_0_167772159",
    ],
)
def test_an_unfinished_download_of_the_new_layout_is_a_reason(cache, name):
    """
    It is beside the file that it becomes. Pieces have the first and the last byte in their names.
    """
    folder = cache.revision("org/m", "master", config__json=b"{}", tokenizer__json=b"{}")
    partial = write(folder / name, b"half")

    scanned = scan(cache.root)

    assert only(scanned).reasons == ("no weights were found", f"unfinished downloads: {name!r}")
    assert [(each.path, each.kind) for each in scanned.leftovers] == [(str(partial), "partial")]


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors_0_167772159"])
def test_an_unfinished_download_of_the_old_layout_is_a_reason(cache, name):
    """
    It has its final name in a temporary folder, and the name of the model has its dots.
    """
    cache.old_model("org/m.1", config__json=b"{}", tokenizer__json=b"{}")
    partial = write(cache.root / "hub/models/._____temp/org/m.1" / name, b"half")

    scanned = scan(cache.root)

    assert only(scanned).reasons == (
        "no weights were found",
        "unfinished downloads: 'model.safetensors'",
    )
    assert [(each.path, each.kind) for each in scanned.leftovers] == [(str(partial), "partial")]


def test_a_leftover_of_a_finished_download_is_no_reason(cache):
    """
    The file is there, so the next download went to its end.
    """
    cache.old_model("org/m", **FILES)
    write(cache.root / "hub/models/._____temp/org/m/model.safetensors", b"half")

    scanned = scan(cache.root)

    assert only(scanned).is_complete
    assert len(scanned.leftovers) == 1


def test_other_folders_of_the_cache_are_left_out(cache):
    """
    Datasets, locks and folders without the files of the program are no models.
    """
    cache.revision("org/m", "master", **FILES)
    for path in ("datasets/o--d/snapshots/master/x.gguf", "hub/datasets/o/d/x.gguf"):
        write(cache.root / path, GGUF)
    for path in (".lock/file_0.lock", "credentials/x", "own/folder/x.gguf", "hub/ast_indexer"):
        write(cache.root / path, GGUF)

    assert only(scan(cache.root)).reference == "org/m"


@pytest.mark.parametrize("layout", ["new", "old", "older"])
def test_a_cache_of_modelscope_is_detected(cache, layout):
    """
    By its names.
    """
    if layout == "new":
        cache.revision("org/m", "master", **FILES)
    else:
        cache.old_model("org/m", parent="hub/models" if layout == "old" else "hub", **FILES)

    assert detect_store(cache.root) == "modelscope"
    if layout == "old":
        assert detect_store(cache.root / "hub") == "modelscope"
        assert scan(cache.root / "hub").found == scan(cache.root).found


def test_a_folder_with_a_download_of_modelscope_stays_a_plain_folder(cache):
    """
    With `cache_dir` the program downloads to any folder, in which the user has other models.
    """
    cache.old_model("org/m", parent=".", **FILES)
    write(cache.root / "own/m.gguf", GGUF)

    assert detect_store(cache.root) == "directory"


CONTENT = {
    "model.safetensors": bytes(1000),
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "README.md": b"#",
}
HALF = 24 * 2**20
DOWNLOAD = """
import sys
from modelscope_hub.compat import snapshot_download
print(snapshot_download("org/m.1", endpoint=sys.argv[1], allow_patterns=sys.argv[2:] or None))
"""


class Handler(BaseHTTPRequestHandler):
    """The two calls of ModelScope's API that a download makes."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        """Answer with the list of files, or with a file."""
        url = urlsplit(self.path)
        if url.path.endswith("/repo/files"):
            files = [
                {"Path": path, "Type": "blob", "Sha256": sha256(data)}
                for path, data in CONTENT.items()
            ]
            self.reply(json.dumps({"Code": 200, "Data": {"Files": files}}).encode())
        elif url.path.endswith("/repo"):
            path = parse_qs(url.query)["FilePath"][0]
            # More than the buffers of two sockets hold: the client has written some of it.
            half = HALF if self.server.stops and path == "model.safetensors" else None
            self.reply(CONTENT[path] if half is None else bytes(2 * HALF), half)
        else:
            self.reply(b'{"Code": 200, "Data": {}}')

    def reply(self, body, stop_at=None):
        start = int(self.headers.get("Range", "bytes=0-").split("=")[1].split("-")[0])
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body[start:stop_at])
        if stop_at is not None:
            self.wfile.flush()
            self.server.is_half_sent.set()
            # The client is killed now, which closes the connection.
            with suppress(ConnectionResetError):
                self.connection.recv(1)
            self.close_connection = True

    def log_message(self, *arguments):
        """Print nothing."""


@contextmanager
def hub(*, stops=False):
    """Serve a repository on this machine. With `stops`, the weights stop in the middle."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.stops = stops
    server.is_half_sent = threading.Event()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def download(tmp_path, endpoint, *patterns):
    path = ":".join(filter(None, sys.path))
    return subprocess.Popen(
        [sys.executable, "-c", DOWNLOAD, endpoint, *patterns],
        env={
            "HOME": str(tmp_path),
            "PYTHONPATH": path,
            "MODELSCOPE_CACHE": str(tmp_path / "c"),
            "NO_PROXY": "127.0.0.1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_what_the_program_downloads_is_whole(tmp_path):
    """
    modelscope_hub downloads from a server on this machine, with patterns that leave out a README.
    """
    pytest.importorskip("modelscope_hub")
    with hub() as (_, endpoint):
        process = download(tmp_path, endpoint, "*.json", "*.safetensors")
        output, errors = process.communicate()

    assert process.returncode == 0, errors
    model = only(scan(tmp_path / "c"))
    assert (model.reference, model.version) == ("org/m.1", "master")
    assert (model.local_path, model.reasons) == (output.strip().splitlines()[-1], ())
    assert {file.path for file in model.files} == set(CONTENT) - {"README.md"}


def files_of_model(root):
    return {path.name for path in root.glob("models/*/snapshots/master/*")}


@pytest.mark.slow
def test_a_download_that_is_killed_is_incomplete(tmp_path):
    """
    The half of the weights that has arrived is named.
    """
    pytest.importorskip("modelscope_hub")
    name = "model.safetensors.incomplete"
    with hub(stops=True) as (server, endpoint):
        process = download(tmp_path, endpoint)
        assert server.is_half_sent.wait(60)
        # The program downloads several files at a time. It finishes the others.
        deadline = time.monotonic() + 60
        while files_of_model(tmp_path / "c") != {*CONTENT} - {"model.safetensors"} | {name}:
            assert time.monotonic() < deadline
        process.kill()
        process.communicate()

    scanned = scan(tmp_path / "c")

    (reason,) = [each for each in only(scanned).reasons if each.startswith("unfinished downloads")]
    assert repr(name) in reason
    assert [each.path.rpartition("/")[2] for each in scanned.leftovers] == [name]
