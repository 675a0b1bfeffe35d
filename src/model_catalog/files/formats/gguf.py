"""Read the header of a GGUF file, versions 1 to 3, little-endian or big-endian."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from model_catalog.files.formats import ggml_types, header
from model_catalog.files.formats.gguf_stream import GgufStream, Value
from model_catalog.files.formats.header import Header
from model_catalog.files.formats.tensors.name_hashes import NameHashes
from model_catalog.files.safe_open import OpenFile

MAX_KEYS: Final = 65_536
MAX_TENSORS: Final = 262_144
MAX_DIMENSIONS: Final = 64
"""The most dimensions of a NumPy array, and so of the gguf package."""

_DEFAULT_ALIGNMENT: Final = 32
_MAX_TEXT_BYTES: Final = 4 * header.MAX_TEXT_LENGTH
_MIN_KEY_BYTES: Final = 9
_MIN_TENSOR_BYTES: Final = 20
_UINT32: Final = 4
_MAX_KEPT_KEYS: Final = 64
_CONTEXT_LENGTH_SUFFIX: Final = b".context_length"
_KEPT_KEYS: Final = {
    b"general.alignment",
    b"general.architecture",
    b"general.file_type",
    b"general.license",
    b"general.name",
    b"general.type",
    b"split.count",
    b"split.no",
}


@dataclass
class _TensorTotals:
    """
    Totals over the list of tensors: elements by tensor type, and the end of the last tensor.

    `end` is in bytes from the start of the tensor data. `all_known` is False if the size of a
    tensor is unknown.
    """

    elements: Counter[int] = field(default_factory=Counter)
    end: int = 0
    all_known: bool = True


def read_gguf(file: OpenFile) -> Header:
    """
    Read a GGUF header.

    The quantization comes from general.file_type. Without that key, it is the tensor type with the
    most elements. Raises BadHeaderError if the header is damaged, or if a key or a tensor occurs
    twice. Raises HeaderLimitError if it exceeds a limit of this module.

    The rules are those of gguf 0.19.0, which refuses a value of an unknown type, an alignment that
    is not a 32-bit power of two, and a tensor whose rows are not whole blocks. Tensors in any
    order, gaps between them, and bytes after the last tensor are accepted.
    """
    stream = GgufStream(file)
    tensor_count, key_count = stream.read_count(), stream.read_count()
    stream.require_bytes(tensor_count * _MIN_TENSOR_BYTES + key_count * _MIN_KEY_BYTES)
    if tensor_count > MAX_TENSORS or key_count > MAX_KEYS:
        raise file.limit_error(f"it declares {tensor_count:,} tensors and {key_count:,} keys")
    known = _read_keys(stream, key_count)
    tensors = _read_tensors(stream, tensor_count)

    parameters = tensors.elements.total()
    if parameters > header.MAX_PARAMETERS:
        raise file.header_error("the tensors have more elements than any model")
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
        general_type=header.printable_text(known.get(b"general.type")),
        shard_index=shard_index,
        shard_count=shard_count,
        # The size of a tensor is unknown if its type is newer than this module.
        expected_size_bytes=needed_bytes if tensors.all_known else None,
        is_complete=is_long_enough if tensors.all_known or not is_long_enough else None,
    )


def _read_keys(stream: GgufStream, count: int) -> dict[bytes, Value]:
    known: dict[bytes, Value] = {}
    # Only the hash of each key is stored: 65,536 keys of 64 KiB would take 4 GiB.
    seen: set[int] = set()
    for number in range(1, count + 1):
        key = stream.read_name()
        seen.add(hash(key))
        if len(seen) < number:
            raise stream.file.header_error(
                f"the key {header.printable_text(key) or '?'} occurs twice"
            )
        # The name of the key with the context length starts with the architecture, which may come
        # later in the file. Until then every such key is kept, up to a limit.
        is_kept = key in _KEPT_KEYS or (
            key.endswith(_CONTEXT_LENGTH_SUFFIX) and len(known) < _MAX_KEPT_KEYS
        )
        kind = stream.read_u32()
        if key == b"general.alignment" and kind != _UINT32:
            raise stream.file.header_error("general.alignment is not a 32-bit number")
        value = stream.read_value(kind, _MAX_TEXT_BYTES if is_kept else 0)
        if is_kept:
            known[key] = value
    return known


def _read_tensors(stream: GgufStream, count: int) -> _TensorTotals:
    totals = _TensorTotals()
    names = NameHashes()
    for _ in range(count):
        names.add(stream.read_name())
        dimensions = stream.read_u32()
        if dimensions > MAX_DIMENSIONS:
            raise stream.file.header_error(f"a tensor has {dimensions} dimensions")
        sizes, kind, offset = stream.read_tensor(dimensions)
        elements = math.prod(sizes)
        if (sizes[0] if sizes else 1) % ggml_types.block_elements(kind):
            raise stream.file.header_error(
                f"a row of a tensor is not whole blocks of {ggml_types.tensor_type_name(kind)}"
            )
        totals.elements[kind] += elements
        size_bytes = ggml_types.tensor_size_bytes(kind, elements)
        totals.all_known = totals.all_known and size_bytes is not None
        totals.end = max(totals.end, offset + (size_bytes or 0))
    if names.superseded():
        raise stream.file.header_error("the name of a tensor occurs twice")
    return totals


def _alignment(file: OpenFile, known: dict[bytes, Value]) -> int:
    alignment = known.get(b"general.alignment", _DEFAULT_ALIGNMENT)
    if type(alignment) is int and alignment.bit_count() == 1:
        return alignment
    raise file.header_error("general.alignment is not a power of two")


def _quantization(number: object, tensors: _TensorTotals) -> str | None:
    if type(number) is int and number >= 0:
        return ggml_types.file_type_name(number)
    if not tensors.elements:
        return None
    return ggml_types.tensor_type_name(
        max(sorted(tensors.elements), key=lambda kind: tensors.elements[kind])
    )
