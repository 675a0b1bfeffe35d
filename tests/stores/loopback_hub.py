"""A hub on the loopback interface, with the routes that `snapshot_download` calls."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LFS_ENDINGS = (".gguf", ".safetensors", ".bin", ".onnx", "tokenizer.json")


class LoopbackHub:
    """
    Serves the files of one repository at one commit.

    A GET of a file in `held` sends half of the bytes, sets `is_half_sent` and waits for `release`.
    """

    def __init__(self, commit, files):
        self.commit = commit
        self.files = files
        self.held = set()
        self.is_half_sent = threading.Event()
        self.release = threading.Event()
        self.url = ""

    def tree(self):
        """The answer of the route `tree`: sizes and digests of all files."""
        entries = []
        for path, data in sorted(self.files.items()):
            entry = {"type": "file", "path": path, "size": len(data), "oid": git_sha1(data)}
            if path.endswith(LFS_ENDINGS):
                digest = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 130}
            entries.append(entry)
        return entries

    def etag(self, path):
        """The name of the blob of a file: SHA-256 for LFS, and the SHA-1 of Git for all others."""
        data = self.files[path]
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
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/"):
            body = self.hub.tree() if "/tree/" in path else {"id": "o/m", "sha": self.hub.commit}
            self._send(json.dumps(body).encode(), {"Content-Type": "application/json"}, is_head)
            return
        name = path.partition(f"/resolve/{self.hub.commit}/")[2]
        if name not in self.hub.files:
            self.send_error(404)
            return
        headers = {"ETag": f'"{self.hub.etag(name)}"', "X-Repo-Commit": self.hub.commit}
        self._send(self.hub.files[name], headers, is_head, is_held=name in self.hub.held)

    def _send(self, body, headers, is_head, *, is_held=False):
        self.send_response(200)
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
