"""The header of a model file as a value, and checks for the values that a header states."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, TypeGuard

from model_catalog.files.formats.tensors.packed_weights import TensorCounts

MAX_TEXT_LENGTH: Final = 128
"""The most characters in a text that is accepted from a header."""
MAX_CONTEXT_LENGTH: Final = 2**31 - 1
"""In tokens. Tokenizers write a larger number to say that there is no limit."""
MAX_PARAMETERS: Final = 2**53
"""More elements than any model has. A larger product could overflow the integers of other code."""
MAX_SHARDS: Final = 99_999
"""The most shards that the five digits in a file name can count."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """
    The values that the header of a file states, or the headers of all files of a model.

    None means that the header does not state a value. Only `is_complete` is verified: it says
    whether the size of the file is `expected_size_bytes`, the size that its tensors need. A GGUF
    file may be longer. It is None if the header does not tell. `shard_index` counts from 1, as the
    names of shards do. `unsafe` is True if loading the file runs code. `general_type` is the value
    of `general.type` in a GGUF file, for example `model`, `adapter`, `mmproj` or `imatrix`.
    `tensor_counts` is set for safetensors.
    """

    format: str
    architecture: str | None = None
    quantization: str | None = None
    context_length: int | None = None
    parameter_count: int | None = None
    license: str | None = None
    name: str | None = None
    general_type: str | None = None
    shard_index: int | None = None
    shard_count: int | None = None
    expected_size_bytes: int | None = None
    is_complete: bool | None = None
    unsafe: bool = False
    tensor_counts: TensorCounts | None = field(default=None, repr=False, compare=False)


def printable_text(value: object) -> str | None:
    """
    Return a short printable text from a str or from UTF-8 bytes. None for anything else.

    A header is untrusted input. Text that moves the cursor of a terminal, or that reverses the
    direction of writing, is not accepted.
    """
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            return None
    if not isinstance(value, str) or len(value) > MAX_TEXT_LENGTH or not value.isprintable():
        return None
    return value if value.strip() else None


def valid_context_length(value: object) -> int | None:
    """Return a context length in tokens, or None if the value cannot be one."""
    return value if _is_integer(value) and 0 < value <= MAX_CONTEXT_LENGTH else None


def valid_shard(index: object, count: object) -> tuple[int, int] | tuple[None, None]:
    """
    Return the shard number, counted from 1, and the number of shards.

    `index` counts from 0. The result is (None, None) if the values cannot be right.
    """
    if _is_integer(index) and _is_integer(count) and 0 <= index < count <= MAX_SHARDS:
        return index + 1, count
    return None, None


def _is_integer(value: object) -> TypeGuard[int]:
    # In Python a bool is an int. In a header it is a separate type.
    return type(value) is int
