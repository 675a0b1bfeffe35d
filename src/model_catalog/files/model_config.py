"""The JSON beside the weights: what a model is, and over which files its weights are spread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from model_catalog.files.file_names import MAX_NAME_BYTES, is_plain_file_name
from model_catalog.files.formats import header
from model_catalog.files.formats.json_stream import JsonStream
from model_catalog.files.safe_open import OpenFile, ProtectedFiles, StrPath, open_regular_file

MAX_CONFIG_BYTES: Final = 5 * 1024 * 1024
MAX_INDEX_BYTES: Final = 64 * 1024 * 1024
MAX_CONFIG_MEMBERS: Final = 10_000
MAX_INDEX_TENSORS: Final = 300_000
"""Tensors in an index; the largest models have half as many."""
_MAX_INDEX_FILES: Final = 10_000
_MAX_QUANTIZATION_BITS: Final = 64

_KEPT_MEMBERS: Final = {
    "architectures",
    "dtype",
    "max_position_embeddings",
    "model_type",
    "n_positions",
    "quantization_config",
    "text_config",
    "torch_dtype",
}
_KEPT_NESTED_MEMBERS: Final = ("bits", "max_position_embeddings", "n_positions", "quant_method")
_DTYPE_NAMES: Final = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}


@dataclass(frozen=True)
class ModelConfig:
    """What a config.json claims; None where it says nothing."""

    architecture: str | None = None
    context_length: int | None = None
    quantization: str | None = None
    dtype: str | None = None


@dataclass(frozen=True)
class WeightIndex:
    """The files over which an index spreads the weights, and texts in it that name none: sorted."""

    names: tuple[str, ...]
    refused: tuple[str, ...]


def read_config(path: StrPath, *, protected: ProtectedFiles = ()) -> ModelConfig:
    """
    The claims in a config.json.

    Raises BadHeaderError for what is no JSON object or too long; NotAFileError,
    ProtectedFileError, and OSError as the system gave it.
    """
    known: dict[str, Any] = {}
    with open_regular_file(path, protected) as file:
        stream = _open_stream(file, MAX_CONFIG_BYTES)
        for name in stream.members(MAX_CONFIG_MEMBERS):
            # Nothing may hold on to a value while the next is read: each can be 25 MiB of lists.
            if (found := _keep_scalars(name, stream.value())) is not None:
                known[name] = found
        stream.finish()
    return ModelConfig(
        architecture=_architecture(known),
        context_length=_context_length(known),
        quantization=_quantization(known.get("quantization_config")),
        dtype=_dtype(known),
    )


def read_index(path: StrPath, *, protected: ProtectedFiles = ()) -> WeightIndex:
    """
    The files that a model.safetensors.index.json names; the same errors as `read_config`.

    A stranger wrote the names: what could lead out of the index's own folder is refused.
    """
    names: set[str] = set()
    with open_regular_file(path, protected) as file:
        stream = _open_stream(file, MAX_INDEX_BYTES)
        for member in stream.members(MAX_CONFIG_MEMBERS):
            if member != "weight_map":
                stream.value()
                continue
            for _ in stream.members(MAX_INDEX_TENSORS):
                # As much as an error shows of one that is refused.
                names.add(stream.text()[: MAX_NAME_BYTES + 1])
                if len(names) > _MAX_INDEX_FILES:
                    raise file.header_error(f"it names more than {_MAX_INDEX_FILES:,} files")
        stream.finish()
    return WeightIndex(
        names=tuple(sorted(name for name in names if is_plain_file_name(name))),
        refused=tuple(sorted(name for name in names if not is_plain_file_name(name))),
    )


def _open_stream(file: OpenFile, limit_bytes: int) -> JsonStream:
    if file.size_bytes > limit_bytes:
        raise file.header_error(f"it is longer than {limit_bytes >> 20} MiB")
    return JsonStream(file, 0, file.size_bytes)


def _keep_scalars(name: str, value: object) -> Any:
    """What is wanted of a value: a text or a number, or those wanted in an object."""
    if name not in _KEPT_MEMBERS:
        return None
    match value:
        case str() | int():
            return value
        case [str(first), *_]:
            return first
        case dict():
            inside = {key: value.get(key) for key in _KEPT_NESTED_MEMBERS}
            return {key: kept for key, kept in inside.items() if isinstance(kept, str | int)}
    return None


def _architecture(known: Mapping[str, Any]) -> str | None:
    return header.printable_text(known.get("model_type")) or header.printable_text(
        known.get("architectures")
    )


def _context_length(known: Mapping[str, Any]) -> int | None:
    inner = known.get("text_config")
    places = [known, inner] if isinstance(inner, dict) else [known]
    for place in places:
        for name in ("max_position_embeddings", "n_positions"):
            if (found := header.valid_context_length(place.get(name))) is not None:
                return found
    return None


def _quantization(settings: object) -> str | None:
    """Method and width, as in `gptq 4-bit`."""
    if not isinstance(settings, dict):
        return None
    method, bits = header.printable_text(settings.get("quant_method")), settings.get("bits")
    if method is None or type(bits) is not int or not 0 < bits <= _MAX_QUANTIZATION_BITS:
        return method
    return header.printable_text(f"{method} {bits}-bit")


def _dtype(known: Mapping[str, Any]) -> str | None:
    for name in ("dtype", "torch_dtype"):
        if isinstance(found := known.get(name), str):
            return _DTYPE_NAMES.get(found)
    return None
