"""Detect pickled weights by their bytes. They are never loaded, because loading runs code."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from model_catalog.files.formats.header import Header
from model_catalog.files.safe_open import OpenFile

PICKLE: Final = "pickle"
"""The name of the format."""
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
    """
    Return whether a file with these first bytes is a pickle of protocol 2 to 5.

    Protocols 0 and 1 have no magic bytes and are not detected.
    """
    return head[:1] == b"\x80" and head[1:2] in {b"\x02", b"\x03", b"\x04", b"\x05"}


def read_pickle_zip(file: OpenFile) -> Header | None:
    """
    Return the header of a zip file with a pickle in it, as PyTorch saves. None without a pickle.

    A truncated zip is detected by its first entry, which PyTorch writes as the pickle. Raises
    BadHeaderError if the directory of the zip cannot be read.
    """
    is_first_pickle = _first_entry_name(file).endswith(b".pkl")
    directory = _read_directory(file)
    if directory is None:
        if is_first_pickle:
            return Header(format=PICKLE, is_complete=False, unsafe=True)
        raise file.header_error("the zip file has no directory: it is truncated")
    if is_first_pickle or any(name.endswith(b".pkl") for name in _entry_names(file, directory)):
        return Header(format=PICKLE, is_complete=True, unsafe=True)
    return None


def _first_entry_name(file: OpenFile) -> bytes:
    head = file.read_at(0, _LOCAL_HEADER.size)
    if len(head) < _LOCAL_HEADER.size:
        return b""
    length, _ = _LOCAL_HEADER.unpack(head)
    return file.read_at(_LOCAL_HEADER.size, length)


def _read_directory(file: OpenFile) -> bytes | None:
    """Return the bytes of the central directory, or None if the zip file has none."""
    tail_start = max(0, file.size_bytes - _END_OF_DIRECTORY.size - _MAX_COMMENT_BYTES)
    tail = file.read_at(tail_start, file.size_bytes - tail_start)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + _END_OF_DIRECTORY.size > len(tail):
        return None
    _, size_bytes, offset = _END_OF_DIRECTORY.unpack_from(tail, at)
    if _ZIP64_MARKER in {size_bytes, offset}:
        locator_start = max(0, tail_start + at - _ZIP64_LOCATOR.size)
        locator = file.read_at(locator_start, _ZIP64_LOCATOR.size)
        if len(locator) < _ZIP64_LOCATOR.size or locator[:4] != b"PK\x06\x07":
            return None
        record_start = min(_ZIP64_LOCATOR.unpack(locator)[1], file.size_bytes)
        record = file.read_at(record_start, _ZIP64_END.size)
        if len(record) < _ZIP64_END.size or record[:4] != b"PK\x06\x06":
            return None
        _, size_bytes, offset = _ZIP64_END.unpack(record)
    if size_bytes > MAX_DIRECTORY_BYTES or offset + size_bytes > file.size_bytes:
        raise file.header_error("the directory of the zip file is too large")
    return file.read_at(offset, size_bytes)


def _entry_names(file: OpenFile, directory: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(directory):
        if at + _CENTRAL_ENTRY.size > len(directory):
            raise file.header_error("the directory of the zip file is damaged")
        signature, name, extra, comment = _CENTRAL_ENTRY.unpack_from(directory, at)
        if signature != b"PK\x01\x02":
            raise file.header_error("the directory of the zip file is damaged")
        at += _CENTRAL_ENTRY.size
        yield directory[at : at + name]
        at += name + extra + comment
