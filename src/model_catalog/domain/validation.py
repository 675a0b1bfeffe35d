"""What a value must be before a database sees it: the two disagree on most of this."""

from __future__ import annotations

import operator
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias, cast

from model_catalog.domain.file_record import ROLES, FileRecord, FileState
from model_catalog.errors import InvalidModelError
from model_catalog.files.digest import is_path_inside_model, normalize_digest
from model_catalog.files.fingerprint import Fingerprint

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


MAX_URL: Final = 2048
"""Characters in a URL."""
MAX_DESCRIPTION_BYTES: Final = 64 * 1024
MAX_REASON_BYTES: Final = 1024
MAX_DETAIL_BYTES: Final = 4096
"""Bytes in what a look at the disk has to say of a model."""
MAX_FILES: Final = 10_000
"""Files of one model."""
MAX_SEARCH: Final = 1000
"""Characters in a text to search for: to look for a very long one everywhere would take long."""
MAX_WANTED: Final = 1000
"""Tags that are asked for at once: a statement takes so many parameters and no more."""
MAX_COUNT: Final = 2**31 - 1
"""Uses that are recorded at once."""

VERDICTS: Final = ("valid", "refused")
"""What may come of looking at a signature."""

Validator: TypeAlias = Callable[[str, object], Any]
"""Checks the value of a field by its name, and returns it as it is to be written."""


# As nearly all texts are: not blank, and with nothing in them that a rule of all texts forbids. To
# look for that at once takes a fraction of looking for one thing after the other.
_is_ordinary: Final = re.compile("[!-~][ -~]*").fullmatch


def key_text(field: str, value: object, limit: int) -> str:
    """A short text that is about to be stored: no line breaks, nothing that steers a terminal."""
    text = lookup_text(field, value)
    if len(text) > limit:
        raise InvalidModelError(
            field, value, f"is {len(text)} characters long: at most {limit} fit"
        )
    # No control character is printable, and most texts are printable as a whole.
    for character in "" if text.isprintable() else text:
        if unicodedata.category(character) == "Cc":
            raise InvalidModelError(
                field, value, f"has the control character {character!r} in it: leave it out"
            )
    return text


def non_blank_text(field: str, value: object, limit: int) -> str:
    """A short text that may not be blank."""
    if type(value) is str and len(value) <= limit and _is_ordinary(value):
        return value
    text = key_text(field, value, limit)
    if not text.strip():
        raise InvalidModelError(field, value, "is blank: give it a name")
    return text


def provider(field: str, value: object) -> str:
    """Where a model is from; the colon ends it in `provider:reference`."""
    return _without(":", field, _in_an_index(field, non_blank_text(field, value, MAX_NAME)))


def version(field: str, value: object) -> str:
    """Which one of a reference, or `""`; the `@` begins it in `reference@version`."""
    return _without("@", field, _in_an_index(field, key_text(field, value, MAX_NAME)))


def alias(field: str, value: object) -> str:
    """A name that may stand where a version may."""
    return version(field, non_blank_text(field, value, MAX_NAME))


def _in_an_index(field: str, text: str) -> str:
    if (size := len(text.encode())) > MAX_NAME_BYTES:
        raise InvalidModelError(field, text, f"is {size} bytes long: at most {MAX_NAME_BYTES} fit")
    return text


def _without(mark: str, field: str, text: str) -> str:
    if mark in text:
        raise InvalidModelError(
            field, text, f"has a {mark!r} in it, by which a REF is read: write something else"
        )
    return text


def _is_plain(text: str) -> bool:
    """Whether it is ASCII, as nearly all are, with nothing in it that a database would not keep."""
    return text.isascii() and "\0" not in text


def lookup_text(field: str, value: object) -> str:
    """A text to look for. It may be one that would not be stored: an older catalog may hold it."""
    if type(value) is str and _is_plain(value):
        return value
    if not isinstance(value, str):
        raise InvalidModelError(field, value, f"is a {type(value).__name__}: give a str")
    # Of a subclass the text itself: what that says of itself each driver would ask in its own way.
    text = str.__str__(value)
    if "\0" in text:
        raise InvalidModelError(field, value, "has a NUL in it, which no database keeps")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidModelError(
            field, value, "has a lone surrogate in it, which is not text: decode it first"
        ) from error
    return text


def path(field: str, value: object) -> str:
    """
    A path that is about to be stored, as the operating system takes it; it is not looked up.

    Bytes that are not UTF-8 arrive as the surrogates `os.fsdecode` makes of them.
    """
    if type(value) is str and 0 < len(value) <= MAX_PATH_BYTES and _is_plain(value):
        return value
    if not isinstance(value, str | bytes | os.PathLike):
        raise InvalidModelError(
            field, value, f"is a {type(value).__name__}: give a str or a pathlib.Path"
        )
    try:
        given: str | bytes = os.fspath(value)
    except TypeError as error:
        raise InvalidModelError(field, value, "is no path: give a str or a pathlib.Path") from error
    raw = (
        given.decode("utf-8", "surrogateescape") if isinstance(given, bytes) else str.__str__(given)
    )
    if not raw:
        raise InvalidModelError(field, value, "is empty: give the path of the model")
    size = _path_bytes(field, raw, value)
    if size > MAX_PATH_BYTES:
        raise InvalidModelError(field, value, f"is {size} bytes long: at most {MAX_PATH_BYTES} fit")
    return raw


def optional_path(field: str, value: object) -> str | None:
    """As `path`, or None where there is none."""
    return None if value is None else path(field, value)


def stored_path(field: str, value: object) -> str:
    """A path that was recorded before, perhaps under other rules."""
    if not isinstance(value, str):
        raise InvalidModelError(field, value, f"is a {type(value).__name__}: give a str")
    _path_bytes(field, value, value)
    return value


def _path_bytes(field: str, raw: str, value: object) -> int:
    if "\0" in raw:
        raise InvalidModelError(field, value, "has a NUL in it, which no file name has")
    try:
        return len(raw.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError as error:
        raise InvalidModelError(
            field, value, "has a surrogate in it that stands for no byte: use os.fsdecode"
        ) from error


def size_bytes(field: str, value: object) -> int | None:
    """A number of bytes, or None where it is not known."""
    if value is None or (type(value) is int and 0 <= value <= MAX_SIZE):
        return value
    try:
        # A bool is an int to Python and a size to nobody; a float has lost bytes.
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


def timestamp(field: str, value: object) -> datetime | None:
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


def short_text(field: str, value: object) -> str | None:
    """One of the short texts that describe a model, or None where it is not known."""
    return None if value is None else non_blank_text(field, value, MAX_NAME)


def url(field: str, value: object) -> str | None:
    """Where something was downloaded from. It is kept, and never opened."""
    return None if value is None else non_blank_text(field, value, MAX_URL)


def long_text(field: str, value: object, limit: int) -> str | None:
    """Free text of at most `limit` bytes of UTF-8; line breaks are part of it."""
    if value is None:
        return None
    text = lookup_text(field, value)
    size = len(text.encode())
    if size > limit:
        raise InvalidModelError(field, value, f"is {size} bytes long: at most {limit} fit")
    return text


def tags(field: str, values: object) -> list[str]:
    """Tags, each a text of at most 128 characters that is not blank."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InvalidModelError(field, values, "is no list: give several tags, or a list of one")
    return [non_blank_text(field, value, MAX_NAME) for value in values]


def filter_tags(field: str, values: object) -> list[str]:
    """Tags to look for."""
    found = tags(field, values)
    if len(found) > MAX_WANTED:
        raise InvalidModelError(
            field, values, f"are {len(found)} tags: ask for at most {MAX_WANTED} at once"
        )
    return found


def search(field: str, value: object) -> str:
    """A text to search for, found as it is: nothing in it is a wildcard."""
    text = lookup_text(field, value)
    if len(text) > MAX_SEARCH:
        raise InvalidModelError(
            field, value, f"is {len(text)} characters long: search for at most {MAX_SEARCH}"
        )
    return text


def digest(field: str, value: object) -> str | None:
    """A SHA-256, or None where it is not known."""
    if value is None:
        return None
    text = lookup_text(field, value)
    try:
        return normalize_digest(text)
    except InvalidModelError as error:
        raise InvalidModelError(field, value, error.reason) from None


def state(field: str, value: object) -> FileState:
    """What a look at the disk found."""
    try:
        return FileState(lookup_text(field, value))
    except ValueError as error:
        raise InvalidModelError(
            field, value, f"is no state of files: give one of {', '.join(FileState)}"
        ) from error


def verdict(field: str, value: object) -> str | None:
    """What came of looking at a signature."""
    if value not in (None, *VERDICTS):
        raise InvalidModelError(field, value, f"is none of {', '.join(VERDICTS)}")
    return None if value is None else str(value)


def files(field: str, values: object) -> list[FileRecord]:
    """The files of a model: each path once, inside the model; every value of each is checked."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InvalidModelError(field, values, "is no list: give FileRecords, or a list of one")
    found = {file.path: file for file in (_file(field, value) for value in values)}
    listed = list(found.values())
    if len(listed) > MAX_FILES:
        raise InvalidModelError(field, len(listed), f"are too many: at most {MAX_FILES} are one")
    return listed


def _file(field: str, value: object) -> FileRecord:
    if isinstance(value, Mapping):
        try:
            value = FileRecord(**value)
        except TypeError as error:
            raise InvalidModelError(field, value, "is no file: give path, size_bytes...") from error
    if not isinstance(value, FileRecord):
        raise InvalidModelError(field, value, f"is a {type(value).__name__}: give a FileRecord")
    size = size_bytes(f"{field}.size_bytes", value.size_bytes)
    if size is None:
        raise InvalidModelError(f"{field}.size_bytes", None, "is missing: every file has one")
    if value.role not in ROLES:
        raise InvalidModelError(f"{field}.role", value.role, f"is none of {', '.join(ROLES)}")
    return FileRecord(
        _inside(f"{field}.path", value.path),
        size,
        value.role,
        digest(f"{field}.digest", value.digest),
        digest(f"{field}.found_digest", value.found_digest),
        _fingerprint(f"{field}.fingerprint", value.fingerprint),
        timestamp(f"{field}.hashed_at", value.hashed_at),
    )


def _inside(field: str, value: object) -> str:
    """A path inside a model: no stranger's list may lead a reader out of the model's folder."""
    text = path(field, value)
    if not is_path_inside_model(text):
        raise InvalidModelError(field, value, "is no path inside a model: give folder/name")
    return text


def _fingerprint(field: str, value: object) -> str | None:
    if value is None:
        return None
    try:
        return str(Fingerprint.parse(lookup_text(field, value)))
    except InvalidModelError as error:
        raise InvalidModelError(field, value, error.reason) from None


def seconds(field: str, value: object) -> float:
    """How long at most."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise InvalidModelError(field, value, "is no time to wait: give seconds, 0 or more")
    return value


def limit(field: str, value: object) -> int | None:
    """How many at most."""
    return size_bytes(field, value)


def count(field: str, value: object) -> int:
    """How often something happened: at least once."""
    number = size_bytes(field, value)
    if not number or number > MAX_COUNT:
        raise InvalidModelError(field, value, f"is out of range: give 1 to {MAX_COUNT:,}")
    return number
