#!/usr/bin/env bash
# huggingface_hub 2.4.0: a download by patterns records the list of all files of the repository.
#
# `snapshot_download(allow_patterns=...)` stores the list in `trees/COMMIT.json` of the cache, also
# for files that nobody asked for. `snapshot_download(local_files_only=True)` with the same patterns
# then returns the snapshot. Without patterns it raises IncompleteSnapshotError, although everything
# that was asked for is there. So this list does not say what a model needs.
#
# A hub on the loopback interface serves two small files. Prints:
#
#     listed: README.md, model.safetensors
#     downloaded: model.safetensors
#     the same patterns: returned
#     no patterns: IncompleteSnapshotError
#
# Exits with 1 if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check 'huggingface_hub==2.4.0' 2>/dev/null
cat > "$folder/look.py" <<'PY'
import hashlib, json, os, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FILES = {"README.md": b"a model", "model.safetensors": b"\2" + bytes(7) + b"{}"}
COMMIT = "c" * 40

def name_of_blob(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

class Hub(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0]
        headers = {"X-Repo-Commit": COMMIT}
        if "/tree/" in path:
            body = json.dumps([
                {"type": "file", "path": name, "size": len(data), "oid": name_of_blob(data)}
                for name, data in FILES.items()
            ]).encode()
        elif path.startswith("/api/models/"):
            body = json.dumps({"id": "o/m", "sha": COMMIT}).encode()
        else:
            body = FILES[path.partition(f"/resolve/{COMMIT}/")[2]]
            headers["ETag"] = f'"{name_of_blob(body)}"'
        self.send_response(200)
        for header in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(*header)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
cache = Path(sys.argv[1])
os.environ.update(HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}", HF_HUB_DISABLE_PROGRESS_BARS="1")

from huggingface_hub import snapshot_download

patterns = ["*.safetensors"]
snapshot = Path(snapshot_download("o/m", revision=COMMIT, cache_dir=cache, allow_patterns=patterns))
(tree,) = cache.glob("models--o--m/trees/*.json")
print("listed:", ", ".join(name for name in sorted(FILES) if name in tree.read_text()))
print("downloaded:", ", ".join(sorted(path.name for path in snapshot.iterdir())))
for label, allowed in (("the same patterns", patterns), ("no patterns", None)):
    try:
        snapshot_download(
            "o/m", revision=COMMIT, cache_dir=cache, allow_patterns=allowed, local_files_only=True
        )
        print(f"{label}: returned")
    except Exception as error:
        print(f"{label}: {type(error).__name__}")
PY
found=$("$folder/venv/bin/python" "$folder/look.py" "$folder/cache" 2>/dev/null)
printf '%s\n' "$found"
[ "$found" = "listed: README.md, model.safetensors
downloaded: model.safetensors
the same patterns: returned
no patterns: IncompleteSnapshotError" ]
