"""
A hub on the loopback interface, in a process of its own, with one repository of large files.

Run it as `python -m benchmarks.harness.hub_server FOLDER BYTES`. It prints its address, and ends
when its standard input is closed.
"""

from __future__ import annotations

import json
import struct
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, Final

COMMIT: Final = "c" * 40
FILE_COUNT: Final = 3


class _Handler(BaseHTTPRequestHandler):
    """Answers the requests of `snapshot_download`. Files are sent by the system, in pieces."""

    protocol_version = "HTTP/1.1"
    # Otherwise an answer of two parts takes 40 ms: the client delays its acknowledgement.
    disable_nagle_algorithm = True
    files: ClassVar[dict[str, Path]] = {}

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(is_head=True)

    def do_GET(self) -> None:
        self._answer(is_head=False)

    def _answer(self, *, is_head: bool) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/"):
            body: object = _tree(self.files) if "/tree/" in path else {"id": "o/m", "sha": COMMIT}
            encoded = json.dumps(body).encode()
            self._send_headers(len(encoded), {"Content-Type": "application/json"})
            self.wfile.write(encoded)
            return
        name = path.rpartition("/")[2]
        if (file := self.files.get(name)) is None:
            self.send_error(404)
            return
        size = file.stat().st_size
        self._send_headers(size, {"ETag": f'"{_digest(name)}"', "X-Repo-Commit": COMMIT})
        if not is_head:
            with file.open("rb") as opened:
                self.connection.sendfile(opened)

    def _send_headers(self, size: int, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(size)}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.flush()


def _digest(name: str) -> str:
    return name.encode().hex().rjust(64, "0")[:64]


def _tree(files: dict[str, Path]) -> list[dict[str, object]]:
    return [
        {
            "type": "file",
            "path": name,
            "size": (size := file.stat().st_size),
            "oid": "0" * 40,
            "lfs": {"oid": _digest(name), "size": size, "pointerSize": 130},
        }
        for name, file in files.items()
    ]


def write_files(folder: Path, size_bytes: int) -> dict[str, Path]:
    """Write sparse files of safetensors of a size, and return them by name."""
    files = {}
    for number in range(FILE_COUNT):
        name = f"model-{number + 1:05}-of-{FILE_COUNT:05}.safetensors"
        room = size_bytes - 256
        tensor = {"dtype": "U8", "shape": [room], "data_offsets": [0, room]}
        header = json.dumps({f"w{number}": tensor}).encode().ljust(256 - 8)
        files[name] = folder / name
        files[name].write_bytes(struct.pack("<Q", len(header)) + header)
        with files[name].open("r+b") as opened:
            opened.truncate(size_bytes)
    return files


def main(folder: str, size_bytes: str) -> None:
    _Handler.files = write_files(Path(folder), int(size_bytes))
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
