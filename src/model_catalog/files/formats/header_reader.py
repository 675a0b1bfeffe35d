"""Read the header of a model file of any known format, detected by its first bytes."""

from __future__ import annotations

from typing import Final

from model_catalog.errors import PlaceholderError, UnknownFormatError
from model_catalog.files.formats import (
    gguf,
    gguf_stream,
    pickle_format,
    safetensors,
    unread_formats,
)
from model_catalog.files.formats.header import Header
from model_catalog.files.safe_open import OpenFile, ProtectedFiles, StrPath, open_regular_file

__all__ = ["Header", "read_header", "refuse_placeholder"]

_MAGIC_BYTES: Final = unread_formats.HEAD_BYTES
_LENGTH_BYTES: Final = 8
_WHITESPACE: Final = b" \t\r\n"
"""The safetensors package accepts it before the object."""


def read_header(path: StrPath, *, protected: ProtectedFiles = ()) -> Header:
    """
    Read the header of a GGUF file, a safetensors file or a file of pickled weights.

    The first bytes decide the format; the file name is not used. A pickle is only detected, never
    loaded. Raises BadHeaderError for a damaged or hostile header. Its subclass HeaderLimitError is
    raised for a header that exceeds a limit of this package, PlaceholderError for a pointer of Git
    LFS or a web page, and UnknownFormatError for a file of another format and for an empty file.
    Also raises NotAFileError, ProtectedFileError, and OSError as the system reports it.
    """
    with open_regular_file(path, protected) as file:
        head = file.read_at(0, _MAGIC_BYTES)
        if head.startswith(gguf_stream.MAGIC):
            return gguf.read_gguf(file)
        if _is_safetensors(head):
            return safetensors.read_safetensors(file)
        if pickle_format.is_pickle(head):
            return Header(format=pickle_format.PICKLE, unsafe=True)
        if (
            head.startswith(pickle_format.ZIP_MAGIC)
            and (header := pickle_format.read_pickle_zip(file)) is not None
        ):
            return header
        _raise_placeholder(file, head)
    format_ = unread_formats.format_of_bytes(head) or unread_formats.format_of_name(file.path)
    raise UnknownFormatError(
        file.path,
        "it is not a GGUF, safetensors or pickle file" if head else "the file is empty",
        format_ if head else None,
    )


def refuse_placeholder(path: StrPath, *, protected: ProtectedFiles = ()) -> None:
    """
    Raise PlaceholderError if a file holds a pointer of Git LFS, or a web page.

    Also raises NotAFileError, ProtectedFileError, and OSError as the system reports it.
    """
    with open_regular_file(path, protected) as file:
        _raise_placeholder(file, file.read_at(0, _MAGIC_BYTES))


def _raise_placeholder(file: OpenFile, head: bytes) -> None:
    if unread_formats.is_web_page(head):
        raise PlaceholderError(file.path, "it is a web page, not the file: download it again")
    if file.size_bytes > unread_formats.MAX_POINTER_BYTES:
        return
    content = file.read_at(0, unread_formats.MAX_POINTER_BYTES)
    if (pointer := unread_formats.parse_lfs_pointer(content)) is not None:
        raise PlaceholderError(
            file.path,
            f"it is a Git LFS pointer: the file has {pointer.size_bytes} bytes and "
            f"{pointer.digest}; fetch it with git lfs pull",
            pointer.size_bytes,
            pointer.digest,
        )


def _is_safetensors(head: bytes) -> bool:
    text = head[_LENGTH_BYTES:]
    if not text.lstrip(_WHITESPACE).startswith(b"{"):
        return False
    if text.startswith(b"{") and not pickle_format.is_pickle(head):
        return True
    # A safetensors file whose header length is 640 starts with the same two bytes as a pickle.
    # The other bytes of the length decide: in a pickle they stand for a larger number than any
    # header length that is allowed.
    return safetensors.header_size_bytes(head) <= safetensors.MAX_HEADER_BYTES
