"""
Read which files an ONNX model keeps its tensors in, without the tensors.

The file is one message of Protocol Buffers: ModelProto, GraphProto and TensorProto of onnx.proto
(ONNX 1.19). Only the initializers of the main graph are looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from model_catalog.files.safe_open import OpenFile

MAX_FIELDS: Final = 500_000
"""The most fields that are read of a file; large models have 100,000."""
MAX_EXTERNAL_FILES: Final = 10_000
_WINDOW_BYTES: Final = 4096
_MAX_TEXT_BYTES: Final = 4096
_MAX_VARINT_BYTES: Final = 10
_MORE_BYTES_FOLLOW: Final = 0x80
_MAX_DIGITS: Final = 19
_GRAPH, _INITIALIZER, _EXTERNAL_DATA = 7, 5, 13
_KEY, _VALUE = 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class _NotProtobufError(Exception):
    """The bytes are not a message."""


class _Field(NamedTuple):
    number: int
    start: int
    end: int


def read_external_files(file: OpenFile) -> dict[str, int]:
    """
    Return the files that a model names for its tensors, with the size in bytes that each needs.

    The names are untrusted: relative paths, as they are written. Empty if the file is not an ONNX
    model. Raises BadHeaderError if the file ends within the graph, and HeaderLimitError.
    """
    reader = _Reader(file)
    found: dict[str, int] = {}
    try:
        for field in reader.fields(0, file.size_bytes):
            if field.number == _GRAPH and field.end > file.size_bytes:
                raise file.header_error("the file ends within its graph")
            if field.number == _GRAPH:
                _read_graph(reader, field, found)
    except _NotProtobufError:
        return {}
    return found


def _read_graph(reader: _Reader, graph: _Field, found: dict[str, int]) -> None:
    for field in reader.fields(graph.start, graph.end):
        if field.number != _INITIALIZER:
            continue
        entries = dict(
            reader.entry(each)
            for each in reader.fields(field.start, field.end)
            if each.number == _EXTERNAL_DATA
        )
        if (location := entries.get(b"location")) is not None:
            name = location.decode("utf-8", "surrogateescape")
            needed_bytes = _number(entries.get(b"offset")) + _number(entries.get(b"length"))
            found[name] = max(found.get(name, 0), needed_bytes)
            if len(found) > MAX_EXTERNAL_FILES:
                raise reader.file.limit_error(f"it names more than {MAX_EXTERNAL_FILES:,} files")


def _number(text: bytes | None) -> int:
    return int(text) if text is not None and text.isdigit() and len(text) <= _MAX_DIGITS else 0


class _Reader:
    """Reads fields of messages through a window of the file."""

    def __init__(self, file: OpenFile) -> None:
        self.file = file
        self._window = b""
        self._window_start = 0
        self._field_count = 0

    def fields(self, start: int, end: int) -> Iterator[_Field]:
        """Yield the fields of the message in a range of bytes."""
        at = start
        while at < min(end, self.file.size_bytes):
            self._field_count += 1
            if self._field_count > MAX_FIELDS:
                raise self.file.limit_error(f"it has more than {MAX_FIELDS:,} fields")
            tag, at = self._varint(at)
            number, wire_type = tag >> 3, tag & 7
            field_start = at
            if wire_type == _VARINT:
                _, at = self._varint(at)
            elif wire_type == _BYTES:
                length, field_start = self._varint(at)
                at = field_start + length
            elif wire_type in {_FIXED64, _FIXED32}:
                at += 8 if wire_type == _FIXED64 else 4
            else:
                raise _NotProtobufError
            if number == 0 or (at > end and end < self.file.size_bytes):
                raise _NotProtobufError
            yield _Field(number, field_start, at)

    def entry(self, field: _Field) -> tuple[bytes, bytes]:
        """Return the key and the value of a StringStringEntryProto."""
        texts = {}
        for each in self.fields(field.start, field.end):
            if each.end - each.start > _MAX_TEXT_BYTES:
                raise _NotProtobufError
            texts[each.number] = self._read(each.start, each.end - each.start)
        return texts.get(_KEY, b""), texts.get(_VALUE, b"")

    def _varint(self, at: int) -> tuple[int, int]:
        """Return a number of variable length, and where it ends."""
        value = 0
        for index, byte in enumerate(self._read(at, _MAX_VARINT_BYTES)):
            value |= (byte & 0x7F) << (7 * index)
            if byte < _MORE_BYTES_FOLLOW:
                return value, at + index + 1
        raise _NotProtobufError

    def _read(self, at: int, size_bytes: int) -> bytes:
        start = at - self._window_start
        if start < 0 or start + size_bytes > len(self._window):
            self._window = self.file.read_at(at, max(size_bytes, _WINDOW_BYTES))
            self._window_start, start = at, 0
        return self._window[start : start + size_bytes]
