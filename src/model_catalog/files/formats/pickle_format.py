"""How pickled weights are told by their bytes: they are never loaded, for loading runs code."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from model_catalog.files.formats.header import Header
from model_catalog.files.safe_open import OpenFile

ZIP: Final = b"PK\x03\x04"
MAX_DIRECTORY_BYTES: Final = 16 * 1024 * 1024

_LOCAL: Final = struct.Struct("<26xHH")
_ENTRY: Final = struct.Struct("<4s24xHHH12x")
_END: Final = struct.Struct("<4s8xII2x")
_LOCATOR: Final = struct.Struct("<4s4xQ4x")
_END_64: Final = struct.Struct("<4s36xQQ")
_MAX_COMMENT: Final = 65_535
_IN_64: Final = 0xFFFF_FFFF


def is_pickle(head: bytes) -> bool:
    """Whether these are the first bytes of a pickle of protocol 2 to 5; 0 and 1 have no sign."""
    return head[:1] == b"\x80" and head[1:2] in {b"\x02", b"\x03", b"\x04", b"\x05"}


def read_zip(file: OpenFile) -> Header | None:
    """
    A pickle in a zip, which is how PyTorch saves; None for a zip without one.

    One that was cut off is known by its first entry, which PyTorch makes the pickle. Raises
    BadHeaderError for one that cannot be searched.
    """
    first = _first_name(file).endswith(b".pkl")
    directory = _directory(file)
    if directory is None:
        if first:
            return Header(format="pickle", is_complete=False, unsafe=True)
        raise file.refuse("a zip without a directory: it is cut off")
    if first or any(name.endswith(b".pkl") for name in _names(file, directory)):
        return Header(format="pickle", is_complete=True, unsafe=True)
    return None


def _first_name(file: OpenFile) -> bytes:
    head = file.read_at(0, _LOCAL.size)
    if len(head) < _LOCAL.size:
        return b""
    length, _ = _LOCAL.unpack(head)
    return file.read_at(_LOCAL.size, length)


def _directory(file: OpenFile) -> bytes | None:
    """The bytes of the list of entries, or None where there is none."""
    tail_start = max(0, file.size_bytes - _END.size - _MAX_COMMENT)
    tail = file.read_at(tail_start, file.size_bytes - tail_start)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + _END.size > len(tail):
        return None
    _, size_bytes, offset = _END.unpack_from(tail, at)
    if _IN_64 in {size_bytes, offset}:
        locator = file.read_at(max(0, tail_start + at - _LOCATOR.size), _LOCATOR.size)
        if len(locator) < _LOCATOR.size or locator[:4] != b"PK\x06\x07":
            return None
        record = file.read_at(min(_LOCATOR.unpack(locator)[1], file.size_bytes), _END_64.size)
        if len(record) < _END_64.size or record[:4] != b"PK\x06\x06":
            return None
        _, size_bytes, offset = _END_64.unpack(record)
    if size_bytes > MAX_DIRECTORY_BYTES or offset + size_bytes > file.size_bytes:
        raise file.refuse("a zip with a directory that is too long")
    return file.read_at(offset, size_bytes)


def _names(file: OpenFile, directory: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(directory):
        if at + _ENTRY.size > len(directory):
            raise file.refuse("a zip with a directory that is damaged")
        signature, name, extra, comment = _ENTRY.unpack_from(directory, at)
        if signature != b"PK\x01\x02":
            raise file.refuse("a zip with a directory that is damaged")
        at += _ENTRY.size
        yield directory[at : at + name]
        at += name + extra + comment
