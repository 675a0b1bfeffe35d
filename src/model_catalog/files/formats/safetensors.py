"""Read the header of a safetensors file."""

from __future__ import annotations

import math
from collections import Counter
from typing import Final

from model_catalog.files.formats import header
from model_catalog.files.formats.header import Header
from model_catalog.files.formats.json_stream import JsonStream
from model_catalog.files.safe_open import OpenFile

MAX_HEADER_BYTES: Final = 100_000_000
"""The limit that the format itself defines."""
MAX_TENSORS: Final = 65_536
MAX_METADATA: Final = 65_536
MAX_DIMENSIONS: Final = 64

_BITS_PER_ELEMENT: Final = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
_PREFIX_BYTES: Final = 8
_MAX_OFFSET: Final = 2**63 - 1


def header_size_bytes(prefix: bytes) -> int:
    """Return the size of the header, from the first eight bytes of the file."""
    return int.from_bytes(prefix[:_PREFIX_BYTES], "little")


def read_safetensors(file: OpenFile) -> Header:
    """
    Read a safetensors header.

    The quantization is the data type with the most elements. Architecture, license and name come
    from the ModelSpec keys of `__metadata__`; the license may also be in its key `license`. Raises
    BadHeaderError if the header is damaged, or if tensors overlap or leave gaps.
    """
    length = header_size_bytes(file.read_at(0, _PREFIX_BYTES))
    start = _PREFIX_BYTES + length
    if length > MAX_HEADER_BYTES:
        raise file.header_error(
            f"its length field says {length} bytes: at most {MAX_HEADER_BYTES} are allowed"
        )
    if start > file.size_bytes:
        raise file.header_error("the file ends within the header")

    stream = JsonStream(file, _PREFIX_BYTES, start)
    metadata: dict[str, str] = {}
    elements: Counter[str] = Counter()
    spans: list[tuple[int, int]] = []
    for name in stream.members(MAX_TENSORS):
        if name == "__metadata__":
            metadata = _read_metadata(stream)
            continue
        dtype, count, span = _parse_tensor(file, name, stream.value())
        elements[dtype] += count
        spans.append(span)
    stream.require_end()

    parameters = elements.total()
    if parameters > header.MAX_PARAMETERS:
        raise file.header_error("the tensors have more elements than any model")
    needed_bytes = start + _data_size_bytes(file, spans)
    main_dtype = max(sorted(elements), key=lambda dtype: elements[dtype], default=None)
    return Header(
        format="safetensors",
        architecture=header.printable_text(metadata.get("modelspec.architecture")),
        quantization=header.printable_text(main_dtype),
        parameter_count=parameters,
        license=header.printable_text(metadata.get("modelspec.license", metadata.get("license"))),
        name=header.printable_text(metadata.get("modelspec.title")),
        expected_size_bytes=needed_bytes,
        is_complete=file.size_bytes >= needed_bytes,
    )


def _read_metadata(stream: JsonStream) -> dict[str, str]:
    kept = {}
    for name in stream.members(MAX_METADATA):
        value = stream.string()
        if name in {"modelspec.architecture", "modelspec.license", "modelspec.title", "license"}:
            kept[name] = value
    return kept


def _parse_tensor(file: OpenFile, name: str, entry: object) -> tuple[str, int, tuple[int, int]]:
    """Return the data type, the number of elements and the byte range of a tensor."""
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end]}:
            numbers = [*shape, begin, end]
        case _:
            raise file.header_error(
                f"the tensor {name[:80]!r} lacks a valid dtype, shape or data_offsets"
            )
    if len(shape) > MAX_DIMENSIONS or not all(
        type(number) is int and 0 <= number <= _MAX_OFFSET for number in numbers
    ):
        raise file.header_error(
            f"the tensor {name[:80]!r} has an invalid shape or invalid data_offsets"
        )
    count = math.prod(shape)
    # The size of an element is unknown if the type is newer than this module.
    bits = _BITS_PER_ELEMENT.get(dtype)
    if begin > end or (bits is not None and count * bits != 8 * (end - begin)):
        raise file.header_error(f"the size of the tensor {name[:80]!r} does not match its shape")
    return dtype, count, (begin, end)


def _data_size_bytes(file: OpenFile, spans: list[tuple[int, int]]) -> int:
    """Return the end of the last tensor. The tensors must be contiguous."""
    end = 0
    for begin, next_begin in sorted(spans):
        if begin != end:
            raise file.header_error("its tensors overlap or leave a gap")
        end = next_begin
    return end
