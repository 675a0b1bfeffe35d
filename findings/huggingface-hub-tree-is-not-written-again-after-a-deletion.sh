#!/usr/bin/env bash
# huggingface_hub 2.4.0: a process that downloads a deleted revision again writes no list of files.
#
# `trees/COMMIT.json` of the cache lists the files of a revision. The library also keeps each list
# in the memory of the process, by its path, and looks there first. `delete_revisions(...)` deletes
# the file, and not the entry in memory. A download of the same revision by the same process then
# finds the list in memory, and the cache on the disk has none. Other processes cannot tell any more
# whether the snapshot is complete: with `local_files_only=True` they get a snapshot of which a file
# was lost, in place of an IncompleteSnapshotError. A long-running service that evicts models from
# the cache and downloads them again meets this.
#
# A hub on the loopback interface serves two small files. Prints:
#
#     after the first download: 1 list
#     another process, one file lost: IncompleteSnapshotError
#     after delete_revisions: 0 lists
#     after the second download: 0 lists
#     another process, one file lost: returned
#
# Exits with 1 if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check 'huggingface_hub==2.4.0' 2>/dev/null
cat > "$folder/look.py" <<'PY'
import hashlib, json, os, subprocess, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FILES = {"config.json": b"{}", "model.safetensors": b"\2" + bytes(7) + b"{}"}
COMMIT = "c" * 40

def blob_name(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

class Hub(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, with_body):
        path = self.path.split("?")[0]
        self.send_response(200)
        if "/tree/" in path:
            body = json.dumps([
                {"type": "file", "path": name, "size": len(data), "oid": blob_name(data)}
                for name, data in FILES.items()
            ]).encode()
        elif "/resolve/" in path:
            body = FILES[path.rpartition("/")[2]]
            self.send_header("ETag", f'"{blob_name(body)}"')
        else:
            body = json.dumps({"id": "o/m", "sha": COMMIT}).encode()
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
cache = Path(sys.argv[1])
os.environ.update(HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}", HF_HUB_DISABLE_PROGRESS_BARS="1")

from huggingface_hub import scan_cache_dir, snapshot_download

OFFLINE = """
import sys
from huggingface_hub import snapshot_download
try:
    snapshot_download("o/m", revision=sys.argv[2], cache_dir=sys.argv[1], local_files_only=True)
    print("returned")
except Exception as error:
    print(type(error).__name__)
"""

def count_lists():
    number = len(list(cache.glob("models--o--m/trees/*.json")))
    return f"{number} list" + "s" * (number != 1)

def lose_a_file(snapshot):
    Path(snapshot, "config.json").unlink()
    run = [sys.executable, "-c", OFFLINE, str(cache), COMMIT]
    print("another process, one file lost:", subprocess.run(run, capture_output=True, text=True).stdout.strip())

snapshot = snapshot_download("o/m", revision=COMMIT, cache_dir=cache)
print("after the first download:", count_lists())
lose_a_file(snapshot)
scan_cache_dir(cache).delete_revisions(COMMIT).execute()
print("after delete_revisions:", count_lists())
snapshot = snapshot_download("o/m", revision=COMMIT, cache_dir=cache)
print("after the second download:", count_lists())
lose_a_file(snapshot)
PY
found=$("$folder/venv/bin/python" "$folder/look.py" "$folder/cache" 2>/dev/null)
printf '%s\n' "$found"
[ "$found" = "after the first download: 1 list
another process, one file lost: IncompleteSnapshotError
after delete_revisions: 0 lists
after the second download: 0 lists
another process, one file lost: returned" ]
