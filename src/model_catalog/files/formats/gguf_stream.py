"""The values of a GGUF header one after another, at a bounded cost of memory and of time."""

from __future__ import annotations

import struct
from typing import Final, TypeAlias

from model_catalog.files.safe_open import OpenFile

MAGIC: Final = b"GGUF"

MAX_HEADER_BYTES: Final = 128 * 1024 * 1024
MAX_NAME_BYTES: Final = 65_535
MAX_ITEMS: Final = 4_000_000
"""Strings in all arrays together; the largest vocabularies have 300,000, and as many merges."""
MAX_DEPTH: Final = 2
"""Arrays in an array; nobody writes any."""

Value: TypeAlias = bytes | int | float | None

_WINDOW_BYTES: Final = 256 * 1024
_U32: Final = 4
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
    The bytes of a header from first to last; those that nobody wants are never read.

    What is wrong with them is raised as BadHeaderError.
    """

    def __init__(self, file: OpenFile) -> None:
        """Read the version, and by it how wide a length is and in which order its bytes come."""
        self.file = file
        self._end = min(file.size_bytes, MAX_HEADER_BYTES)
        self._window = b""
        self._start = 0
        self._at = 0
        self._items_left = MAX_ITEMS
        self._forms = _structs("<")
        self.skip(len(MAGIC))
        version = self.u32()
        # Nobody has written version 65536: these are the bytes of a small number turned round.
        if version & 0xFFFF == 0:
            self._forms = _structs(">")
            self.skip(-4)
            version = self.u32()
        if version not in {1, 2, 3}:
            raise file.header_error(f"it is of GGUF version {version}, and 1 to 3 are known")
        self._length = self._forms[_U32 if version == 1 else _U64]

    @property
    def position(self) -> int:
        """How many bytes lie before the next."""
        return self._start + self._at

    def u32(self) -> int:
        return int(self._number(self._forms[_U32]))

    def u64(self) -> int:
        return int(self._number(self._forms[_U64]))

    def length(self) -> int:
        """How many of something follow: 32 bits in version 1, 64 in the others."""
        return int(self._number(self._length))

    def name(self) -> bytes:
        size_bytes = self.length()
        if size_bytes > MAX_NAME_BYTES:
            raise self.file.header_error(f"a name in it is {size_bytes} bytes long")
        return self._bytes(size_bytes)

    def value(self, kept_bytes: int) -> Value:
        """The value that follows; None for an array, and for a text longer than `kept_bytes`."""
        kind = self.u32()
        if kind == _ARRAY:
            self._skip_array(0)
        elif kind == _STRING:
            size_bytes = self.length()
            if size_bytes <= kept_bytes:
                return self._bytes(size_bytes)
            self.skip(size_bytes)
        elif kind in _FORMAT_CODES:
            return self._number(self._forms[kind])
        else:
            raise self.file.header_error(f"a value in it is of the type {kind}, which is not known")
        return None

    def skip(self, size_bytes: int) -> None:
        self._require(size_bytes)
        self._at += size_bytes

    def _bytes(self, size_bytes: int) -> bytes:
        if len(self._window) - self._at < size_bytes:
            self._fill(size_bytes)
        self._at += size_bytes
        return self._window[self._at - size_bytes : self._at]

    def _number(self, form: struct.Struct) -> int | float:
        if len(self._window) - self._at < form.size:
            self._fill(form.size)
        value: int | float = form.unpack_from(self._window, self._at)[0]
        self._at += form.size
        return value

    def _require(self, size_bytes: int) -> None:
        if self.position + size_bytes <= self._end:
            return
        if self._end < self.file.size_bytes:
            raise self.file.header_error(f"it is longer than {MAX_HEADER_BYTES >> 20} MiB")
        raise self.file.header_error("the file ends in the middle of it")

    def _fill(self, size_bytes: int) -> None:
        self._require(size_bytes)
        self._start, self._at = self.position, 0
        wanted = min(max(size_bytes, _WINDOW_BYTES), self._end - self._start)
        self._window = self.file.read_at(self._start, wanted)
        if len(self._window) < size_bytes:
            raise self.file.header_error("the file was cut short while it was read")

    def _skip_array(self, depth: int) -> None:
        kind, count = self.u32(), self.length()
        if kind in _FORMAT_CODES:
            self.skip(count * self._forms[kind].size)
        elif kind == _STRING:
            self._spend(count)
            self._require(count * self._length.size)
            self._skip_strings(count)
        elif kind == _ARRAY and depth < MAX_DEPTH:
            # An array takes as long as several strings do.
            self._spend(8 * count)
            for _ in range(count):
                self._skip_array(depth + 1)
        else:
            raise self.file.header_error(f"an array in it is of the type {kind}, or lies too deep")

    def _spend(self, items: int) -> None:
        self._items_left -= items
        if self._items_left < 0:
            raise self.file.header_error(f"it lists more than {MAX_ITEMS:,} texts")

    def _skip_strings(self, count: int) -> None:
        # The loop that a vocabulary makes long: with a call for each string it takes five times
        # as long.
        unpack, width = self._length.unpack_from, self._length.size
        while count:
            if len(self._window) - self._at < width:
                self._fill(width)
            window, at, last = self._window, self._at, len(self._window) - width
            while count and at <= last:
                at += width + unpack(window, at)[0]
                count -= 1
            self._at = at
            self._require(0)


def _structs(order: str) -> dict[int, struct.Struct]:
    return {kind: struct.Struct(order + code) for kind, code in _FORMAT_CODES.items()}
