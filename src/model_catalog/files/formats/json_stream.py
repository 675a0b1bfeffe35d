"""Parse a JSON object value by value, with bounded memory and time."""

from __future__ import annotations

import codecs
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from model_catalog.errors import BadHeaderError
from model_catalog.files.safe_open import OpenFile

MAX_VALUE_CHARACTERS: Final = 1024 * 1024
"""The most characters in one value. A MiB of `[],` takes 25 MiB of memory as Python lists."""
MAX_TOTAL_CHARACTERS: Final = 48 * MAX_VALUE_CHARACTERS
"""The most characters in all values, as many as 262,144 tensors need."""
MAX_DEPTH: Final = 127
"""The deepest nesting that serde_json 1 reads."""

_WINDOW_BYTES: Final = 64 * 1024
_SHORT_BYTES: Final = 256 * 1024
_MARKS: Final = frozenset('{}[]:,"')
_WHITESPACE: Final = re.compile(r"[ \t\n\r]*")
_PLAIN_NAME: Final = re.compile(r'[ \t\n\r]*+"([^"\\\x00-\x1f]*+)"[ \t\n\r]*+:')
_MAX_DIGITS: Final = 20
_NESTED_COST: Final = 16
"""A list or an object takes as long as this many characters."""
_ANY_SURROGATE: Final = re.compile("[\ud800-\udfff]")
# An escape of a surrogate is valid only if it is followed by the other half of a pair.
_STRING_PART: Final = re.compile(
    r"""(?x) (?: [^"\\\x00-\x1f]++
    | \\ ["\\/bfnrt]
    | \\u (?: [0-9abcefABCEF][0-9a-fA-F]{3} | [dD][0-7][0-9a-fA-F]{2}
        | [dD][89abAB][0-9a-fA-F]{2} \\u [dD][c-fC-F][0-9a-fA-F]{2} )
    )*+"""
)
_LONGEST_ESCAPE: Final = len(r"\ud83e\udd99")


class JsonStream:
    """
    A parser for the UTF-8 JSON in a byte range of a file, which is read on demand.

    By default it accepts and refuses what serde_json 1 does, which reads the headers of
    safetensors: NaN, numbers outside of the range of a float, lone surrogates, and more than
    MAX_DEPTH levels are invalid. With `python_rules` it does what Python's `json` does, which reads
    the config.json and the indexes of transformers. Then NaN, Infinity and lone surrogates are
    accepted. Both accept an object in which a name occurs twice: the last value counts, and
    `RepeatedNames` has the names. An integer of more than 20 digits is read as None.

    Raises BadHeaderError for invalid JSON, and HeaderLimitError beyond the limits of this module.
    """

    def __init__(self, file: OpenFile, start: int, end: int, *, python_rules: bool = False) -> None:
        self.file = file
        self._decoder = _PYTHON_DECODER if python_rules else _SERDE_DECODER
        self._is_strict = not python_rules
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

        The caller must read the value of each name before the next one, with `value`, `string`,
        `skip_string` or `members`. A name may occur several times.
        """
        self._expect("{")
        if self._peek() == "}":
            self._at += 1
            return
        for _ in range(limit):
            yield self._name()
            following = self._peek()
            if following not in {",", "}"}:
                raise self._unexpected()
            self._at += 1
            if following == "}":
                return
        raise self.file.limit_error(f"an object has more than {limit:,} members")

    def elements(self, limit: int) -> Iterator[None]:
        """
        Yield once for each element of the list that begins here, at most `limit` times.

        The caller must read each element before the next one, as with `members`.
        """
        self._expect("[")
        if self._peek() == "]":
            self._at += 1
            return
        for _ in range(limit):
            yield
            if self._peek() == "]":
                self._at += 1
                return
            self._expect(",")
        raise self.file.limit_error(f"a list has more than {limit:,} elements")

    def _name(self) -> str:
        """Read the name of a member, and the colon behind it."""
        # Nearly all names have no escapes.
        match = _PLAIN_NAME.match(self._text, self._at)
        if match is not None:
            self._at = match.end()
            return match[1]
        name = self.string()
        self._expect(":")
        return name

    def string(self) -> str:
        """Read a string of at most MAX_VALUE_CHARACTERS characters."""
        if self._peek() != '"':
            raise self._unexpected()
        return str(self._decode_value())

    def skip_string(self) -> None:
        """Skip a string of any length, and check that it is valid."""
        self._expect('"')
        while True:
            self._at = _STRING_PART.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._text[self._at : self._at + 1] == '"':
                self._at += 1
                return
            # An escape can continue beyond the window.
            is_cut_off = len(self._text) - self._at < _LONGEST_ESCAPE
            if not is_cut_off or not self._extend_window():
                raise self._unexpected()

    def take_null(self) -> bool:
        """Skip the value null. Return False, and skip nothing, if another value follows."""
        if self._peek() != "n":
            return False
        self.value()
        return True

    def value(self) -> Any:
        """Read a value of at most MAX_VALUE_CHARACTERS characters."""
        self._peek()
        before = self._position()
        value = self._decode_value()
        start = before - self._start
        nested = self._text.count("[", start, self._at) + self._text.count("{", start, self._at)
        self._characters_left -= self._position() - before + _NESTED_COST * nested
        if self._characters_left < 0:
            raise self.file.limit_error(
                f"the values have more than {MAX_TOTAL_CHARACTERS:,} characters"
            )
        return value

    def peek_short_object(self) -> dict[str, Any] | None:
        """
        Return the object that is the rest of the text, and skip nothing.

        None if it is longer than 256 KiB, if it has a name twice, or if it is not valid: the other
        methods then tell what is wrong. It takes a third of the time that they take.
        """
        if self._end - self._offset > _SHORT_BYTES:
            return None
        while self._extend_window():
            pass
        start = self._at
        try:
            value = self._decode_value()
            is_whole = not self._peek()
        except BadHeaderError:
            return None
        finally:
            self._at = start
        return value if is_whole and type(value) is dict else None

    def require_end(self) -> None:
        """Raise BadHeaderError if anything but whitespace follows."""
        if self._peek():
            raise self._unexpected()

    def _position(self) -> int:
        return self._start + self._at

    def _decode_value(self) -> Any:
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
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
            if self._is_strict:
                self._check_strictly(value, end)
            self._at = end
            return value

    def _check_strictly(self, value: object, end: int) -> None:
        """Refuse what Python's decoder accepts and serde_json does not."""
        text = self._text
        nested = text.count("[", self._at, end) + text.count("{", self._at, end)
        if nested >= MAX_DEPTH and _depth(value) >= MAX_DEPTH:
            raise self.file.header_error("the JSON is nested too deeply")
        if text.find("\\u", self._at, end) >= 0 and _has_lone_surrogate(value):
            raise self.file.header_error("invalid JSON: a lone surrogate in a string")

    def _peek(self) -> str:
        """Return the next character that is not whitespace, or "" at the end."""
        # Most values follow without whitespace.
        if (next_character := self._text[self._at : self._at + 1]) in _MARKS:
            return next_character
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
            raise self.file.limit_error(
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
    Parse bytes as one JSON value. Raises ValueError with the reason.

    A duplicate name in an object, NaN and Infinity are invalid. An integer of more than 20 digits
    is read as None. `limit` bounds memory: it is the most values, counted by brackets, braces and
    commas.
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


class RepeatedNames(dict[str, Any]):
    """An object in which the names `repeated` occur several times. It has their last values."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        counts = Counter(name for name, _ in pairs)
        self.repeated = {name for name, count in counts.items() if count > 1}


def _depth(value: object) -> int:
    """Return the number of levels of lists and objects in a value."""
    level: list[object] = [value]
    depth = 0
    while level := [each for each in level if isinstance(each, list | dict)]:
        depth += 1
        level = [
            item for each in level for item in (each.values() if isinstance(each, dict) else each)
        ]
    return depth


def _has_lone_surrogate(value: object) -> bool:
    return _ANY_SURROGATE.search(json.dumps(value, ensure_ascii=False)) is not None


class _InvalidJsonError(Exception):
    """Raised by the hooks of the decoder, which do not know the file."""


def _reject_duplicate_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise _InvalidJsonError("an object has a duplicate name")
    return members


def _keep_last(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    return members if len(members) == len(pairs) else RepeatedNames(pairs)


def _parse_finite_float(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise _InvalidJsonError("invalid JSON: a number is out of range")
    return number


def _parse_finite_integer(digits: str) -> int | None:
    # serde_json reads -0, and an integer beyond 64 bits, as a float.
    if len(digits) > _MAX_DIGITS or digits == "-0":
        _parse_finite_float(digits)
        return None
    return int(digits)


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
_PYTHON_DECODER: Final = json.JSONDecoder(object_pairs_hook=_keep_last, parse_int=_parse_integer)
_SERDE_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_keep_last,
    parse_constant=_reject_constant,
    parse_float=_parse_finite_float,
    parse_int=_parse_finite_integer,
)
