"""A hub on the loopback interface, with the routes that `snapshot_download` calls."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

LFS_ENDINGS = (".gguf", ".safetensors", ".bin", ".onnx", "tokenizer.json")


class LoopbackHub:
    """
    Serves the files of repositories of any name. All have the same commits, at first one.

    A GET of a file in `held` sends half of the bytes, sets `is_half_sent` and waits for `release`.
    """

    def __init__(self, commit, files):
        self.commit = commit
        self.files = files
        self.revisions = {commit: files}
        self.refs = {"main": commit}
        self.sizes = {}
        """Sizes that the tree states, and that are not those of the files."""
        self.refusal = None
        """The status and the code of the error with which every request is answered."""
        self.held = set()
        self.downloads = []
        """The files whose bytes were sent, in the order of the requests."""
        self.tokens = set()
        """The tokens that requests had."""
        self.is_half_sent = threading.Event()
        self.release = threading.Event()
        self.url = ""

    def add_revision(self, commit, files, *refs):
        """Add a commit, and let refs name it."""
        self.revisions[commit] = files
        self.refs.update(dict.fromkeys(refs, commit))

    def tree(self, commit=None):
        """The answer of the route `tree`: sizes and digests of all files."""
        entries = []
        for path, data in sorted(self.revisions[commit or self.commit].items()):
            size = self.sizes.get(path, len(data))
            entry = {"type": "file", "path": path, "size": size, "oid": git_sha1(data)}
            if path.endswith(LFS_ENDINGS):
                digest = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"oid": digest, "size": size, "pointerSize": 130}
            entries.append(entry)
        return entries

    def etag(self, path, commit=None):
        """The name of the blob of a file: SHA-256 for LFS, and the SHA-1 of Git for all others."""
        data = self.revisions[commit or self.commit][path]
        is_lfs = path.endswith(LFS_ENDINGS)
        return hashlib.sha256(data).hexdigest() if is_lfs else git_sha1(data)

    @contextmanager
    def serve(self):
        """Serve until the block ends. Requests that wait are released then."""
        handler = type("Handler", (_Handler,), {"hub": self})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self
        finally:
            self.release.set()
            server.shutdown()
            thread.join()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub = None
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self._answer(is_head=True)

    def do_GET(self):
        self._answer(is_head=False)

    def _answer(self, *, is_head):
        path = unquote(self.path.partition("?")[0])
        if token := self.headers.get("Authorization"):
            self.hub.tokens.add(token)
        if self.hub.refusal is not None:
            self._refuse(*self.hub.refusal)
        elif path.startswith("/api/models/"):
            self._answer_api(path, is_head)
        else:
            self._answer_file(path, is_head)

    def _answer_api(self, path, is_head):
        _, is_tree, name = path.partition("/tree/")
        if not is_tree:
            name = path.partition("/revision/")[2] or "main"
        commit = self.hub.refs.get(name, name)
        if commit not in self.hub.revisions:
            self._refuse(404, "RevisionNotFound")
            return
        body = self.hub.tree(commit) if is_tree else {"id": "o/m", "sha": commit}
        self._send(json.dumps(body).encode(), {"Content-Type": "application/json"}, is_head)

    def _answer_file(self, path, is_head):
        commit, _, name = path.partition("/resolve/")[2].partition("/")
        data = self.hub.revisions.get(commit, {}).get(name)
        if data is None:
            self._refuse(404, "EntryNotFound")
            return
        headers = {"ETag": f'"{self.hub.etag(name, commit)}"', "X-Repo-Commit": commit}
        if not is_head:
            self.hub.downloads.append(name)
        self._send(data, headers, is_head, is_held=name in self.hub.held)

    def _refuse(self, status, code):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, body, headers, is_head, *, is_held=False):
        start = int((self.headers.get("Range") or "bytes=0-")[len("bytes=") :].partition("-")[0])
        self.send_response(206 if start else 200)
        if start:
            headers = {**headers, "Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
        body = body[start:]
        for header, value in headers.items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if is_head:
            return
        half = len(body) // 2 if is_held else len(body)
        self.wfile.write(body[:half])
        if is_held:
            self.hub.is_half_sent.set()
            self.hub.release.wait()
            self.close_connection = True


def git_sha1(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
