"""Validators of the parts of a model's key, and of aliases."""

from __future__ import annotations

from typing import Final

from model_catalog.domain.validation import MAX_NAME, is_ordinary, key_text, non_blank_text
from model_catalog.errors import InvalidModelError

MAX_REFERENCE: Final = 512
"""Maximum length of a reference, in characters."""
MAX_VERSION: Final = 512
"""Maximum length of a version, in characters."""
MAX_NAME_BYTES: Final = 256
"""Maximum length of a provider or an alias, in bytes."""
MAX_HOST_BYTES: Final = 96
"""Maximum length of the name of a host, in bytes."""
ALL_HOSTS: Final = "*"
"""The host of a claim on a disk that all hosts share."""
MAX_KEY_BYTES: Final = 2560
"""
Maximum length of provider, reference and version together, in bytes.

PostgreSQL limits an index entry to 2704 bytes, and a reference may take 2048 of them. An entry has
a host and a time too.
"""


def reference(field: str, value: object) -> str:
    """Validate the name of a model at its provider."""
    return non_blank_text(field, value, MAX_REFERENCE)


def provider(field: str, value: object) -> str:
    """Validate a provider. It must not contain the colon of `provider:reference`."""
    text = _index_text(field, non_blank_text(field, value, MAX_NAME))
    if ":" in text:
        raise InvalidModelError(
            field,
            text,
            "must not contain ':', which separates the provider in provider:reference@version",
        )
    return text


def version(field: str, value: object) -> str:
    """Validate a version, which may be `""`. It can be a path of at most 512 characters."""
    if type(value) is str and len(value) <= MAX_NAME and (not value or is_ordinary(value)):
        return value
    return key_text(field, value, MAX_VERSION)


def alias(field: str, value: object) -> str:
    """
    Validate an alias, which can replace a version in a lookup.

    It must not be blank, and must not contain an `@`, which a version may contain.
    """
    text = _index_text(field, non_blank_text(field, value, MAX_NAME))
    if "@" in text:
        raise InvalidModelError(
            field,
            text,
            "must not contain '@', which separates the version in provider:reference@version",
        )
    return text


def host(field: str, value: object) -> str:
    """
    Validate the name of a host.

    It must not contain whitespace, `/` or `@`, and must not be `*`, which means all hosts.
    """
    text = _index_text(field, non_blank_text(field, value, MAX_HOST_BYTES), MAX_HOST_BYTES)
    for character in text:
        if character.isspace() or character in "/@":
            raise InvalidModelError(
                field, text, f"must not contain {character!r}: give a name such as 'gpu-07'"
            )
    if text == ALL_HOSTS:
        raise InvalidModelError(field, text, "means all hosts: give the name of one host")
    return text


def optional_host(field: str, value: object) -> str | None:
    """Validate the name of a host, or None. `""` is None: a catalog without a host has it."""
    return None if value is None or value == "" else host(field, value)


def host_or_none(field: str, value: object) -> str:
    """Validate the name of a host, or `""` for a catalog without a host."""
    return "" if value == "" else host(field, value)


def key(provider: str, reference: str, version: str) -> None:
    """Validate that a key fits in an index entry of PostgreSQL."""
    # A character has at most four bytes. Only a long version can break the rule, because the other
    # parts have limits of their own.
    if 4 * len(version) <= MAX_NAME_BYTES:
        return
    size = sum(len(text.encode()) for text in (provider, reference, version))
    if size > MAX_KEY_BYTES:
        raise InvalidModelError(
            "version",
            version,
            f"makes the key {size} bytes long in UTF-8, with provider and reference: at most "
            f"{MAX_KEY_BYTES} are allowed",
        )


def _index_text(field: str, text: str, max_bytes: int = MAX_NAME_BYTES) -> str:
    """Validate that a text fits in the index of the key."""
    if (size := len(text.encode())) > max_bytes:
        raise InvalidModelError(
            field, text, f"is {size} bytes long in UTF-8: at most {max_bytes} are allowed"
        )
    return text
