"""Draws tables that fit a terminal. It needs `rich`; pipes get the plain table."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from rich.bar import Bar
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

_GAP: Final = 2
_CUT_WIDTH: Final = 10
_MIN_CUT_WIDTH: Final = 8
"""A column that may be cut is cut to this width if the words of the others were wrapped before."""
_BAR_WIDTH: Final = 20
_MIN_BAR_WIDTH: Final = 5

_Columns = Mapping[str, Sequence[str]]
"""The cells of each column, by the name of the column."""


def draw_table(
    names: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[str],
    cut: Sequence[str],
    bars: Sequence[float],
) -> None:
    """
    Print a table to standard output, which must be a terminal.

    If it is too wide, the columns named in `cut` are shortened in the middle, the first one first.
    Then the words of the other columns are wrapped. A terminal that is still too narrow gets one
    line for each value. `bars` are fractions, which are drawn behind the first rows if there is
    room. The texts must have no control characters; nothing in them is markup.
    """
    console = Console(file=sys.stdout, force_terminal=True, highlight=False)
    header = "" if console.no_color else "bold"
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    # Before version 15, Rich adds the gap behind the last column too.
    widths = _fit(columns, console.width - _GAP, right=right, cut=cut)
    if widths is None:
        for number, row in enumerate(rows):
            if number:
                console.print()
            console.print(_record(names, row, header))
        return
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style=header)
    for name, width in widths.items():
        is_cut = name in cut
        table.add_column(
            Text(name),
            justify="right" if name in right else "left",
            width=width,
            # Rich takes a tenth of the time for a column that it need not wrap.
            no_wrap=is_cut or width >= max(map(cell_len, columns[name])),
        )
    room = console.width - sum(widths.values()) - _GAP * len(widths)
    bar_width = min(_BAR_WIDTH, room)
    if bars and bar_width >= _MIN_BAR_WIDTH:
        table.add_column("", width=bar_width)
    else:
        bars = ()
    for number, row in enumerate(rows):
        cells: list[RenderableType] = [
            Text(shorten(cell, widths[name]) if name in cut else cell)
            for name, cell in zip(names, row, strict=True)
        ]
        if number < len(bars):
            cells.append(Bar(1, 0, bars[number], width=bar_width))
        table.add_row(*cells)
    console.print(table)


def _fit(
    columns: _Columns, available: int, *, right: Sequence[str], cut: Sequence[str]
) -> dict[str, int] | None:
    """Return the widths of columns that fit into a number of characters; None if they cannot."""
    widths = {name: max(map(cell_len, (name, *column))) for name, column in columns.items()}
    excess = sum(widths.values()) + _GAP * (len(widths) - 1) - available
    cut = [name for name in cut if name in columns]
    wrapped = [name for name in columns if name not in cut and name not in right]
    limits = [
        *((name, _CUT_WIDTH) for name in cut),
        *((name, _longest_word((name, *columns[name]))) for name in wrapped),
        *((name, _MIN_CUT_WIDTH) for name in cut),
    ]
    for name, limit in limits:
        removed = max(0, min(excess, widths[name] - limit))
        widths[name] -= removed
        excess -= removed
    return None if excess > 0 else widths


def _longest_word(texts: Iterable[str]) -> int:
    return max((cell_len(word) for text in texts for word in text.split()), default=0)


def _record(names: Sequence[str], row: Sequence[str], header: str) -> Table:
    """Return one row as lines with a name and a value; empty values are left out."""
    table = Table.grid(padding=(0, _GAP, 0, 0))
    table.add_column(style=header, no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in zip(names, row, strict=True):
        if value:
            table.add_row(Text(name), Text(value))
    return table


def shorten(text: str, width: int) -> str:
    """Cut the middle out of a text, so that it fits into a number of characters of a terminal."""
    if cell_len(text) <= width:
        return text
    # The end of a name says more than its middle: the quantization is often there.
    tail = ""
    while cell_len(tail) < width // 2 - 1:
        tail = text[-len(tail) - 1] + tail
    head = ""
    while cell_len(head + text[len(head)]) + 1 + cell_len(tail) <= width:
        head += text[len(head)]
    return f"{head}…{tail}"
