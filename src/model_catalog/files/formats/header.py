"""What a file's header claims of its model, where it is of a kind that could be true."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeGuard

MAX_TEXT_LENGTH: Final = 128
"""Characters in a text that is believed to be a name."""
MAX_CONTEXT_LENGTH: Final = 2**31 - 1
"""Tokens; more than that is how tokenizers write "no limit"."""
MAX_PARAMETERS: Final = 2**53
"""Beyond it a count of tensors' elements is nobody's, and multiplies out of every integer."""
MAX_SHARDS: Final = 99_999
"""As many as five digits of a file's name count."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """
    What the header of a file, or of several that are one model, claims; None where it says nothing.

    None of it is verified but `is_complete`: whether the file is at least as long as its tensors
    say, in all `expected_size_bytes`; None where the header does not tell. `shard_index` counts
    from 1, as the names of shards do. `unsafe` is set where loading the file runs code.
    """

    format: str
    architecture: str | None = None
    quantization: str | None = None
    context_length: int | None = None
    parameter_count: int | None = None
    license: str | None = None
    name: str | None = None
    shard_index: int | None = None
    shard_count: int | None = None
    expected_size_bytes: int | None = None
    is_complete: bool | None = None
    unsafe: bool = False


def printable_text(value: object) -> str | None:
    """
    A short text that can be printed, from a str or from UTF-8; None for anything else.

    A header is a stranger's: what moves a terminal's cursor, or turns a line around, is no name.
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
    """A number of tokens, or None for what cannot be one."""
    return value if _is_integer(value) and 0 < value <= MAX_CONTEXT_LENGTH else None


def valid_shard(index: object, count: object) -> tuple[int, int] | tuple[None, None]:
    """Which of how many, from 1, told by an index from 0; (None, None) for what cannot be."""
    if _is_integer(index) and _is_integer(count) and 0 <= index < count <= MAX_SHARDS:
        return index + 1, count
    return None, None


def _is_integer(value: object) -> TypeGuard[int]:
    # A bool is an int to Python; in a header it is a yes or a no.
    return type(value) is int
