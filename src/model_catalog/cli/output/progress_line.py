"""Draws a line of progress with `rich`."""

from __future__ import annotations

import sys
from typing import Final

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column
from rich.text import Text

from model_catalog.cli.output.terminal_tables import shorten

_BAR_WIDTH: Final = 20
_NARROW_BAR_WIDTH: Final = 10
_NARROW: Final = 60
"""On a terminal below this width the line has a short bar, and no amounts."""


class ProgressLine:
    """A line at the bottom of the terminal, which is erased when it is stopped."""

    def __init__(self) -> None:
        self._console = Console(file=sys.stderr, force_terminal=True, highlight=False)
        self._bar_width = _BAR_WIDTH if self._is_wide else _NARROW_BAR_WIDTH
        self._progress: Progress | None = None
        self._kind = ""
        self._task = TaskID(0)

    @property
    def _is_wide(self) -> bool:
        return self._console.width >= _NARROW

    def show_bytes(self, done_bytes: int, total_bytes: int, text: str) -> None:
        """Show a number of bytes, with the rate and the remaining time."""
        amount = [DownloadColumn()] if self._is_wide else []
        self._show(
            "bytes",
            [*self._bar(), *amount, TransferSpeedColumn(), _remaining(), _TextColumn()],
            done_bytes,
            # The total is 0 as long as it is not known.
            total_bytes or None,
            text,
        )

    def show_count(self, done: int, total: int | None, text: str) -> None:
        """Show a number of things, with the rate and the remaining time if the total is known."""
        if total is None:
            columns = [self._pulse(), _CountColumn(), _RateColumn(), _TextColumn()]
            self._show("unlimited count", columns, done, None, text)
            return
        amount = [_CountColumn()] if self._is_wide else []
        columns = [*self._bar(), *amount, _RateColumn(), _remaining(), _TextColumn()]
        self._show("count", columns, done, total, text)

    def show_text(self, text: str) -> None:
        """Show a text with the elapsed time."""
        self._show("text", [self._pulse(), TimeElapsedColumn(), _TextColumn()], 0, None, text)

    def start(self) -> None:
        """Draw the line again."""
        if self._progress is not None:
            self._progress.start()

    def stop(self) -> None:
        """Erase the line, and show the cursor."""
        if self._progress is not None:
            self._progress.stop()

    def _pulse(self) -> ProgressColumn:
        return BarColumn(self._bar_width)

    def _bar(self) -> list[ProgressColumn]:
        return [BarColumn(self._bar_width), TaskProgressColumn()]

    def _show(
        self, kind: str, columns: list[ProgressColumn], done: int, total: int | None, text: str
    ) -> None:
        if self._progress is None or kind != self._kind:
            self.stop()
            self._kind = kind
            # Standard output is not redirected: its lines would go to standard error.
            self._progress = Progress(
                *columns,
                console=self._console,
                transient=True,
                expand=True,
                redirect_stdout=False,
            )
            self._task = self._progress.add_task("", total=total)
            self._progress.start()
        self._progress.update(self._task, completed=done, total=total, description=text)


def _remaining() -> ProgressColumn:
    return TimeRemainingColumn(compact=True)


class _CountColumn(ProgressColumn):
    """The number of things that were done, and their total."""

    def render(self, task: Task) -> Text:
        total = "" if task.total is None else f" of {task.total:,.0f}"
        return Text(f"{task.completed:,.0f}{total}", style="progress.download")


class _RateColumn(ProgressColumn):
    """The number of things a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s", style="progress.data.speed")


class _TextColumn(TextColumn):
    """A description of the work, shortened in the middle to fit into the rest of the line."""

    def __init__(self) -> None:
        super().__init__("", table_column=Column(ratio=1, no_wrap=True))

    def render(self, task: Task) -> _Shortened:  # type: ignore[override]
        return _Shortened(task.description)


class _Shortened:
    def __init__(self, text: str) -> None:
        self._text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(shorten(self._text, options.max_width), no_wrap=True)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        # The other columns are never made smaller for it.
        return Measurement(0, 0)
