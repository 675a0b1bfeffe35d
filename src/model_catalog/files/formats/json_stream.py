"""The values of a JSON object one after another, at a bounded cost of memory and of time."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, Final

from model_catalog.files.safe_open import OpenFile

MAX_VALUE_CHARACTERS: Final = 1024 * 1024
"""Characters in a value that is taken whole; a MiB of `[],` makes 25 of lists."""
MAX_TOTAL_CHARACTERS: Final = 8 * MAX_VALUE_CHARACTERS
"""Characters in all of them: twice what the values of as many tensors as may be take."""

_WINDOW_BYTES: Final = 64 * 1024
_WHITESPACE: Final = re.compile(r"[ \t\n\r]*")
_MAX_DIGITS: Final = 20


class JsonStream:
    """
    A file's JSON from one place to another, as UTF-8, read as it is asked for.

    What is wrong with it is raised as BadHeaderError; that a name comes twice in one object, and
    NaN and its like, are wrong. A whole number of more than 20 digits is read as None.
    """

    def __init__(self, file: OpenFile, start: int, end: int) -> None:
        self.file = file
        self._offset = start
        self._end = end
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._text = ""
        self._start = 0
        self._at = 0
        self._left = MAX_TOTAL_CHARACTERS

    def members(self, limit: int) -> Iterator[str]:
        """
        The names in the object that begins here, at most `limit` of them, in the order of the file.

        After each its value has to be taken, by `value`, `text` or `members`, before the next.
        """
        self._expect("{")
        if self._peek() == "}":
            self._at += 1
            return
        # Of a name only its hash is kept, so that a million of them are no more than a list.
        seen: set[int] = set()
        for number in range(1, limit + 1):
            name = self.text()
            seen.add(hash(name))
            if len(seen) < number:
                raise self.file.header_error(f"it has the name {name[:80]!r} twice")
            self._expect(":")
            yield name
            if self._peek() == "}":
                self._at += 1
                return
            self._expect(",")
        raise self.file.header_error(f"an object in it has more than {limit:,} members")

    def text(self) -> str:
        """The text that follows, of at most MAX_VALUE characters."""
        if self._peek() != '"':
            raise self._unexpected()
        return str(self._take())

    def value(self) -> Any:
        """The value that follows, of at most MAX_VALUE characters."""
        self._peek()
        before = self._position()
        value = self._take()
        self._left -= self._position() - before
        if self._left < 0:
            raise self.file.header_error(
                f"its values are longer than {MAX_TOTAL_CHARACTERS:,} characters"
            )
        return value

    def finish(self) -> None:
        """Refuse whatever follows but blanks."""
        if self._peek():
            raise self._unexpected()

    def _position(self) -> int:
        return self._start + self._at

    def _take(self) -> Any:
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                # It may be that the rest of it lies outside of the window.
                if self._more():
                    continue
                raise self.file.header_error(f"it is no JSON: {error.msg}") from None
            except RecursionError:
                raise self.file.header_error("it is nested too deep") from None
            except _InvalidJsonError as error:
                raise self.file.header_error(str(error)) from None
            # A number that ends with the window may go on after it.
            if end == len(self._text) and self._more():
                continue
            self._at = end
            return value

    def _peek(self) -> str:
        """The next character that is not blank, or nothing at the end."""
        while True:
            self._at = _WHITESPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _expect(self, character: str) -> None:
        if self._peek() != character:
            raise self._unexpected()
        self._at += 1

    def _unexpected(self) -> Exception:
        found = self._text[self._at : self._at + 1]
        return self.file.header_error(f"it is no JSON: {found!r}" if found else "it ends too early")

    def _more(self) -> bool:
        """Move the window on; return whether there was anything left to read."""
        rest = self._text[self._at :]
        if len(rest) > MAX_VALUE_CHARACTERS:
            raise self.file.header_error(
                f"a value in it is longer than {MAX_VALUE_CHARACTERS:,} characters"
            )
        if self._offset == self._end:
            return False
        # Twice as much each time: a long value is looked at again from its beginning.
        wanted = min(max(_WINDOW_BYTES, len(rest)), MAX_VALUE_CHARACTERS + 1 - len(rest))
        raw = self.file.read_at(self._offset, min(wanted, self._end - self._offset))
        if not raw:
            raise self.file.header_error("the file was cut short while it was read")
        self._offset += len(raw)
        try:
            self._text = rest + self._decode(raw, self._offset == self._end)
        except UnicodeDecodeError:
            raise self.file.header_error("it is not UTF-8") from None
        self._start, self._at = self._position(), 0
        return True


def parse_json(raw: bytes, limit: int) -> Any:
    """
    The one value that these bytes are, by the same rules; ValueError says what is wrong.

    Each value in it costs memory, by the brackets and commas there are: at most `limit` of them.
    """
    if sum(raw.count(mark) for mark in (b"[", b"{", b",")) > limit:
        raise ValueError(f"it holds more than {limit:,} values")
    try:
        return _DECODER.decode(raw.decode())
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON: {error.msg}") from None
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except _InvalidJsonError as error:
        raise ValueError(str(error)) from None


class _InvalidJsonError(Exception):
    """What a hook of the decoder finds, which knows of no file."""


def _reject_duplicate_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise _InvalidJsonError("an object in it has a name twice")
    return members


def _reject_constant(name: str) -> None:
    raise _InvalidJsonError(f"{name} in it is no JSON")


def _parse_integer(digits: str) -> int | None:
    # int() takes the square of their number in time, and refuses 4,301 with a ValueError.
    return int(digits) if len(digits) <= _MAX_DIGITS else None


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_reject_duplicate_names,
    parse_constant=_reject_constant,
    parse_int=_parse_integer,
)
