"""What a file says of its model, whatever its format; its name is not asked."""

from __future__ import annotations

from typing import Final

from model_catalog.errors import UnknownFormatError
from model_catalog.files.formats import gguf, gguf_stream, pickle_format, safetensors
from model_catalog.files.formats.header import Header
from model_catalog.files.safe_open import ProtectedFiles, StrPath, open_regular_file

__all__ = ["Header", "read_header"]

_MAGIC_BYTES: Final = 9


def read_header(path: StrPath, *, protected: ProtectedFiles = ()) -> Header:
    """
    The header of a GGUF file, a safetensors file or pickled weights, by the first bytes.

    Of a pickle nothing is read but that it is one. Raises BadHeaderError for what is broken or
    hostile, and its subclass UnknownFormatError for what begins like none of the three, an empty
    file among it; NotAFileError, ProtectedFileError, and OSError as the system gave it.
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
            and (found := pickle_format.read_pickle_zip(file)) is not None
        ):
            return found
    raise UnknownFormatError(
        file.path, "it begins like no GGUF, no safetensors and no pickle" if head else "it is empty"
    )


def _is_safetensors(head: bytes) -> bool:
    if not head.endswith(b"{") or len(head) < _MAGIC_BYTES:
        return False
    # A header of 640 bytes begins like a pickle. Which it is the other bytes of the length tell:
    # nothing that a pickle has there is as small.
    return (
        not pickle_format.is_pickle(head)
        or safetensors.header_size_bytes(head) <= safetensors.MAX_HEADER_BYTES
    )
