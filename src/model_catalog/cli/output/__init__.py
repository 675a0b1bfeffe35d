"""Print results as text, tables, JSON and TSV."""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import IO, Any, Final

# Unicode categories of control, format (including bidi and zero-width), surrogate, private-use,
# unassigned and line-ending characters. In a file name they could control the terminal.
_UNSAFE: Final = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
_WIDE: Final = {"W", "F"}
"""The East Asian widths of characters that take two columns."""


_DUMB: Final = {"dumb", "unknown"}
"""The values of TERM for terminals that cannot move the cursor."""


def is_terminal(stream: IO[str] | None) -> bool:
    """Return whether a stream is a terminal that can move the cursor."""
    if stream is None or os.environ.get("TERM", "").lower() in _DUMB:
        return False
    return stream.isatty()


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
    bars: Sequence[float] = (),
) -> None:
    """
    Print a table. The columns named in `right` are aligned to the right.

    On a terminal, the table fits its width: the columns named in `cut` are shortened in the middle,
    the first one first. `bars` are fractions, drawn behind the first rows. In a pipe, nothing is
    shortened, and no bars are drawn.
    """
    cells = [[escape_controls(value) for value in row] for row in rows]
    if is_terminal(sys.stdout):
        try:
            from model_catalog.cli.output.terminal_tables import draw_table  # noqa: PLC0415
        except ImportError:
            print_notice("to fit tables into the terminal: pip install 'model-catalog[cli]'")
        else:
            draw_table(names, cells, right=right, cut=cut, bars=bars)
            return
    _print_plain_table(names, cells, right=right)


def _print_plain_table(
    names: Sequence[str], cells: Sequence[Sequence[str]], *, right: Sequence[str]
) -> None:
    # Not by rich, which takes longer for a thousand rows than the whole command does.
    widths = [
        max(_width(name), *(_width(row[index]) for row in cells), 0)
        for index, name in enumerate(names)
    ]
    for row in [names, *cells]:
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
