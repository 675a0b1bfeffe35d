"""Build small model files and stores of other programs, for the demo and for tests."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any, Final

_STRING, _UINT32, _F32 = 8, 4, 0
_ALIGNMENT: Final = 32
_COMMIT: Final = "0123456789abcdef0123456789abcdef01234567"


def huggingface_cache(root: Path, weights: bytes) -> Path:
    """Create a huggingface_hub cache with one revision of one repository, and `main` as its ref."""
    repository = root / "models--demo--tiny"
    snapshot = repository / "snapshots" / _COMMIT
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True)
    config = json.dumps({"model_type": "llama"}).encode()
    names = {
        "tiny.gguf": (hashlib.sha256(weights).hexdigest(), weights),
        "config.json": (hashlib.sha1(b"blob %d\0" % len(config) + config).hexdigest(), config),  # noqa: S324 - git uses SHA-1
    }
    for name, (blob, content) in names.items():
        (repository / "blobs" / blob).write_bytes(content)
        (snapshot / name).symlink_to(f"../../blobs/{blob}")
    (repository / "refs/main").write_text(_COMMIT)
    return root


def ollama_store(root: Path, weights: bytes) -> Path:
    """Create an Ollama store with one model, `tiny:latest`."""
    (root / "blobs").mkdir(parents=True)

    def layer(media_type: str, content: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        (root / "blobs" / f"sha256-{digest}").write_bytes(content)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    details = {"model_format": "gguf", "model_family": "llama", "file_type": "F32"}
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": layer(
            "application/vnd.docker.container.image.v1+json", json.dumps(details).encode()
        ),
        "layers": [
            layer("application/vnd.ollama.image.model", weights),
            layer("application/vnd.ollama.image.template", b"{{ .Prompt }}"),
        ],
    }
    path = root / "manifests/registry.ollama.ai/library/tiny/latest"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(manifest))
    return root


def make_gguf(architecture: str, context_length: int) -> bytes:
    """Return a GGUF file of version 3 with one tensor: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    pairs = (
        text("general.architecture") + struct.pack("<I", _STRING) + text(architecture),
        text("general.alignment") + struct.pack("<II", _UINT32, _ALIGNMENT),
        text(f"{architecture}.context_length") + struct.pack("<II", _UINT32, context_length),
    )
    tensor = text("token_embd.weight") + struct.pack("<IQIQ", 1, 8, _F32, 0)
    header = struct.pack("<4sIQQ", b"GGUF", 3, 1, len(pairs)) + b"".join(pairs) + tensor
    padding = bytes(-len(header) % _ALIGNMENT)
    return header + padding + struct.pack("<8f", *range(8))
