"""What a value must be before a database sees it: the two disagree on most of this."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

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


MAX_URL: Final = 2048
"""Characters in a URL."""
MAX_DESCRIPTION_BYTES: Final = 64 * 1024
MAX_REASON_BYTES: Final = 1024
MAX_SEARCH: Final = 1000
"""Characters in a text to search for: to look for a very long one everywhere would take long."""
MAX_WANTED: Final = 1000
"""Tags that are asked for at once: a statement takes so many parameters and no more."""
MAX_COUNT: Final = 2**31 - 1
"""Uses that are recorded at once."""

Rule: TypeAlias = Callable[[str, object], Any]
"""Checks the value of a field by its name, and returns it as it is to be written."""


def key_text(field: str, value: object, limit: int) -> str:
    """A short text that is about to be stored: no line breaks, nothing that steers a terminal."""
    text = lookup_text(field, value)
    if len(text) > limit:
        raise InvalidModelError(
            field, value, f"is {len(text)} characters long: at most {limit} fit"
        )
    for character in text:
        if unicodedata.category(character) == "Cc":
            raise InvalidModelError(
                field, value, f"has the control character {character!r} in it: leave it out"
            )
    return text


def named(field: str, value: object, limit: int) -> str:
    """A short text that may not be blank."""
    text = key_text(field, value, limit)
    if not text.strip():
        raise InvalidModelError(field, value, "is blank: give it a name")
    return text


def provider(field: str, value: object) -> str:
    """Where a model is from; the colon ends it in `provider:reference`."""
    return _without(":", field, _in_an_index(field, named(field, value, MAX_NAME)))


def version(field: str, value: object) -> str:
    """Which one of a reference, or `""`; the `@` begins it in `reference@version`."""
    return _without("@", field, _in_an_index(field, key_text(field, value, MAX_NAME)))


def alias(field: str, value: object) -> str:
    """A name that may stand where a version may."""
    return version(field, named(field, value, MAX_NAME))


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
    A path that is about to be stored, as the operating system takes it; it is not looked up.

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
    size = _path_bytes(field, raw, value)
    if size > MAX_PATH_BYTES:
        raise InvalidModelError(field, value, f"is {size} bytes long: at most {MAX_PATH_BYTES} fit")
    return raw


def recorded_path(field: str, value: object) -> str:
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
    if value is None:
        return None
    # A bool is an int to Python and a size to nobody; a float has lost bytes.
    index = getattr(type(value), "__index__", None)
    if isinstance(value, bool) or index is None:
        raise InvalidModelError(
            field, value, f"is a {type(value).__name__}: give a whole number as an int"
        )
    number = int(index(value))
    if not 0 <= number <= MAX_SIZE:
        raise InvalidModelError(field, value, "is out of range: give 0 to 2**63 - 1")
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


def word(field: str, value: object) -> str | None:
    """One of the short texts that describe a model, or None where it is not known."""
    return None if value is None else named(field, value, MAX_NAME)


def url(field: str, value: object) -> str | None:
    """Where something was downloaded from. It is kept, and never opened."""
    return None if value is None else named(field, value, MAX_URL)


def prose(field: str, value: object, limit: int) -> str | None:
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
    return [named(field, value, MAX_NAME) for value in values]


def wanted_tags(field: str, values: object) -> list[str]:
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


_DESCRIBING: Final[Mapping[str, Rule]] = {
    "format": word,
    "architecture": word,
    "quantization": word,
    "license": word,
    "context_length": size_bytes,
    "parameter_count": size_bytes,
}
CLAIMABLE: Final = tuple(_DESCRIBING)
"""What the header of a file may claim of a model, and a user may say otherwise."""

CHANGEABLE: Final[Mapping[str, Rule]] = {
    "local_path": path,
    "size_bytes": size_bytes,
    "downloaded_at": moment,
    **_DESCRIBING,
    "source_url": url,
    **{f"claimed_{name}": rule for name, rule in _DESCRIBING.items()},
    "description": lambda field, value: prose(field, value, MAX_DESCRIPTION_BYTES),
}
"""The fields of a model that are not its key, and what each may be."""

_RULES: Final[Mapping[str, Rule]] = {
    "reference": lambda field, value: named(field, value, MAX_REFERENCE),
    "provider": provider,
    "version": version,
    **CHANGEABLE,
}
_REQUIRED: Final = ("reference", "provider", "local_path")

_COUNTED: Final[Mapping[str, Rule]] = {
    "download_count": size_bytes,
    "use_count": size_bytes,
    "last_used_at": moment,
    "pinned_at": moment,
    "pin_reason": lambda field, value: prose(field, value, MAX_REASON_BYTES),
}
WHOLE: Final[Mapping[str, Rule]] = {
    **_RULES,
    **_COUNTED,
    # What was recorded under other rules, by the hive or an older release, may come back.
    "reference": lookup_text,
    "provider": lookup_text,
    "version": lookup_text,
    "local_path": recorded_path,
}
"""Every field of a model that is not the database's own, and what each may be in an import."""


def whole(values: Mapping[str, object]) -> dict[str, Any]:
    """
    A model with every field, each checked; what is missing is None, 0, or `""` for the version.

    Raises InvalidModelError, also for a field that there is not.
    """
    for field, value in values.items():
        if field not in WHOLE:
            raise InvalidModelError(field, value, "is no field of a model")
    given: dict[str, object] = {"version": "", "download_count": 0, "use_count": 0, **values}
    for field in _REQUIRED:
        if field not in values:
            raise InvalidModelError(field, None, "is missing: every model has one")
    found = {field: rule(field, given.get(field)) for field, rule in WHOLE.items()}
    for field in ("download_count", "use_count"):
        if found[field] is None:
            raise InvalidModelError(field, None, "is missing: give a number")
    return found


def checked(values: Mapping[str, object]) -> dict[str, Any]:
    """
    The values that may be written, each checked; the names this package does not know are left out.

    Raises InvalidModelError for the first that may not be, or that is missing.
    """
    for field in _REQUIRED:
        if field not in values:
            raise InvalidModelError(field, None, "is missing: every model has one")
    return {field: rule(field, values[field]) for field, rule in _RULES.items() if field in values}


def changes(values: Mapping[str, object]) -> dict[str, Any]:
    """
    The values of an update, each checked.

    Raises InvalidModelError for a name that cannot be changed, and for a value that may not be.
    """
    for field, value in values.items():
        if field not in CHANGEABLE:
            raise InvalidModelError(
                field, value, f"cannot be changed: these can: {', '.join(CHANGEABLE)}"
            )
    return {field: CHANGEABLE[field](field, value) for field, value in values.items()}
