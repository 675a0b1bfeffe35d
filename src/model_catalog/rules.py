"""What a value must be before a database sees it: the two disagree on most of this."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from model_catalog.errors import InvalidModelError

MAX_REFERENCE: Final = 512
"""Characters in a reference."""
MAX_NAME: Final = 128
"""Characters in a provider or a version."""
MAX_NAME_BYTES: Final = 256
"""Bytes in a provider or a version: PostgreSQL's index has 2704 for the key, a reference 2048."""
MAX_PATH_BYTES: Final = 4096
"""Bytes in a path: Linux's PATH_MAX."""
MAX_SIZE: Final = 2**63 - 1
"""Bytes in a model: the largest integer both databases hold."""


def key_text(field: str, value: object, limit: int) -> str:
    """A part of a key that is about to be stored."""
    text = lookup_text(field, value)
    if len(text) > limit:
        raise InvalidModelError(
            field, value, f"is {len(text)} characters long: at most {limit} fit"
        )
    if limit == MAX_NAME and (size := len(text.encode())) > MAX_NAME_BYTES:
        raise InvalidModelError(field, value, f"is {size} bytes long: at most {MAX_NAME_BYTES} fit")
    for character in text:
        if unicodedata.category(character) == "Cc":
            raise InvalidModelError(
                field, value, f"has the control character {character!r} in it: leave it out"
            )
    return text


def named(field: str, value: object, limit: int) -> str:
    """A part of a key that may not be blank."""
    text = key_text(field, value, limit)
    if not text.strip():
        raise InvalidModelError(field, value, "is blank: give it a name")
    return text


def lookup_text(field: str, value: object) -> str:
    """A text to look for. It may be one that would not be stored: an older catalog may hold it."""
    if not isinstance(value, str):
        raise InvalidModelError(field, value, f"is a {type(value).__name__}: give a str")
    if "\0" in value:
        raise InvalidModelError(field, value, "has a NUL in it, which no database keeps")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidModelError(
            field, value, "has a lone surrogate in it, which is not text: decode it first"
        ) from error
    return value


def path(field: str, value: object) -> str:
    """
    A path, as the operating system takes it: never normalised, not looked up.

    Bytes that are not UTF-8 arrive as the surrogates `os.fsdecode` makes of them.
    """
    if not isinstance(value, str | bytes | os.PathLike):
        raise InvalidModelError(
            field, value, f"is a {type(value).__name__}: give a str or a pathlib.Path"
        )
    raw: str | bytes = os.fspath(value)
    if isinstance(raw, bytes):
        raw = raw.decode("utf-8", "surrogateescape")
    if not raw:
        raise InvalidModelError(field, value, "is empty: give the path of the model")
    if "\0" in raw:
        raise InvalidModelError(field, value, "has a NUL in it, which no file name has")
    try:
        size = len(raw.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError as error:
        raise InvalidModelError(
            field, value, "has a surrogate in it that stands for no byte: use os.fsdecode"
        ) from error
    if size > MAX_PATH_BYTES:
        raise InvalidModelError(field, value, f"is {size} bytes long: at most {MAX_PATH_BYTES} fit")
    return raw


def size_bytes(field: str, value: object) -> int | None:
    """A number of bytes, or None where it is not known."""
    if value is None:
        return None
    # A bool is an int to Python and a size to nobody; a float has lost bytes.
    index = getattr(type(value), "__index__", None)
    if isinstance(value, bool) or index is None:
        raise InvalidModelError(
            field, value, f"is a {type(value).__name__}: give whole bytes as an int"
        )
    number = int(index(value))
    if not 0 <= number <= MAX_SIZE:
        raise InvalidModelError(field, value, "is out of range: give 0 to 2**63 - 1 bytes")
    return number


def moment(field: str, value: object) -> datetime | None:
    """A point in time, in UTC, cut to the whole second the database keeps."""
    if value is None:
        return None
    if not isinstance(value, datetime):
        raise InvalidModelError(field, value, f"is a {type(value).__name__}: give a datetime")
    if value.utcoffset() is None:
        raise InvalidModelError(
            field, value, "has no time zone: give one, as in datetime.now(timezone.utc)"
        )
    try:
        return value.astimezone(UTC).replace(microsecond=0)
    except OverflowError as error:
        raise InvalidModelError(field, value, "lies outside the years 1 to 9999 in UTC") from error


_RULES: Mapping[str, Callable[[str, object], Any]] = {
    "reference": lambda field, value: named(field, value, MAX_REFERENCE),
    "provider": lambda field, value: named(field, value, MAX_NAME),
    "version": lambda field, value: key_text(field, value, MAX_NAME),
    "local_path": path,
    "size_bytes": size_bytes,
    "downloaded_at": moment,
}
_REQUIRED = ("reference", "provider", "local_path")


def checked(values: Mapping[str, object]) -> dict[str, Any]:
    """
    The values that may be written, each checked; the names this package does not know are left out.

    Raises InvalidModelError for the first that may not be, or that is missing.
    """
    for field in _REQUIRED:
        if field not in values:
            raise InvalidModelError(field, None, "is missing: every model has one")
    return {field: rule(field, values[field]) for field, rule in _RULES.items() if field in values}
