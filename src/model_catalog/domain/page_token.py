"""
The token of a page of a listing: URL-safe text that states the position of the page.

It contains the position in the order, the order, and a hash of the filters. It is not encrypted,
and its checksum only finds accidental changes.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final

from model_catalog.domain import validation
from model_catalog.errors import InvalidModelError

_VERSION: Final = 1
_CHECKSUM_BYTES: Final = 4
_FIELD: Final = "page_token"
_START_AGAIN: Final = "begin again without page_token"


@dataclass(frozen=True, slots=True)
class Position:
    """A position in the order of a listing: the sorted value and the key of a model."""

    value: str | int | datetime | None
    provider: str
    reference: str
    version: str


@dataclass(frozen=True, slots=True)
class Listing:
    """The order and the filters of a listing, which all its pages share."""

    sort: str
    is_descending: bool
    is_by_time: bool
    """Whether the sorted values are points in time."""
    filters: Mapping[str, object]

    def encode_token(self, position: Position) -> str:
        """Return the token of the page after a position."""
        value = position.value
        if isinstance(value, datetime):
            value = int(value.timestamp())
        key = (position.provider, position.reference, position.version)
        content = [_VERSION, self.sort, self.is_descending, self._filter_hash, [value, *key]]
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
        return base64.urlsafe_b64encode(_checksum(text) + text).rstrip(b"=").decode()

    def decode_token(self, token: object) -> Position:
        """
        Return the position of a token.

        Raises InvalidModelError for a damaged token, and for one of another listing.
        """
        content = _read_content(validation.lookup_text(_FIELD, token))
        if content[:1] != [_VERSION]:
            raise InvalidModelError(_FIELD, token, f"is of another release: {_START_AGAIN}")
        try:
            # A client may send a token of its own making.
            _, sort, is_descending, filter_hash, (value, *key) = content
            if self.is_by_time and value is not None:
                value = datetime.fromtimestamp(value, UTC)
            position = Position(value, *key)
        except (TypeError, ValueError, OverflowError, OSError) as error:
            raise invalid_token(token) from error
        if (sort, is_descending) != (self.sort, self.is_descending):
            direction = "descending" if is_descending else "ascending"
            raise InvalidModelError(
                _FIELD,
                token,
                f"belongs to a listing sorted by {sort}, {direction}: pass the same sort and "
                f"descending, or {_START_AGAIN}",
            )
        if filter_hash != self._filter_hash:
            raise InvalidModelError(
                _FIELD,
                token,
                "belongs to a listing with other filters: pass the filters of the first page, or "
                f"{_START_AGAIN}",
            )
        return position

    @property
    def _filter_hash(self) -> str:
        """A hash of the filters that are set. The order of tags and ids does not matter."""
        given = {name: _canonical(each) for name, each in self.filters.items() if each is not None}
        return sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:16]


def _read_content(token: str) -> list[Any]:
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        text = raw[_CHECKSUM_BYTES:]
        if raw[:_CHECKSUM_BYTES] == _checksum(text):
            content = json.loads(text)
            if isinstance(content, list):
                return content
    except (binascii.Error, ValueError, RecursionError):
        pass
    raise invalid_token(token)


def invalid_token(token: object) -> InvalidModelError:
    """Return the error for a text that is not a token."""
    problem = f"is not a token of list_page(): pass next_token unchanged, or {_START_AGAIN}"
    return InvalidModelError(_FIELD, token, problem)


def _checksum(text: bytes) -> bytes:
    return zlib.crc32(text).to_bytes(_CHECKSUM_BYTES, "big")


def _canonical(value: object) -> object:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, Iterable) and not isinstance(value, str):
        return sorted({json.dumps(each) for each in value})
    return value
