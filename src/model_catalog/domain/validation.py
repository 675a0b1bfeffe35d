"""
Validators: each checks one value before it reaches a database and returns the value to store.

SQLite and PostgreSQL accept different texts, numbers and times. The validators accept only values
that both databases store and return unchanged. Each raises InvalidModelError for any other value.
"""

from __future__ import annotations

import operator
import os
import re
import time
import unicodedata
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias, cast

from model_catalog.domain.file_record import FileState
from model_catalog.errors import InvalidModelError
from model_catalog.files.model_kind import KINDS

MAX_NAME: Final = 128
"""Maximum length of a provider, an alias, a tag or another short text, in characters."""
MAX_PATH_BYTES: Final = 4096
"""Maximum length of a path, in bytes: PATH_MAX of Linux."""
MAX_SIZE: Final = 2**63 - 1
"""The largest integer that both databases store."""
MAX_URL: Final = 2048
"""Maximum length of a URL, in characters."""
MAX_DESCRIPTION_BYTES: Final = 64 * 1024
MAX_REASON_BYTES: Final = 1024
MAX_DETAIL_BYTES: Final = 4096
"""Maximum length of a text that explains the result of a check, in bytes."""
MAX_SEARCH: Final = 1000
"""Maximum length of a text to search for, in characters. The search time grows with the length."""
MAX_WANTED: Final = 1000
"""Maximum number of tags in a filter. The number of parameters of a statement is limited."""
MAX_TAGS: Final = 10_000
"""Maximum number of tags of a model: an export has them in one line."""
MAX_COUNT: Final = 2**31 - 1
"""Maximum number of uses that one call records."""

VERDICTS: Final = ("valid", "refused")
"""The possible results of a signature check."""

Validator: TypeAlias = Callable[[str, object], Any]
"""Takes the name of a field and a value. Returns the value to store or raises InvalidModelError."""


# Matches nearly all texts: printable ASCII that does not begin with a space. Such a text passes
# every check below, and one match takes a fraction of the time of the separate checks.
is_ordinary: Final = re.compile("[!-~][ -~]*").fullmatch


def key_text(field: str, value: object, limit: int) -> str:
    """Validate a short text without control characters, of at most `limit` characters."""
    text = lookup_text(field, value)
    if len(text) > limit:
        raise InvalidModelError(
            field, value, f"is {len(text)} characters long: at most {limit} are allowed"
        )
    # Control characters are not printable, so a printable text needs no look at each character.
    for character in "" if text.isprintable() else text:
        if unicodedata.category(character) == "Cc":
            raise InvalidModelError(
                field, value, f"must not contain the control character {character!r}"
            )
    return text


def non_blank_text(field: str, value: object, limit: int) -> str:
    """Validate a short text that is not blank, of at most `limit` characters."""
    if type(value) is str and len(value) <= limit and is_ordinary(value):
        return value
    text = key_text(field, value, limit)
    if not text.strip():
        raise InvalidModelError(field, value, "must not be blank")
    return text


def _is_storable_ascii(text: str) -> bool:
    """Whether a text is ASCII without NUL, as nearly all texts are."""
    return text.isascii() and "\0" not in text


def lookup_text(field: str, value: object) -> str:
    """Validate a text to look for. It may break rules that an older catalog did not have."""
    if type(value) is str and _is_storable_ascii(value):
        return value
    if not isinstance(value, str):
        raise InvalidModelError(field, value, f"is a {type(value).__name__}: give a str")
    # A subclass may override __str__ and encode(), and each driver calls another of them.
    text = str.__str__(value)
    if "\0" in text:
        raise InvalidModelError(
            field, value, "must not contain a NUL character, which no database stores"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidModelError(
            field, value, "must not contain a lone surrogate, which is not text: decode it first"
        ) from error
    return text


def path(field: str, value: object) -> str:
    """
    Validate a path and return it as the str of `os.fsdecode`. The file need not exist.

    Bytes that are not UTF-8 are surrogates in that str.
    """
    if type(value) is str and 0 < len(value) <= MAX_PATH_BYTES and _is_storable_ascii(value):
        return value
    if not isinstance(value, str | bytes | os.PathLike):
        raise InvalidModelError(
            field, value, f"is a {type(value).__name__}: give a str or a pathlib.Path"
        )
    try:
        raw: str | bytes = os.fspath(value)
    except TypeError as error:
        raise InvalidModelError(
            field, value, "is not a path: give a str or a pathlib.Path"
        ) from error
    text = raw.decode("utf-8", "surrogateescape") if isinstance(raw, bytes) else str.__str__(raw)
    if not text:
        raise InvalidModelError(field, value, "is empty: give the path of the model")
    size = _path_bytes(field, text, value)
    if size > MAX_PATH_BYTES:
        raise InvalidModelError(
            field, value, f"is {size} bytes long: at most {MAX_PATH_BYTES} are allowed"
        )
    return text


def optional_path(field: str, value: object) -> str | None:
    """Validate a path or None."""
    return None if value is None else path(field, value)


def stored_path(field: str, value: object) -> str:
    """Validate a path of an import. An older release may have recorded it under other rules."""
    if not isinstance(value, str):
        raise InvalidModelError(field, value, f"is a {type(value).__name__}: give a str")
    _path_bytes(field, value, value)
    return value


def _path_bytes(field: str, text: str, value: object) -> int:
    """Return the length of a path in bytes."""
    if "\0" in text:
        raise InvalidModelError(
            field, value, "must not contain a NUL character, which no file name contains"
        )
    try:
        return len(text.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError as error:
        raise InvalidModelError(
            field, value, "contains a surrogate that stands for no byte: use os.fsdecode"
        ) from error


def non_negative_int(field: str, value: object) -> int | None:
    """Validate a size, a count or a length from 0 to 2**63 - 1, or None if it is not known."""
    if value is None or (type(value) is int and 0 <= value <= MAX_SIZE):
        return value
    try:
        # A bool is an int in Python but not a size, and a float may have lost precision.
        number = None if isinstance(value, bool) else int(operator.index(cast("Any", value)))
    except TypeError:
        number = None
    if number is None:
        raise InvalidModelError(
            field, value, f"is a {type(value).__name__}: give a whole number as an int"
        )
    if not 0 <= number <= MAX_SIZE:
        raise InvalidModelError(field, value, "is out of range: give 0 to 2**63 - 1")
    return number


def row_id(field: str, value: object) -> int:
    """Validate the id of a model, from 0 to 2**63 - 1."""
    number = non_negative_int(field, value)
    if number is None:
        raise InvalidModelError(field, None, "is missing: give the id of a model as an int")
    return number


def row_ids(field: str, values: object) -> list[int]:
    """Validate the ids of models; equal ids are listed once, in ascending order."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InvalidModelError(field, values, "is not a list of ids: give a list of int")
    return sorted({row_id(field, value) for value in values})


def timestamp(field: str, value: object) -> datetime | None:
    """Validate a datetime with a time zone or None; return it in UTC, cut to whole seconds."""
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
        raise InvalidModelError(
            field, value, "is outside the years 1 to 9999 in UTC: give a time within them"
        ) from error


def utc_now() -> datetime:
    """Return the current time in UTC, in whole seconds."""
    return datetime.fromtimestamp(int(time.time()), UTC)


def short_text(field: str, value: object) -> str | None:
    """Validate a short text that describes a model, or None if it is not known."""
    return None if value is None else non_blank_text(field, value, MAX_NAME)


def url(field: str, value: object) -> str | None:
    """Validate a URL or None. It may be any text that is not blank; the catalog never opens it."""
    return None if value is None else non_blank_text(field, value, MAX_URL)


def long_text(field: str, value: object, limit: int) -> str | None:
    """Validate a text of at most `limit` bytes in UTF-8, or None. Line breaks are allowed."""
    if value is None:
        return None
    text = lookup_text(field, value)
    size = len(text.encode())
    if size > limit:
        raise InvalidModelError(
            field, value, f"is {size} bytes long in UTF-8: at most {limit} are allowed"
        )
    return text


def description(field: str, value: object) -> str | None:
    """Validate the user's description of a model, or None."""
    return long_text(field, value, MAX_DESCRIPTION_BYTES)


def detail(field: str, value: object) -> str | None:
    """Validate a text that explains the result of a check, or None."""
    return long_text(field, value, MAX_DETAIL_BYTES)


def reason(field: str, value: object) -> str | None:
    """Validate the user's reason for a pin, or None."""
    return long_text(field, value, MAX_REASON_BYTES)


def tags(field: str, values: object) -> list[str]:
    """Validate tags, each a text of at most 128 characters that is not blank."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InvalidModelError(field, values, "is not a list of tags: give a list of str")
    return [non_blank_text(field, value, MAX_NAME) for value in values]


def filter_tags(field: str, values: object) -> list[str]:
    """Validate the tags of a filter."""
    found = tags(field, values)
    if len(found) > MAX_WANTED:
        raise InvalidModelError(
            field, values, f"has {len(found)} tags: a filter takes at most {MAX_WANTED}"
        )
    return found


def search(field: str, value: object) -> str:
    """Validate a text to search for. It is matched literally, without wildcards."""
    text = lookup_text(field, value)
    if len(text) > MAX_SEARCH:
        raise InvalidModelError(
            field, value, f"is {len(text)} characters long: search for at most {MAX_SEARCH}"
        )
    return text


def digest(field: str, value: object) -> str | None:
    """Validate a SHA-256 or None; return it as `sha256:` and 64 lower-case digits."""
    if value is None:
        return None
    # It also reads files, which most processes do not.
    from model_catalog.files.digest import normalize_digest  # noqa: PLC0415

    text = lookup_text(field, value)
    try:
        return normalize_digest(text)
    except InvalidModelError as error:
        raise InvalidModelError(field, value, error.reason) from None


def state(field: str, value: object) -> FileState:
    """Validate the state of a model's files."""
    try:
        return FileState(lookup_text(field, value))
    except ValueError as error:
        raise InvalidModelError(
            field, value, f"is not a FileState: give one of {', '.join(FileState)}"
        ) from error


def kind(field: str, value: object) -> str | None:
    """Validate the kind of a model, such as `model` or `adapter`, or None if it is not known."""
    if value is None:
        return None
    text = lookup_text(field, value)
    if text not in KINDS:
        raise InvalidModelError(field, value, f"is not a kind: give one of {', '.join(KINDS)}")
    return text


def verdict(field: str, value: object) -> str | None:
    """Validate the result of a signature check: `valid`, `refused` or None."""
    if value not in (None, *VERDICTS):
        raise InvalidModelError(
            field, value, f"is not a verdict: give one of {', '.join(VERDICTS)}"
        )
    return None if value is None else str(value)


def seconds(field: str, value: object) -> float:
    """Validate a duration in seconds, 0 or more."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise InvalidModelError(field, value, "is not a duration: give seconds, 0 or more")
    return value


def limit(field: str, value: object) -> int | None:
    """Validate a maximum number of results; None means no limit."""
    return non_negative_int(field, value)


def count(field: str, value: object) -> int:
    """Validate a number of uses, from 1 to 2**31 - 1."""
    number = non_negative_int(field, value)
    if not number or number > MAX_COUNT:
        raise InvalidModelError(field, value, f"is out of range: give 1 to {MAX_COUNT:,}")
    return number
