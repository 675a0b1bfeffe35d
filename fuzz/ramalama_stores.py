"""
Target the reader of the store of RamaLama: read or refused by name, and cheaply.

Nothing outside is opened, and each model that is found can be recorded.
"""

from __future__ import annotations

import json
from functools import partial
from typing import Final

from fuzz.store_inputs import GGUF, encode, open_store_check, strategy

IS_RAW: Final = False
_HASH: Final = f"sha256-{'1' * 64}"


def _ref(*files: tuple[str, str]) -> str:
    listed = [{"hash": f"sha256:{n}", "name": name, "type": t} for n, (name, t) in enumerate(files)]
    return json.dumps({"files": listed, "hash": _HASH, "path": "/x", "version": "v1.0.1"})


_GGUF_MODEL: Final = "store/ollama/library/tiny"
_OTHER_MODEL: Final = "store/huggingface/org/name"
_STORE: Final = (
    (f"{_GGUF_MODEL}/refs/latest.json", "file", _ref(("tiny", "gguf"), ("t", "chat_template"))),
    (f"{_GGUF_MODEL}/snapshots/{_HASH}/tiny", "file", GGUF),
    (f"{_GGUF_MODEL}/snapshots/{_HASH}/t", "link", "../../blobs/sha256-1"),
    (f"{_GGUF_MODEL}/blobs/sha256-0", "file", GGUF),
    (f"{_GGUF_MODEL}/blobs/sha256-1", "file", "x"),
    (f"{_GGUF_MODEL}/refs/old", "file", f"{_HASH}\ntiny---model\nt---chat\n"),
    (
        f"{_OTHER_MODEL}/refs/Q4.json",
        "file",
        _ref(("a/m.safetensors", "safetensor"), ("config.json", "other"), ("README", "other")),
    ),
    (f"{_OTHER_MODEL}/snapshots/{_HASH}/a/m.safetensors", "file", "x"),
    (f"{_OTHER_MODEL}/snapshots/{_HASH}/config.json", "file", "{}"),
    (f"{_OTHER_MODEL}/blobs/sha256-2.partial", "file", "x"),
)
SEEDS: Final = (encode(_STORE),)
INPUTS: Final = strategy([_STORE])
open_check = partial(open_store_check, "ramalama")
