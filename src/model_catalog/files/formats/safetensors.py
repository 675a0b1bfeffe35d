"""The header of a safetensors file."""

from __future__ import annotations

import math
from collections import Counter
from typing import Final

from model_catalog.files.formats import header
from model_catalog.files.formats.header import Header
from model_catalog.files.formats.json_stream import JsonStream
from model_catalog.files.safe_open import OpenFile

MAX_HEADER_BYTES: Final = 100_000_000
"""The format's own limit."""
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
    """How long the header is said to be by the eight bytes before it."""
    return int.from_bytes(prefix[:_PREFIX_BYTES], "little")


def read_safetensors(file: OpenFile) -> Header:
    """
    What the header says; BadHeaderError where it is broken, or its tensors leave holes or overlap.

    The quantization is the type that most of the weights have. What `__metadata__` says of the
    model is read by the names that ModelSpec gives it, and as `license`.
    """
    length = header_size_bytes(file.read_at(0, _PREFIX_BYTES))
    start = _PREFIX_BYTES + length
    if length > MAX_HEADER_BYTES:
        raise file.header_error(
            f"it is said to be {length} bytes long: at most {MAX_HEADER_BYTES} may be"
        )
    if start > file.size_bytes:
        raise file.header_error("the file ends in the middle of it")

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
    stream.finish()

    parameters = elements.total()
    if parameters > header.MAX_PARAMETERS:
        raise file.header_error("its tensors are larger than any can be")
    needed_bytes = start + _data_size_bytes(file, spans)
    most = max(sorted(elements), key=lambda dtype: elements[dtype], default=None)
    return Header(
        format="safetensors",
        architecture=header.printable_text(metadata.get("modelspec.architecture")),
        quantization=header.printable_text(most),
        parameter_count=parameters,
        license=header.printable_text(metadata.get("modelspec.license", metadata.get("license"))),
        name=header.printable_text(metadata.get("modelspec.title")),
        expected_size_bytes=needed_bytes,
        is_complete=file.size_bytes >= needed_bytes,
    )


def _read_metadata(stream: JsonStream) -> dict[str, str]:
    kept = {}
    for name in stream.members(MAX_METADATA):
        value = stream.text()
        if name in {"modelspec.architecture", "modelspec.license", "modelspec.title", "license"}:
            kept[name] = value
    return kept


def _parse_tensor(file: OpenFile, name: str, entry: object) -> tuple[str, int, tuple[int, int]]:
    """The type of a tensor, how many elements it has, and where its bytes begin and end."""
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end]}:
            numbers = [*shape, begin, end]
        case _:
            raise file.header_error(
                f"the tensor {name[:80]!r} has no dtype, shape and data_offsets"
            )
    if len(shape) > MAX_DIMENSIONS or not all(
        type(number) is int and 0 <= number <= _MAX_OFFSET for number in numbers
    ):
        raise file.header_error(f"the tensor {name[:80]!r} has a shape or a place that cannot be")
    count = math.prod(shape)
    # A type that came later is of a size that is not known.
    bits = _BITS_PER_ELEMENT.get(dtype)
    if begin > end or (bits is not None and count * bits != 8 * (end - begin)):
        raise file.header_error(f"the tensor {name[:80]!r} is of another size than its shape")
    return dtype, count, (begin, end)


def _data_size_bytes(file: OpenFile, spans: list[tuple[int, int]]) -> int:
    """Where the last tensor ends; they have to lie one behind the other."""
    end = 0
    for begin, following in sorted(spans):
        if begin != end:
            raise file.header_error("its tensors overlap, or leave a hole")
        end = following
    return end
