"""The header of a GGUF file, versions 1 to 3 and either order of bytes."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from model_catalog.files.formats import ggml_types, header
from model_catalog.files.formats.gguf_stream import GgufStream, Value
from model_catalog.files.formats.header import Header
from model_catalog.files.safe_open import OpenFile

MAX_KEYS: Final = 65_536
MAX_TENSORS: Final = 65_536
MAX_DIMENSIONS: Final = 8
MAX_ALIGNMENT: Final = 1024 * 1024

_DEFAULT_ALIGNMENT: Final = 32
_MAX_TEXT_BYTES: Final = 4 * header.MAX_TEXT_LENGTH
_MAX_KEPT_KEYS: Final = 64
_CONTEXT_LENGTH_SUFFIX: Final = b".context_length"
_KEPT_KEYS: Final = {
    b"general.alignment",
    b"general.architecture",
    b"general.file_type",
    b"general.license",
    b"general.name",
    b"split.count",
    b"split.no",
}


@dataclass
class _TensorTotals:
    """What the list of tensors amounts to."""

    elements: Counter[int] = field(default_factory=Counter)
    end: int = 0
    all_known: bool = True


def read_gguf(file: OpenFile) -> Header:
    """
    What the header says; BadHeaderError where it is broken, too long, or names a thing twice.

    A quantization comes from general.file_type, and without one from the type most weights have.
    """
    stream = GgufStream(file)
    tensor_count, key_count = stream.length(), stream.length()
    if tensor_count > MAX_TENSORS or key_count > MAX_KEYS:
        raise file.header_error(f"it has {tensor_count:,} tensors and {key_count:,} keys")
    known = _read_keys(stream, key_count)
    tensors = _read_tensors(stream, tensor_count)

    parameters = tensors.elements.total()
    if parameters > header.MAX_PARAMETERS:
        raise file.header_error("its tensors are larger than any can be")
    needed_bytes, alignment = stream.position, _alignment(file, known)
    if tensor_count:
        needed_bytes = -(-needed_bytes // alignment) * alignment + tensors.end
    is_long_enough = file.size_bytes >= needed_bytes
    architecture = known.get(b"general.architecture")
    prefix = architecture if isinstance(architecture, bytes) else b""
    shard_index, shard_count = header.valid_shard(known.get(b"split.no"), known.get(b"split.count"))
    return Header(
        format="gguf",
        architecture=header.printable_text(architecture),
        quantization=_quantization(known.get(b"general.file_type"), tensors),
        context_length=header.valid_context_length(known.get(prefix + _CONTEXT_LENGTH_SUFFIX)),
        parameter_count=parameters,
        license=header.printable_text(known.get(b"general.license")),
        name=header.printable_text(known.get(b"general.name")),
        shard_index=shard_index,
        shard_count=shard_count,
        # A tensor of a type that came later is of a size that is not known.
        expected_size_bytes=needed_bytes if tensors.all_known else None,
        is_complete=is_long_enough if tensors.all_known or not is_long_enough else None,
    )


def _read_keys(stream: GgufStream, count: int) -> dict[bytes, Value]:
    known: dict[bytes, Value] = {}
    # Of a key only its hash is kept: 65,536 of 64 KiB are 4 GiB.
    seen: set[int] = set()
    for number in range(1, count + 1):
        key = stream.name()
        seen.add(hash(key))
        if len(seen) < number:
            raise stream.file.header_error(
                f"it has the key {header.printable_text(key) or '?'} twice"
            )
        # Which context length is the model's is known once its architecture is, and that may come
        # later: until then each is kept, up to a number.
        kept = key in _KEPT_KEYS or (
            key.endswith(_CONTEXT_LENGTH_SUFFIX) and len(known) < _MAX_KEPT_KEYS
        )
        value = stream.value(_MAX_TEXT_BYTES if kept else 0)
        if kept:
            known[key] = value
    return known


def _read_tensors(stream: GgufStream, count: int) -> _TensorTotals:
    found = _TensorTotals()
    seen: set[int] = set()
    for number in range(1, count + 1):
        name = stream.name()
        seen.add(hash(name))
        if len(seen) < number:
            raise stream.file.header_error(
                f"it has the tensor {header.printable_text(name) or '?'} twice"
            )
        dimensions = stream.u32()
        if dimensions > MAX_DIMENSIONS:
            raise stream.file.header_error(f"a tensor in it has {dimensions} dimensions")
        elements = math.prod(stream.length() for _ in range(dimensions))
        kind, offset = stream.u32(), stream.u64()
        found.elements[kind] += elements
        size_bytes = ggml_types.tensor_size_bytes(kind, elements)
        found.all_known = found.all_known and size_bytes is not None
        found.end = max(found.end, offset + (size_bytes or 0))
    return found


def _alignment(file: OpenFile, known: dict[bytes, Value]) -> int:
    alignment = known.get(b"general.alignment", _DEFAULT_ALIGNMENT)
    if type(alignment) is int and 0 < alignment <= MAX_ALIGNMENT and alignment.bit_count() == 1:
        return alignment
    raise file.header_error("its general.alignment is no power of two up to a mebibyte")


def _quantization(number: object, tensors: _TensorTotals) -> str | None:
    if type(number) is int and number >= 0:
        return ggml_types.file_type_name(number)
    if not tensors.elements:
        return None
    return ggml_types.tensor_type_name(
        max(sorted(tensors.elements), key=lambda kind: tensors.elements[kind])
    )
