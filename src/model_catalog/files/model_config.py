"""Readers of config.json, which describes a model, and of *.index.json, which lists its shards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from model_catalog.files.file_names import MAX_NAME_BYTES, is_plain_file_name
from model_catalog.files.formats import header
from model_catalog.files.formats.json_stream import JsonStream
from model_catalog.files.formats.onnx_graph import read_external_files
from model_catalog.files.formats.tensors.packed_weights import Packing
from model_catalog.files.formats.tensors.quantization_config import (
    Quantization,
    best_quantization,
    read_quantization,
)
from model_catalog.files.safe_open import OpenFile, ProtectedFiles, StrPath, open_regular_file

MAX_CONFIG_BYTES: Final = 5 * 1024 * 1024
MAX_INDEX_BYTES: Final = 128 * 1024 * 1024
MAX_CONFIG_MEMBERS: Final = 10_000
MAX_INDEX_TENSORS: Final = 1_000_000
"""The most tensors in an index; the largest models have half as many."""
_MAX_INDEX_FILES: Final = 10_000

_KEPT_MEMBERS: Final = {
    "architectures",
    "dtype",
    "max_position_embeddings",
    "model_type",
    "n_positions",
    "text_config",
    "torch_dtype",
}
_QUANTIZATION_MEMBERS: Final = ("quantization", "quantization_config")
_KEPT_NESTED_MEMBERS: Final = ("max_position_embeddings", "n_positions")
_DTYPE_NAMES: Final = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}


@dataclass(frozen=True)
class ModelConfig:
    """The values of a config.json that the catalog uses. None means that a value is absent."""

    architecture: str | None = None
    context_length: int | None = None
    quantization: str | None = None
    dtype: str | None = None
    packing: Packing | None = None


@dataclass(frozen=True)
class WeightIndex:
    """
    The weight files that an index lists, and the invalid names in it. Both are sorted.

    An invalid name is a text that is not a plain file name. `needed_bytes` are the smallest sizes
    of files, if the index states them.
    """

    file_names: tuple[str, ...]
    invalid_names: tuple[str, ...]
    needed_bytes: Mapping[str, int] = field(default_factory=dict)


def read_config(path: StrPath, *, protected: ProtectedFiles = ()) -> ModelConfig:
    """
    Read a config.json by the rules of Python's `json`, as transformers does.

    NaN and Infinity are accepted, and the last of equal names counts.

    Raises BadHeaderError if the file is not a JSON object, HeaderLimitError if it is too large,
    NotAFileError, ProtectedFileError, and OSError as the system reports it.
    """
    members: dict[str, Any] = {}
    quantizations: dict[str, Quantization] = {}
    with open_regular_file(path, protected) as file:
        stream = _open_stream(file, MAX_CONFIG_BYTES)
        for name in stream.members(MAX_CONFIG_MEMBERS):
            # No variable may keep a value while the next one is read: one value can take 25 MiB
            # of lists.
            if name in _QUANTIZATION_MEMBERS:
                quantizations[name] = read_quantization(name, stream.value())
            else:
                members[name] = _keep_scalars(name, stream.value())
        stream.require_end()
    quantization = best_quantization(quantizations.values())
    return ModelConfig(
        architecture=_architecture(members),
        context_length=_context_length(members),
        quantization=quantization.name,
        dtype=_dtype(members),
        packing=quantization.packing,
    )


def read_index(path: StrPath, *, protected: ProtectedFiles = ()) -> WeightIndex:
    """
    Read the file names in a model.safetensors.index.json. Raises the errors of `read_config`.

    If a tensor occurs twice, both of its files are listed.

    The names are untrusted input. A name that could lead out of the folder of the index is
    returned as invalid.
    """
    names: set[str] = set()
    with open_regular_file(path, protected) as file:
        for name in _index_names(_open_stream(file, MAX_INDEX_BYTES)):
            # An error message shows no more of an invalid name than this.
            names.add(name[: MAX_NAME_BYTES + 1])
            if len(names) > _MAX_INDEX_FILES:
                raise file.limit_error(f"it lists more than {_MAX_INDEX_FILES:,} files")
    return WeightIndex(
        file_names=tuple(sorted(name for name in names if is_plain_file_name(name))),
        invalid_names=tuple(sorted(name for name in names if not is_plain_file_name(name))),
    )


def _index_names(stream: JsonStream) -> Iterator[str]:
    """Yield the file of each tensor in an index. Raises BadHeaderError and HeaderLimitError."""
    weight_map = (stream.peek_short_object() or {}).get("weight_map")
    if type(weight_map) is dict and all(isinstance(name, str) for name in weight_map.values()):
        yield from weight_map.values()
        return
    for member in stream.members(MAX_CONFIG_MEMBERS):
        if member != "weight_map":
            stream.value()
            continue
        for _ in stream.members(MAX_INDEX_TENSORS):
            yield stream.string()
    stream.require_end()


def read_onnx_index(path: StrPath, *, protected: ProtectedFiles = ()) -> WeightIndex:
    """
    Read the names of the files in which an ONNX model keeps its tensors, beside the model.

    A name may have folders. Raises BadHeaderError if the file is truncated, HeaderLimitError,
    NotAFileError, ProtectedFileError, and OSError as the system reports it.
    """
    with open_regular_file(path, protected) as file:
        sizes = read_external_files(file)
    valid = {name for name in sizes if all(map(is_plain_file_name, name.split("/")))}
    return WeightIndex(
        file_names=tuple(sorted(valid)),
        invalid_names=tuple(sorted(name for name in sizes if name not in valid)),
        needed_bytes={name: size for name, size in sizes.items() if name in valid},
    )


def _open_stream(file: OpenFile, limit_bytes: int) -> JsonStream:
    if file.size_bytes > limit_bytes:
        raise file.limit_error(f"it is larger than {limit_bytes >> 20} MiB")
    return JsonStream(file, 0, file.size_bytes, python_rules=True)


def _keep_scalars(name: str, value: object) -> Any:
    """Reduce a member to the strings and integers that are used; None if nothing is used."""
    if name not in _KEPT_MEMBERS:
        return None
    match value:
        case str() | int():
            return value
        case [str(first), *_]:
            return first
        case dict():
            nested = {key: value.get(key) for key in _KEPT_NESTED_MEMBERS}
            return {key: item for key, item in nested.items() if isinstance(item, str | int)}
    return None


def _architecture(members: Mapping[str, Any]) -> str | None:
    return header.printable_text(members.get("model_type")) or header.printable_text(
        members.get("architectures")
    )


def _context_length(members: Mapping[str, Any]) -> int | None:
    text_config = members.get("text_config")
    objects = [members, text_config] if isinstance(text_config, dict) else [members]
    for each in objects:
        for name in ("max_position_embeddings", "n_positions"):
            if (length := header.valid_context_length(each.get(name))) is not None:
                return length
    return None


def _dtype(members: Mapping[str, Any]) -> str | None:
    for name in ("dtype", "torch_dtype"):
        if isinstance(dtype := members.get(name), str):
            return _DTYPE_NAMES.get(dtype)
    return None
