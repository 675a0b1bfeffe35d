#!/usr/bin/env bash
# ramalama 0.25.0: the blob `sha256-HEX` of a pulled file is named by the SHA-256 of the file's name.
#
# `file://` and `http://` sources have no digest. RamaLama then stores the file as
# `blobs/sha256-HEX`, and writes the same text as `hash` into `refs/latest.json`. HEX is the SHA-256
# of the text "m.gguf", not of the bytes. Blobs of other sources have the same form and a digest of
# the content. So neither the name of a blob nor `hash` may be used to check the bytes.
#
# Two files with the same name and different content are pulled. Prints:
#
#     blobs with the same name: True
#     the name is the digest of the content: False
#     the name is the digest of the file's name: True
#     the ref repeats it as its hash: True
#
# Exits with 1 if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check 'ramalama==0.25.0' 2>/dev/null
cat > "$folder/look.py" <<'PY'
import hashlib, json, os, struct, sys
from pathlib import Path
from types import SimpleNamespace

folder = Path(sys.argv[1])
os.environ.update(RAMALAMA_STORE=str(folder), HOME=str(folder))

from ramalama.transports.url import URL

KEY = b"general.architecture"
contents = [
    b"GGUF" + struct.pack("<IQQQ20sIQ5s", 3, 0, 1, len(KEY), KEY, 8, len(value), value)
    for value in (b"llama", b"qwen2")
]
for number, content in enumerate(contents):
    source = folder / f"source-{number}" / "m.gguf"
    source.parent.mkdir()
    source.write_bytes(content)
    URL(str(source), str(folder), "file").pull(SimpleNamespace(verify=False, quiet=True))

names = [path.name for path in sorted(folder.glob("store/file/**/blobs/*"))]
refs = [json.loads(path.read_text()) for path in folder.glob("store/file/**/refs/latest.json")]
digests = {f"sha256-{hashlib.sha256(content).hexdigest()}" for content in contents}
of_name = f"sha256-{hashlib.sha256(b'm.gguf').hexdigest()}"
print("blobs with the same name:", len(names) == 2 and len(set(names)) == 1)
print("the name is the digest of the content:", bool(digests & set(names)))
print("the name is the digest of the file's name:", set(names) == {of_name})
print("the ref repeats it as its hash:", [ref["files"][0]["hash"] for ref in refs] == names)
PY
found=$("$folder/venv/bin/python" "$folder/look.py" "$folder" 2>/dev/null)
printf '%s\n' "$found"
[ "$found" = "blobs with the same name: True
the name is the digest of the content: False
the name is the digest of the file's name: True
the ref repeats it as its hash: True" ]
