"""How pickled weights are told by their bytes: they are never loaded, for loading runs code."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from model_catalog.files.formats.header import Header
from model_catalog.files.safe_open import OpenFile

ZIP_MAGIC: Final = b"PK\x03\x04"
MAX_DIRECTORY_BYTES: Final = 16 * 1024 * 1024

_LOCAL_HEADER: Final = struct.Struct("<26xHH")
_CENTRAL_ENTRY: Final = struct.Struct("<4s24xHHH12x")
_END_OF_DIRECTORY: Final = struct.Struct("<4s8xII2x")
_ZIP64_LOCATOR: Final = struct.Struct("<4s4xQ4x")
_ZIP64_END: Final = struct.Struct("<4s36xQQ")
_MAX_COMMENT_BYTES: Final = 65_535
_ZIP64_MARKER: Final = 0xFFFF_FFFF


def is_pickle(head: bytes) -> bool:
    """Whether these are the first bytes of a pickle of protocol 2 to 5; 0 and 1 have no sign."""
    return head[:1] == b"\x80" and head[1:2] in {b"\x02", b"\x03", b"\x04", b"\x05"}


def read_pickle_zip(file: OpenFile) -> Header | None:
    """
    A pickle in a zip, which is how PyTorch saves; None for a zip without one.

    One that was cut off is known by its first entry, which PyTorch makes the pickle. Raises
    BadHeaderError for one that cannot be searched.
    """
    first = _first_entry_name(file).endswith(b".pkl")
    directory = _read_directory(file)
    if directory is None:
        if first:
            return Header(format="pickle", is_complete=False, unsafe=True)
        raise file.header_error("a zip without a directory: it is cut off")
    if first or any(name.endswith(b".pkl") for name in _entry_names(file, directory)):
        return Header(format="pickle", is_complete=True, unsafe=True)
    return None


def _first_entry_name(file: OpenFile) -> bytes:
    head = file.read_at(0, _LOCAL_HEADER.size)
    if len(head) < _LOCAL_HEADER.size:
        return b""
    length, _ = _LOCAL_HEADER.unpack(head)
    return file.read_at(_LOCAL_HEADER.size, length)


def _read_directory(file: OpenFile) -> bytes | None:
    """The bytes of the list of entries, or None where there is none."""
    tail_start = max(0, file.size_bytes - _END_OF_DIRECTORY.size - _MAX_COMMENT_BYTES)
    tail = file.read_at(tail_start, file.size_bytes - tail_start)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + _END_OF_DIRECTORY.size > len(tail):
        return None
    _, size_bytes, offset = _END_OF_DIRECTORY.unpack_from(tail, at)
    if _ZIP64_MARKER in {size_bytes, offset}:
        locator = file.read_at(max(0, tail_start + at - _ZIP64_LOCATOR.size), _ZIP64_LOCATOR.size)
        if len(locator) < _ZIP64_LOCATOR.size or locator[:4] != b"PK\x06\x07":
            return None
        record = file.read_at(
            min(_ZIP64_LOCATOR.unpack(locator)[1], file.size_bytes), _ZIP64_END.size
        )
        if len(record) < _ZIP64_END.size or record[:4] != b"PK\x06\x06":
            return None
        _, size_bytes, offset = _ZIP64_END.unpack(record)
    if size_bytes > MAX_DIRECTORY_BYTES or offset + size_bytes > file.size_bytes:
        raise file.header_error("a zip with a directory that is too long")
    return file.read_at(offset, size_bytes)


def _entry_names(file: OpenFile, directory: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(directory):
        if at + _CENTRAL_ENTRY.size > len(directory):
            raise file.header_error("a zip with a directory that is damaged")
        signature, name, extra, comment = _CENTRAL_ENTRY.unpack_from(directory, at)
        if signature != b"PK\x01\x02":
            raise file.header_error("a zip with a directory that is damaged")
        at += _CENTRAL_ENTRY.size
        yield directory[at : at + name]
        at += name + extra + comment
