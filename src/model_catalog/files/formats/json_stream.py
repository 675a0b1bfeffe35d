"""Parse a JSON object value by value, with bounded memory and time."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, Final

from model_catalog.files.safe_open import OpenFile

MAX_VALUE_CHARACTERS: Final = 1024 * 1024
"""The most characters in one value. A MiB of `[],` takes 25 MiB of memory as Python lists."""
MAX_TOTAL_CHARACTERS: Final = 8 * MAX_VALUE_CHARACTERS
"""The most characters in all values: twice what the allowed number of tensors needs."""

_WINDOW_BYTES: Final = 64 * 1024
_WHITESPACE: Final = re.compile(r"[ \t\n\r]*")
_MAX_DIGITS: Final = 20


class JsonStream:
    """
    A parser for the UTF-8 JSON in a byte range of a file, which is read on demand.

    Raises BadHeaderError for invalid JSON. A duplicate name in an object, NaN and Infinity are
    invalid too. An integer of more than 20 digits is read as None.
    """

    def __init__(self, file: OpenFile, start: int, end: int) -> None:
        self.file = file
        self._offset = start
        self._end = end
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._text = ""
        self._start = 0
        self._at = 0
        self._characters_left = MAX_TOTAL_CHARACTERS

    def members(self, limit: int) -> Iterator[str]:
        """
        Yield the names of the object that begins here, in file order, at most `limit` of them.

        The caller must read the value of each name before the next one, with `value`, `string` or
        `members`.
        """
        self._expect("{")
        if self._peek() == "}":
            self._at += 1
            return
        # Only the hash of each name is stored, so that a million names need little memory.
        seen: set[int] = set()
        for number in range(1, limit + 1):
            name = self.string()
            seen.add(hash(name))
            if len(seen) < number:
                raise self.file.header_error(f"the name {name[:80]!r} occurs twice")
            self._expect(":")
            yield name
            if self._peek() == "}":
                self._at += 1
                return
            self._expect(",")
        raise self.file.header_error(f"an object has more than {limit:,} members")

    def string(self) -> str:
        """Read a string of at most MAX_VALUE_CHARACTERS characters."""
        if self._peek() != '"':
            raise self._unexpected()
        return str(self._decode_value())

    def value(self) -> Any:
        """Read a value of at most MAX_VALUE_CHARACTERS characters."""
        self._peek()
        before = self._position()
        value = self._decode_value()
        self._characters_left -= self._position() - before
        if self._characters_left < 0:
            raise self.file.header_error(
                f"the values have more than {MAX_TOTAL_CHARACTERS:,} characters"
            )
        return value

    def require_end(self) -> None:
        """Raise BadHeaderError if anything but whitespace follows."""
        if self._peek():
            raise self._unexpected()

    def _position(self) -> int:
        return self._start + self._at

    def _decode_value(self) -> Any:
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                # The value may continue beyond the window.
                if self._extend_window():
                    continue
                raise self.file.header_error(f"invalid JSON: {error.msg}") from None
            except RecursionError:
                raise self.file.header_error("the JSON is nested too deeply") from None
            except _InvalidJsonError as error:
                raise self.file.header_error(str(error)) from None
            # A number at the end of the window may continue beyond it.
            if end == len(self._text) and self._extend_window():
                continue
            self._at = end
            return value

    def _peek(self) -> str:
        """Return the next character that is not whitespace, or "" at the end."""
        while True:
            self._at = _WHITESPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._extend_window():
                return ""

    def _expect(self, character: str) -> None:
        if self._peek() != character:
            raise self._unexpected()
        self._at += 1

    def _unexpected(self) -> Exception:
        character = self._text[self._at : self._at + 1]
        return self.file.header_error(
            f"invalid JSON: unexpected {character!r}" if character else "the JSON is truncated"
        )

    def _extend_window(self) -> bool:
        """Read the next part of the file. Return False if the end was reached before."""
        remaining = self._text[self._at :]
        if len(remaining) > MAX_VALUE_CHARACTERS:
            raise self.file.header_error(
                f"a value has more than {MAX_VALUE_CHARACTERS:,} characters"
            )
        if self._offset == self._end:
            return False
        # The window doubles each time, because a long value is parsed again from its beginning.
        wanted = min(max(_WINDOW_BYTES, len(remaining)), MAX_VALUE_CHARACTERS + 1 - len(remaining))
        raw = self.file.read_at(self._offset, min(wanted, self._end - self._offset))
        if not raw:
            raise self.file.header_error("the file was truncated during the read")
        self._offset += len(raw)
        try:
            self._text = remaining + self._decode(raw, self._offset == self._end)
        except UnicodeDecodeError:
            raise self.file.header_error("the text is not UTF-8") from None
        self._start, self._at = self._position(), 0
        return True


def parse_json(raw: bytes, limit: int) -> Any:
    """
    Parse bytes as one JSON value by the rules of `JsonStream`. Raises ValueError with the reason.

    `limit` bounds memory: it is the most values, counted by brackets, braces and commas.
    """
    if sum(raw.count(mark) for mark in (b"[", b"{", b",")) > limit:
        raise ValueError(f"it contains more than {limit:,} values")
    try:
        return _DECODER.decode(raw.decode())
    except UnicodeDecodeError:
        raise ValueError("the text is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"invalid JSON: {error.msg}") from None
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
    except _InvalidJsonError as error:
        raise ValueError(str(error)) from None


class _InvalidJsonError(Exception):
    """Raised by the hooks of the decoder, which do not know the file."""


def _reject_duplicate_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise _InvalidJsonError("an object has a duplicate name")
    return members


def _reject_constant(name: str) -> None:
    raise _InvalidJsonError(f"invalid JSON: {name} is not a JSON value")


def _parse_integer(digits: str) -> int | None:
    # The time of int() grows with the square of the number of digits. It raises ValueError for
    # more than 4,300 digits.
    return int(digits) if len(digits) <= _MAX_DIGITS else None


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_reject_duplicate_names,
    parse_constant=_reject_constant,
    parse_int=_parse_integer,
)
