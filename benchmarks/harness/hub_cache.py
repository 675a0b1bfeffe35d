"""A large cache of huggingface_hub, with headers as the programs that write models make them."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Final

from tests.stores.layouts import HuggingFace

FILES_PER_REPOSITORY: Final = 10
_SHARDS: Final = 3
_TENSORS_PER_SHARD: Final = 16


def create_hub_cache(root: Path, repositories: int) -> Path:
    """
    Write a cache with one revision of ten files in each repository, and return its path.

    Every second model is in the format GGUF, and the others are safetensors.
    """
    cache = HuggingFace(root)
    for number in range(repositories):
        files = _gguf_files(number) if number % 2 else _safetensors_files(number)
        cache.revision(f"org/m{number}", f"{number:040x}", files, tree=files)
    return cache.root


def _safetensors_files(number: int) -> dict[str, bytes]:
    names = [f"model-{shard + 1:05}-of-{_SHARDS:05}.safetensors" for shard in range(_SHARDS)]
    tensors = [
        [f"model.layers.{shard}.{tensor}.weight" for tensor in range(_TENSORS_PER_SHARD)]
        for shard in range(_SHARDS)
    ]
    files = {name: _safetensors(tensors[shard], number + shard) for shard, name in enumerate(names)}
    weight_map = {tensor: names[shard] for shard in range(_SHARDS) for tensor in tensors[shard]}
    files["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    config = {"model_type": "llama", "max_position_embeddings": 4096 + number}
    files["config.json"] = json.dumps(config).encode()
    return _with_small_files(files, number)


def _safetensors(tensors: list[str], fill: int) -> bytes:
    header = {
        name: {"dtype": "F16", "shape": [2, 2], "data_offsets": [8 * place, 8 * place + 8]}
        for place, name in enumerate(tensors)
    }
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + struct.pack("<I", fill) * 2 * len(tensors)


def _gguf_files(number: int) -> dict[str, bytes]:
    files = {
        f"m-{shard + 1:05}-of-{_SHARDS:05}.gguf": _gguf(number, shard) for shard in range(_SHARDS)
    }
    return _with_small_files(files, number)


def _gguf(number: int, shard: int) -> bytes:
    values = [
        _gguf_value("general.architecture", 8, _gguf_text("llama")),
        _gguf_value("general.file_type", 4, struct.pack("<I", 1)),
        _gguf_value("llama.context_length", 4, struct.pack("<I", 4096 + number)),
        _gguf_value("split.no", 2, struct.pack("<H", shard)),
        _gguf_value("split.count", 2, struct.pack("<H", _SHARDS)),
    ]
    tensors = [
        _gguf_text(f"blk.{shard}.{tensor}.weight")
        + struct.pack("<IQQIQ", 2, 2, 2, 1, 32 * tensor)  # two dimensions of 2, as F16
        for tensor in range(_TENSORS_PER_SHARD)
    ]
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values))
    header += b"".join(values) + b"".join(tensors)
    return header + bytes(-len(header) % 32) + bytes(32 * len(tensors))


def _gguf_value(key: str, kind: int, value: bytes) -> bytes:
    return _gguf_text(key) + struct.pack("<I", kind) + value


def _gguf_text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _with_small_files(files: dict[str, bytes], number: int) -> dict[str, bytes]:
    missing = range(FILES_PER_REPOSITORY - len(files))
    return files | {f"sub/{place}.txt": f"{number}/{place}".encode() for place in missing}
