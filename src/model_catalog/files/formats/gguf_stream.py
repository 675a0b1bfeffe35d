"""Read the bytes of a GGUF header and parse its values, with bounded memory and time."""

from __future__ import annotations

import struct
from typing import Final, TypeAlias

from model_catalog.files.safe_open import OpenFile

MAGIC: Final = b"GGUF"

MAX_VERSION: Final = 3
MAX_HEADER_BYTES: Final = 128 * 1024 * 1024
MAX_NAME_BYTES: Final = 65_535
MAX_ITEMS: Final = 4_000_000
"""The most strings in all arrays. The largest vocabularies have 300,000, and as many merges."""
MAX_DEPTH: Final = 2
"""The deepest nesting of arrays. No known writer nests them."""

Value: TypeAlias = bytes | int | float | None

_WINDOW_BYTES: Final = 256 * 1024
_U32: Final = 4
_U32_BYTES: Final = 4
_BOOL: Final = 7
_STRING: Final = 8
_ARRAY: Final = 9
_U64: Final = 10
_FORMAT_CODES: Final = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    _U32: "I",
    5: "i",
    6: "f",
    _BOOL: "?",
    _U64: "Q",
    11: "q",
    12: "d",
}


class GgufStream:
    """
    A forward-only parser for the bytes of a GGUF header. Skipped values are never read.

    Every method raises BadHeaderError for an invalid or truncated header, and its subclass
    HeaderLimitError for one that exceeds a limit of this module.
    """

    def __init__(self, file: OpenFile) -> None:
        """Read the version, which determines the width of a length and the byte order."""
        self.file = file
        self._end = min(file.size_bytes, MAX_HEADER_BYTES)
        self._window = b""
        self._start = 0
        self._at = 0
        self._items_left = MAX_ITEMS
        self._structs = _structs("<")
        self.skip(len(MAGIC))
        version = self.read_u32()
        # A multiple of 65536 is not a real version: it is a small number in big-endian byte order.
        if version & 0xFFFF == 0:
            self._structs = _structs(">")
            self.skip(-4)
            version = self.read_u32()
        if version == 0:
            raise file.header_error("GGUF version 0 does not exist")
        if version > MAX_VERSION:
            raise file.limit_error(f"GGUF version {version} is not supported: only 1 to 3 are")
        self._length = self._structs[_U32 if version == 1 else _U64]
        self._tensor_structs: dict[int, struct.Struct] = {}

    @property
    def position(self) -> int:
        """The offset of the next byte in the file."""
        return self._start + self._at

    def read_u32(self) -> int:
        return int(self._read_number(self._structs[_U32]))

    def read_count(self) -> int:
        """Read a count or a length: 32 bits in version 1, 64 bits in the other versions."""
        return int(self._read_number(self._length))

    def read_name(self) -> bytes:
        """Read the name of a key or of a tensor."""
        size_bytes = self.read_count()
        if size_bytes > MAX_NAME_BYTES:
            self.require_bytes(size_bytes)
            raise self.file.limit_error(
                f"a name is {size_bytes} bytes long: at most {MAX_NAME_BYTES} are allowed"
            )
        return self._read_bytes(size_bytes)

    def read_tensor(self, dimensions: int) -> tuple[tuple[int, ...], int, int]:
        """Read what follows the number of dimensions of a tensor: its sizes, type and offset."""
        format_ = self._tensor_structs.get(dimensions)
        if format_ is None:
            sizes = dimensions * self._length.format[-1:]
            format_ = struct.Struct(f"{self._length.format[:1]}{sizes}IQ")
            self._tensor_structs[dimensions] = format_
        if len(self._window) - self._at < format_.size:
            self._fill_window(format_.size)
        *numbers, kind, offset = format_.unpack_from(self._window, self._at)
        self._at += format_.size
        return tuple(numbers), kind, offset

    def read_value(self, kind: int, max_text_bytes: int) -> Value:
        """Read a value of a type. None for arrays and for texts longer than `max_text_bytes`."""
        if kind == _ARRAY:
            self._skip_array(0)
        elif kind == _STRING:
            size_bytes = self.read_count()
            if size_bytes <= max_text_bytes:
                return self._read_bytes(size_bytes)
            self.skip(size_bytes)
        elif kind in _FORMAT_CODES:
            return self._read_number(self._structs[kind])
        else:
            raise self.file.header_error(f"a value has the unknown type {kind}")
        return None

    def skip(self, size_bytes: int) -> None:
        """Skip bytes without reading them. A negative number moves back."""
        self.require_bytes(size_bytes)
        self._at += size_bytes

    def _read_bytes(self, size_bytes: int) -> bytes:
        if len(self._window) - self._at < size_bytes:
            self._fill_window(size_bytes)
        self._at += size_bytes
        return self._window[self._at - size_bytes : self._at]

    def _read_number(self, format_: struct.Struct) -> int | float:
        if len(self._window) - self._at < format_.size:
            self._fill_window(format_.size)
        value: int | float = format_.unpack_from(self._window, self._at)[0]
        self._at += format_.size
        return value

    def require_bytes(self, size_bytes: int) -> None:
        """Raise BadHeaderError unless the header can have this many more bytes."""
        if self.position + size_bytes <= self._end:
            return
        if self.position + size_bytes <= self.file.size_bytes:
            raise self.file.limit_error(f"it is larger than {MAX_HEADER_BYTES >> 20} MiB")
        raise self.file.header_error("the file ends within the header")

    def _fill_window(self, size_bytes: int) -> None:
        self.require_bytes(size_bytes)
        self._start, self._at = self.position, 0
        wanted = min(max(size_bytes, _WINDOW_BYTES), self._end - self._start)
        self._window = self.file.read_at(self._start, wanted)
        if len(self._window) < size_bytes:
            raise self.file.header_error("the file was truncated during the read")

    def _skip_array(self, depth: int) -> None:
        kind, count = self.read_u32(), self.read_count()
        if not count:
            return
        if kind in _FORMAT_CODES:
            self.skip(count * self._structs[kind].size)
        elif kind == _STRING:
            self.require_bytes(count * self._length.size)
            self._count_items(count)
            self._skip_strings(count)
        elif kind == _ARRAY:
            if depth == MAX_DEPTH:
                raise self.file.limit_error("an array is nested too deeply")
            self.require_bytes(count * (_U32_BYTES + self._length.size))
            # Skipping an array takes as long as skipping eight strings.
            self._count_items(8 * count)
            for _ in range(count):
                self._skip_array(depth + 1)
        else:
            raise self.file.header_error(f"an array has the unknown type {kind}")

    def _count_items(self, items: int) -> None:
        self._items_left -= items
        if self._items_left < 0:
            raise self.file.limit_error(f"its arrays contain more than {MAX_ITEMS:,} strings")

    def _skip_strings(self, count: int) -> None:
        # A vocabulary has many strings. A loop with a method call for each string takes five times
        # as long as this one.
        unpack, width = self._length.unpack_from, self._length.size
        while count:
            if len(self._window) - self._at < width:
                self._fill_window(width)
            window, at, last = self._window, self._at, len(self._window) - width
            while count and at <= last:
                at += width + unpack(window, at)[0]
                count -= 1
            self._at = at
            self.require_bytes(0)


def _structs(order: str) -> dict[int, struct.Struct]:
    """Return the struct of each number type in a byte order, "<" or ">"."""
    return {kind: struct.Struct(order + code) for kind, code in _FORMAT_CODES.items()}
