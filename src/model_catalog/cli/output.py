"""How results are put on a terminal, and how they are handed to another program."""

from __future__ import annotations

import json
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Self

# Control, format (bidi and zero-width ones among them), surrogate, private and unassigned
# characters, and the two that end a line: a name from a file could steer the terminal with them.
_UNSAFE: Final = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
_NARROWEST: Final = 10
_BAR: Final = 20
_WIDE: Final = {"W", "F"}


def escape_controls(text: str) -> str:
    """A text that may stand on a terminal: what would steer it is written as an escape."""
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in _UNSAFE
        else character
        for character in text
    )


def print_error(words: str) -> None:
    """Say something on standard error."""
    print(escape_controls(f"model-catalog: {words}"), file=sys.stderr)


def print_notice(words: str) -> None:
    """Say how it went, on standard error."""
    print(escape_controls(words), file=sys.stderr)


def print_line(text: str) -> None:
    """One line of data."""
    print(escape_controls(text))


class ProgressBar:
    """How far something has come, in one line of a terminal's standard error; else nothing."""

    def __init__(self) -> None:
        self._shows = sys.stderr is not None and sys.stderr.isatty()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def show(self, done_bytes: int, total_bytes: int, name: str) -> None:
        """Draw it anew."""
        if not self._shows:
            return
        columns = shutil.get_terminal_size().columns
        part = done_bytes / total_bytes if total_bytes else 0.0
        full = round(part * _BAR)
        sizes = f"{human_size(done_bytes)} of {human_size(total_bytes)}"
        line = f"{'█' * full}{'░' * (_BAR - full)} {part:4.0%} {sizes}"
        if (room := columns - _width(line) - 3) >= _NARROWEST:
            line = f"{line}  {_shortened(escape_controls(name), room)}"
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)

    def count(self, words: str) -> None:
        """Say how far it has come, where nobody knows how far it is."""
        if self._shows:
            room = shutil.get_terminal_size().columns - 1
            line = _shortened(escape_controls(words), room)
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Take it away, for a line that is to stay."""
        if self._shows:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def human_size(size_bytes: int | None) -> str:
    """Bytes in decimal units, as in `5.6 GB`; `?` where they are not known."""
    if size_bytes is None:
        return "?"
    if size_bytes < 1000:  # noqa: PLR2004 - a unit's end
        return f"{size_bytes} B"
    value = float(size_bytes)
    for unit in _UNITS:
        # Not 1000: what rounds up to it is one of the next unit.
        if value < 999.5 or unit == _UNITS[-1]:  # noqa: PLR2004
            break
        value /= 1000
    return f"{value:.1f} {unit}" if value < 99.95 else f"{value:.0f} {unit}"  # noqa: PLR2004


def text_bar(part: float) -> str:
    """A part of a whole, drawn; of what is more than nothing something is seen."""
    return "█" * max(round(part * _BAR), part > 0)


def human_time(moment: datetime | None) -> str:
    """A time for people, in UTC."""
    if moment is None:
        return "?"
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(" ", timespec="minutes")


def pluralize(number: int, noun: str, plural: str | None = None) -> str:
    """`1 model`, `2 models`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def print_json(value: Any) -> None:
    """One JSON document, in ASCII."""
    print(json.dumps(value, indent=2))


def print_tsv(names: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A head and a line a row; what is not known is empty."""
    print("\t".join(names))
    for row in rows:
        print("\t".join("" if value is None else escape_controls(str(value)) for value in row))


def print_table(
    names: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[str] = (),
    cut: Sequence[str] = (),
) -> None:
    """
    Columns under their names, numbers to the right.

    On a terminal that is too narrow the columns `cut`, the first of them first, are shortened in
    their middle; a pipe gets them whole.
    """
    cells = [[escape_controls(value) for value in row] for row in rows]
    widths = [
        max(_width(name), *(_width(row[at]) for row in cells), 0) for at, name in enumerate(names)
    ]
    if sys.stdout.isatty():
        excess = sum(widths) + 2 * (len(names) - 1) - shutil.get_terminal_size().columns
        for at in (names.index(name) for name in cut if name in names):
            less = max(0, min(excess, widths[at] - _NARROWEST))
            excess -= less
            widths[at] -= less
            for row in cells:
                row[at] = _shortened(row[at], widths[at])
    for row in [list(names), *cells]:
        line = "  ".join(
            _padded(value, width, to_the_right=name in right)
            for name, value, width in zip(names, row, widths, strict=True)
        )
        print(line.rstrip())


def _width(text: str) -> int:
    return sum(
        0
        if unicodedata.combining(character)
        else 2
        if unicodedata.east_asian_width(character) in _WIDE
        else 1
        for character in text
    )


def _padded(text: str, width: int, *, to_the_right: bool) -> str:
    space = " " * (width - _width(text))
    return space + text if to_the_right else text + space


def _shortened(text: str, width: int) -> str:
    if _width(text) <= width:
        return text
    # The end of a name tells more than its middle: the quantization stands there.
    tail = ""
    while _width(tail) < width // 2 - 1:
        tail = text[-len(tail) - 1] + tail
    head = ""
    while _width(head + text[len(head)]) + 1 + _width(tail) <= width:
        head += text[len(head)]
    return f"{head}…{tail}"
