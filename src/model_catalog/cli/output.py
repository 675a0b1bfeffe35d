"""Print results as text, tables, JSON and TSV, and show progress on a terminal."""

from __future__ import annotations

import json
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    # Not at run time: upkeep imports SQLAlchemy, which `--help` does not need.
    from model_catalog.upkeep import Progress

# Unicode categories of control, format (including bidi and zero-width), surrogate, private-use,
# unassigned and line-ending characters. In a file name they could control the terminal.
_UNSAFE: Final = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
_MIN_COLUMN_WIDTH: Final = 10
_BAR_WIDTH: Final = 20
_WIDE: Final = {"W", "F"}
"""The East Asian widths of characters that take two columns."""


def escape_controls(text: str) -> str:
    """Return a text that is safe to print: characters that control the terminal become escapes."""
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in _UNSAFE
        else character
        for character in text
    )


def print_error(message: str) -> None:
    """Print an error or a warning, with the program's name, to standard error."""
    print(escape_controls(f"model-catalog: {message}"), file=sys.stderr)


def print_notice(message: str) -> None:
    """Print a message about the outcome to standard error."""
    print(escape_controls(message), file=sys.stderr)


def print_line(text: str) -> None:
    """Print one line of data to standard output."""
    print(escape_controls(text))


def is_confirmed(question: str) -> bool:
    """Ask a question on standard error, and return whether the next line of input is a yes."""
    print(question, end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline() if sys.stdin is not None else ""
    if not answer:
        # End of input: the cursor is still on the line of the question.
        print_notice("")
    return answer.strip().lower() in ("y", "yes")


class ProgressBar:
    """A progress line on standard error. It prints nothing if that is not a terminal."""

    def __init__(self) -> None:
        self._is_visible = sys.stderr is not None and sys.stderr.isatty()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def show(self, progress: Progress) -> None:
        """Draw the bar, with the name of the file that is being read."""
        if not self._is_visible:
            return
        columns = shutil.get_terminal_size().columns
        total_bytes = progress.total_bytes
        fraction = progress.done_bytes / total_bytes if total_bytes else 0.0
        filled = round(fraction * _BAR_WIDTH)
        sizes = f"{human_size(progress.done_bytes)} of {human_size(total_bytes)}"
        line = f"{'█' * filled}{'░' * (_BAR_WIDTH - filled)} {fraction:4.0%} {sizes}"
        if (name_width := columns - _width(line) - 3) >= _MIN_COLUMN_WIDTH:
            line = f"{line}  {_shorten(escape_controls(progress.path), name_width)}"
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)

    def show_text(self, text: str) -> None:
        """Show a text instead of a bar, for work whose total is not known."""
        if self._is_visible:
            width = shutil.get_terminal_size().columns - 1
            line = _shorten(escape_controls(text), width)
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Erase the line, so that another line can be printed."""
        if self._is_visible:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def human_size(size_bytes: int | None) -> str:
    """Return a size in decimal units, for example `5.6 GB`; `?` for None."""
    if size_bytes is None:
        return "?"
    if size_bytes < 1000:  # noqa: PLR2004 - bytes have no decimals
        return f"{size_bytes} B"
    value = float(size_bytes)
    for unit in _UNITS:
        # Not 1000: 999.5 and more is printed as 1000, so it gets the next unit.
        if value < 999.5 or unit == _UNITS[-1]:  # noqa: PLR2004
            break
        value /= 1000
    return f"{value:.1f} {unit}" if value < 99.95 else f"{value:.0f} {unit}"  # noqa: PLR2004


def human_disk_usage(disk_bytes: int, size_bytes: int) -> str:
    """Return the sum of the sizes, and the bytes on the disk if they read differently."""
    on_disk, sizes = human_size(disk_bytes), human_size(size_bytes)
    return sizes if on_disk == sizes else f"{sizes}, {on_disk} on the disk"


def text_bar(fraction: float) -> str:
    """Draw a fraction as a bar. A fraction above 0 has at least one character."""
    return "█" * max(round(fraction * _BAR_WIDTH), fraction > 0)


def human_time(moment: datetime | None) -> str:
    """Return a time in UTC to the minute; `?` for None."""
    if moment is None:
        return "?"
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(" ", timespec="minutes")


def pluralize(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun: `1 model`, `2 models`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def print_json(value: Any) -> None:
    """Print one JSON document in ASCII."""
    print(json.dumps(value, indent=2))


def print_tsv(names: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a header and one line for each row; None is an empty field."""
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
    Print a table. The columns named in `right` are aligned to the right.

    If the terminal is too narrow, the columns named in `cut` are shortened in the middle, the first
    one first. In a pipe nothing is shortened.
    """
    cells = [[escape_controls(value) for value in row] for row in rows]
    widths = [
        max(_width(name), *(_width(row[index]) for row in cells), 0)
        for index, name in enumerate(names)
    ]
    if sys.stdout.isatty():
        excess = sum(widths) + 2 * (len(names) - 1) - shutil.get_terminal_size().columns
        for index in (names.index(name) for name in cut if name in names):
            removed = max(0, min(excess, widths[index] - _MIN_COLUMN_WIDTH))
            excess -= removed
            widths[index] -= removed
            for row in cells:
                row[index] = _shorten(row[index], widths[index])
    for row in [list(names), *cells]:
        line = "  ".join(
            _pad(value, width, align_right=name in right)
            for name, value, width in zip(names, row, widths, strict=True)
        )
        print(line.rstrip())


def _width(text: str) -> int:
    """Return how many terminal columns a text takes."""
    return sum(
        0
        if unicodedata.combining(character)
        else 2
        if unicodedata.east_asian_width(character) in _WIDE
        else 1
        for character in text
    )


def _pad(text: str, width: int, *, align_right: bool) -> str:
    padding = " " * (width - _width(text))
    return padding + text if align_right else text + padding


def _shorten(text: str, width: int) -> str:
    """Cut the middle out of a text, so that it fits into a number of terminal columns."""
    if _width(text) <= width:
        return text
    # The end of a name says more than its middle: the quantization is often there.
    tail = ""
    while _width(tail) < width // 2 - 1:
        tail = text[-len(tail) - 1] + tail
    head = ""
    while _width(head + text[len(head)]) + 1 + _width(tail) <= width:
        head += text[len(head)]
    return f"{head}…{tail}"
