"""Read the header of a safetensors file."""

from __future__ import annotations

from typing import Any, Final

from model_catalog.files.formats import header
from model_catalog.files.formats.header import Header
from model_catalog.files.formats.json_stream import JsonStream, RepeatedNames
from model_catalog.files.formats.tensors import packed_weights
from model_catalog.files.formats.tensors.packed_weights import TensorCounts
from model_catalog.files.formats.tensors.tensor_table import AnyTensors, InOrderTensors
from model_catalog.files.safe_open import OpenFile

MAX_HEADER_BYTES: Final = 100_000_000
"""The limit that the format itself defines."""
MAX_TENSORS: Final = 262_144
"""Twice as many as the largest mixture of experts in one file has."""
MAX_METADATA: Final = 262_144

BITS_PER_ELEMENT: Final = {
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
"""The data types of safetensors 0.8.0."""
_PREFIX_BYTES: Final = 8
_MAX_NUMBER: Final = 2**64 - 1
_TENSOR_FIELDS: Final = {"dtype", "shape", "data_offsets"}
_KEPT_METADATA: Final = {
    "license",
    "modelspec.architecture",
    "modelspec.license",
    "modelspec.title",
}


def header_size_bytes(prefix: bytes) -> int:
    """Return the size of the header, from the first eight bytes of the file."""
    return int.from_bytes(prefix[:_PREFIX_BYTES], "little")


def read_safetensors(file: OpenFile) -> Header:
    """
    Read a safetensors header by the rules of the safetensors package 0.8.0.

    The quantization is the data type with the most elements, or the method that packed the weights.
    Architecture, license and name come from the ModelSpec keys of `__metadata__`; the license may
    also be in its key `license`. A file that is longer than its tensors is not complete, because
    the package does not open it. Raises BadHeaderError if the header is damaged, or if tensors
    overlap or leave gaps. Raises HeaderLimitError for more than MAX_TENSORS tensors.
    """
    length = header_size_bytes(file.read_at(0, _PREFIX_BYTES))
    start = _PREFIX_BYTES + length
    if length > MAX_HEADER_BYTES:
        raise file.header_error(
            f"its length field says {length} bytes: at most {MAX_HEADER_BYTES} are allowed"
        )
    if start > file.size_bytes:
        raise file.header_error("the file ends within the header")

    in_order = InOrderTensors()
    metadata = _read_members(JsonStream(file, _PREFIX_BYTES, start), in_order)
    counts, data_bytes = in_order.counts.result(), in_order.data_size_bytes
    superseded, is_in_order = in_order.superseded(), in_order.is_in_order
    # Its hashes take 8 bytes a tensor.
    del in_order
    if superseded or not is_in_order:
        counts, data_bytes = _count_again(JsonStream(file, _PREFIX_BYTES, start), superseded)
    if packed_weights.count_elements(counts) > header.MAX_PARAMETERS:
        raise file.header_error("the tensors have more elements than any model")
    needed_bytes = start + data_bytes
    return Header(
        format="safetensors",
        architecture=header.printable_text(metadata.get("modelspec.architecture")),
        quantization=quantization(counts),
        parameter_count=packed_weights.count_parameters(counts, None),
        license=header.printable_text(metadata.get("modelspec.license", metadata.get("license"))),
        name=header.printable_text(metadata.get("modelspec.title")),
        expected_size_bytes=needed_bytes,
        is_complete=file.size_bytes == needed_bytes,
        tensor_counts=counts,
    )


def quantization(counts: TensorCounts) -> str | None:
    """Return the quantization that tensors tell; None if they are packed in an unknown width."""
    method = packed_weights.packing_method(counts)
    if method in {"words", "mlx", "unknown"}:
        return None
    if method is None or method == "fp8":
        return header.printable_text(packed_weights.main_dtype(counts))
    return method


def _count_again(stream: JsonStream, superseded: set[int]) -> tuple[TensorCounts, int]:
    """Return the totals and the size of the data of tensors that are not in order."""
    tensors = AnyTensors(superseded)
    _read_members(stream, tensors)
    size_bytes = tensors.data_size_bytes
    if size_bytes is None:
        raise stream.file.header_error("its tensors overlap or leave a gap")
    return tensors.counts.result(), size_bytes


def _read_members(stream: JsonStream, tensors: InOrderTensors | AnyTensors) -> dict[str, str]:
    """Add the tensors of a header to `tensors`, and return the metadata that are used."""
    members = stream.peek_short_object()
    if members is not None and _is_metadata(members.get("__metadata__")):
        known = members.pop("__metadata__", None) or {}
        for name, entry in members.items():
            _add_tensor(stream.file, tensors, name, entry)
        return {name: known[name] for name in _KEPT_METADATA & known.keys()}
    metadata: dict[str, str] | None = None
    for name in stream.members(MAX_TENSORS):
        if name == "__metadata__":
            if metadata is not None:
                raise stream.file.header_error("__metadata__ occurs twice")
            metadata = {} if stream.take_null() else _read_metadata(stream)
            continue
        _add_tensor(stream.file, tensors, name, stream.value())
    stream.require_end()
    return metadata or {}


def _is_metadata(value: object) -> bool:
    return value is None or (
        isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
    )


def _add_tensor(
    file: OpenFile, tensors: InOrderTensors | AnyTensors, name: str, entry: object
) -> None:
    if not tensors.add(name, *_parse_tensor(file, name, entry)):
        raise file.limit_error("the tensors have too many data types")


def _read_metadata(stream: JsonStream) -> dict[str, str]:
    kept = {}
    for name in stream.members(MAX_METADATA):
        if name in _KEPT_METADATA:
            kept[name] = stream.string()
        else:
            stream.skip_string()
    return kept


def _parse_tensor(file: OpenFile, name: str, entry: object) -> tuple[str, int, tuple[int, int]]:
    """Return the data type, the number of elements and the byte range of a tensor."""
    dtype: str
    numbers: list[Any]
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end]}:
            numbers = [*shape, begin, end]
        # The package accepts a list in the order of its own struct.
        case [str(dtype), list(shape), [begin, end]]:
            numbers = [*shape, begin, end]
        case _:
            raise file.header_error(
                f"the tensor {name[:80]!r} lacks a valid dtype, shape or data_offsets"
            )
    if isinstance(entry, RepeatedNames) and entry.repeated & _TENSOR_FIELDS:
        raise file.header_error(f"the tensor {name[:80]!r} has a duplicate name")
    for number in numbers:
        if type(number) is not int or not 0 <= number <= _MAX_NUMBER:
            raise file.header_error(
                f"the tensor {name[:80]!r} has an invalid shape or invalid data_offsets"
            )
    *sizes, begin, end = numbers
    elements = 1
    for size in sizes:
        # A later 0 does not undo an overflow in the package.
        elements *= size
        if elements > _MAX_NUMBER:
            raise file.header_error(f"the tensor {name[:80]!r} has more elements than any model")
    # The size of an element is unknown if the type is newer than this module.
    bits = BITS_PER_ELEMENT.get(dtype)
    if begin > end or (bits is not None and elements * bits != 8 * (end - begin)):
        raise file.header_error(f"the size of the tensor {name[:80]!r} does not match its shape")
    return dtype, elements, (begin, end)
