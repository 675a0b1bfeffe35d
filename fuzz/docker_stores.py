"""
Target the reader of the store of Docker Model Runner: read or refused by name, and cheaply.

Nothing outside is opened, and each model that is found can be recorded.
"""

from __future__ import annotations

import hashlib
import json
from functools import partial
from typing import Any, Final

from fuzz.store_inputs import GGUF, encode, open_store_check, strategy

IS_RAW: Final = False
_DIGEST: Final = hashlib.sha256(GGUF.encode()).hexdigest()
_CONFIG: Final = json.dumps({"config": {"format": "gguf", "parameters": "1B", "context_size": 8}})
_CONFIG_DIGEST: Final = hashlib.sha256(_CONFIG.encode()).hexdigest()
_ID: Final = "f" * 64


def _descriptor(kind: str, digest: str, text: str) -> dict[str, Any]:
    return {
        "mediaType": f"application/vnd.docker.ai.{kind}",
        "digest": f"sha256:{digest}",
        "size": len(text),
        "annotations": {"org.cncf.model.filepath": "m.gguf"},
    }


_MANIFEST: Final = {
    "schemaVersion": 2,
    "config": _descriptor("model.config.v0.1+json", _CONFIG_DIGEST, _CONFIG),
    "layers": [_descriptor("gguf.v3", _DIGEST, GGUF), _descriptor("license", _DIGEST, GGUF)],
}
_INDEX: Final = {
    "models": [
        {"id": f"sha256:{_ID}", "tags": ["docker.io/ai/m:latest", "docker.io/ai/m:2"], "files": []},
        {"id": f"sha256:{'e' * 64}", "tags": None, "files": []},
    ]
}
SEEDS: Final = (
    encode(
        _STORE := (
            ("layout.json", "file", '{"version": "1.0.0"}'),
            ("models.json", "file", json.dumps(_INDEX)),
            (f"manifests/sha256/{_ID}", "file", json.dumps(_MANIFEST)),
            (f"manifests/sha256/{'e' * 64}", "file", json.dumps(_MANIFEST)),
            (f"blobs/sha256/{_DIGEST}", "file", GGUF),
            (f"blobs/sha256/{_CONFIG_DIGEST}", "file", _CONFIG),
            (f"blobs/sha256/{'d' * 64}.incomplete", "file", "x"),
            (f"bundles/sha256/{_ID}/model/m.gguf", "file", GGUF),
        )
    ),
)
INPUTS: Final = strategy([_STORE])
open_check = partial(open_store_check, "docker", digests_are_names=True)
