"""Read the header of a model file of any known format, detected by its first bytes."""

from __future__ import annotations

from typing import Final

from model_catalog.errors import UnknownFormatError
from model_catalog.files.formats import gguf, gguf_stream, pickle_format, safetensors
from model_catalog.files.formats.header import Header
from model_catalog.files.safe_open import ProtectedFiles, StrPath, open_regular_file

__all__ = ["Header", "read_header"]

_MAGIC_BYTES: Final = 64
_LENGTH_BYTES: Final = 8
_WHITESPACE: Final = b" \t\r\n"
"""The safetensors package accepts it before the object."""


def read_header(path: StrPath, *, protected: ProtectedFiles = ()) -> Header:
    """
    Read the header of a GGUF file, a safetensors file or a file of pickled weights.

    The first bytes decide the format; the file name is not used. A pickle is only detected, never
    loaded. Raises BadHeaderError for a damaged or hostile header. Its subclass HeaderLimitError is
    raised for a header that exceeds a limit of this package, and UnknownFormatError for a file of
    another format and for an empty file. Also raises NotAFileError,
    ProtectedFileError, and OSError as the system reports it.
    """
    with open_regular_file(path, protected) as file:
        head = file.read_at(0, _MAGIC_BYTES)
        if head.startswith(gguf_stream.MAGIC):
            return gguf.read_gguf(file)
        if _is_safetensors(head):
            return safetensors.read_safetensors(file)
        if pickle_format.is_pickle(head):
            return Header(format="pickle", unsafe=True)
        if (
            head.startswith(pickle_format.ZIP_MAGIC)
            and (header := pickle_format.read_pickle_zip(file)) is not None
        ):
            return header
    raise UnknownFormatError(
        file.path,
        "it is not a GGUF, safetensors or pickle file" if head else "the file is empty",
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
