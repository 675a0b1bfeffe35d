"""The JSON beside the weights: what a model is, and over which files its weights are spread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from model_catalog.files.file_names import MAX_NAME_BYTES, is_plain
from model_catalog.files.formats import header
from model_catalog.files.formats.json_stream import JsonStream
from model_catalog.files.safe_open import Forbidden, OpenFile, Pathlike, open_regular

MAX_CONFIG_BYTES: Final = 5 * 1024 * 1024
MAX_INDEX_BYTES: Final = 64 * 1024 * 1024
MAX_CONFIG_MEMBERS: Final = 10_000
MAX_WEIGHTS: Final = 300_000
"""Tensors in an index; the largest models have half as many."""
_MAX_INDEXED: Final = 10_000
_MAX_BITS: Final = 64

_KEPT: Final = {
    "architectures",
    "dtype",
    "max_position_embeddings",
    "model_type",
    "n_positions",
    "quantization_config",
    "text_config",
    "torch_dtype",
}
_KEPT_INSIDE: Final = ("bits", "max_position_embeddings", "n_positions", "quant_method")
_DTYPES: Final = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}


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


def read_config(path: Pathlike, *, forbidden: Forbidden = ()) -> ModelConfig:
    """
    The claims in a config.json.

    Raises BadHeaderError for what is no JSON object or too long; NotAFileError,
    ProtectedFileError, and OSError as the system gave it.
    """
    known: dict[str, Any] = {}
    with open_regular(path, forbidden) as file:
        stream = _stream(file, MAX_CONFIG_BYTES)
        for name in stream.members(MAX_CONFIG_MEMBERS):
            # Nothing may hold on to a value while the next is read: each can be 25 MiB of lists.
            if (found := _scalars(name, stream.value())) is not None:
                known[name] = found
        stream.finish()
    return ModelConfig(
        architecture=_architecture(known),
        context_length=_context_length(known),
        quantization=_quantization(known.get("quantization_config")),
        dtype=_dtype(known),
    )


def read_index(path: Pathlike, *, forbidden: Forbidden = ()) -> WeightIndex:
    """
    The files that a model.safetensors.index.json names; the same errors as `read_config`.

    A stranger wrote the names: what could lead out of the index's own folder is refused.
    """
    names: set[str] = set()
    with open_regular(path, forbidden) as file:
        stream = _stream(file, MAX_INDEX_BYTES)
        for member in stream.members(MAX_CONFIG_MEMBERS):
            if member != "weight_map":
                stream.value()
                continue
            for _ in stream.members(MAX_WEIGHTS):
                # As much as an error shows of one that is refused.
                names.add(stream.text()[: MAX_NAME_BYTES + 1])
                if len(names) > _MAX_INDEXED:
                    raise file.refuse(f"it names more than {_MAX_INDEXED:,} files")
        stream.finish()
    return WeightIndex(
        names=tuple(sorted(name for name in names if is_plain(name))),
        refused=tuple(sorted(name for name in names if not is_plain(name))),
    )


def _stream(file: OpenFile, limit_bytes: int) -> JsonStream:
    if file.size_bytes > limit_bytes:
        raise file.refuse(f"it is longer than {limit_bytes >> 20} MiB")
    return JsonStream(file, 0, file.size_bytes)


def _scalars(name: str, value: object) -> Any:
    """What is wanted of a value: a text or a number, or those wanted in an object."""
    if name not in _KEPT:
        return None
    match value:
        case str() | int():
            return value
        case [str(first), *_]:
            return first
        case dict():
            inside = {key: value.get(key) for key in _KEPT_INSIDE}
            return {key: kept for key, kept in inside.items() if isinstance(kept, str | int)}
    return None


def _architecture(known: Mapping[str, Any]) -> str | None:
    return header.text(known.get("model_type")) or header.text(known.get("architectures"))


def _context_length(known: Mapping[str, Any]) -> int | None:
    inner = known.get("text_config")
    places = [known, inner] if isinstance(inner, dict) else [known]
    for place in places:
        for name in ("max_position_embeddings", "n_positions"):
            if (found := header.context_length(place.get(name))) is not None:
                return found
    return None


def _quantization(settings: object) -> str | None:
    """Method and width, as in `gptq 4-bit`."""
    if not isinstance(settings, dict):
        return None
    method, bits = header.text(settings.get("quant_method")), settings.get("bits")
    if method is None or type(bits) is not int or not 0 < bits <= _MAX_BITS:
        return method
    return header.text(f"{method} {bits}-bit")


def _dtype(known: Mapping[str, Any]) -> str | None:
    for name in ("dtype", "torch_dtype"):
        if isinstance(found := known.get(name), str):
            return _DTYPES.get(found)
    return None
