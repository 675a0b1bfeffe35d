"""Progress on a terminal: a line of `rich` on standard error, which is erased at the end."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Self

from model_catalog.cli.output import escape_controls, is_terminal

if TYPE_CHECKING:
    # Not at run time: upkeep imports SQLAlchemy, which `--help` does not need, and rich takes 50 ms
    # to import, which a command without progress does not need.
    from model_catalog.cli.output.progress_line import ProgressLine
    from model_catalog.upkeep import Progress

_DELAY_S: Final = 0.3


class ProgressBar:
    """
    The progress of a block, on standard error.

    Prints nothing if standard error is not a terminal, or if `rich` is not installed. A message
    that is printed to standard error meanwhile appears above the line. With `text`, a block that
    takes longer than a third of a second shows this text and the elapsed time. With `stdout_too`,
    the block writes to standard output, so nothing is shown if that is a terminal.
    """

    def __init__(self, text: str | None = None, *, stdout_too: bool = False) -> None:
        self._text = text
        self._timer: asyncio.TimerHandle | None = None
        is_shared = stdout_too and is_terminal(sys.stdout)
        self._is_possible = is_terminal(sys.stderr) and not is_shared
        self._line: ProgressLine | None = None

    def __enter__(self) -> Self:
        if self._text is not None and self._is_possible:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_DELAY_S, self.show_text, self._text)
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._line is not None:
            self._line.stop()
        # A report of a thread may come after the block.
        self._is_possible = False

    def show(self, progress: Progress) -> None:
        """Show the bytes that were read, and the name of the file that is being read."""
        if line := self._open():
            line.show_bytes(
                progress.done_bytes, progress.total_bytes, escape_controls(progress.path)
            )

    def show_count(self, done: int, total: int | None, text: str) -> None:
        """Show the number of things that were done; `total` is None if it is not known."""
        if line := self._open():
            line.show_count(done, total, escape_controls(text))

    def show_text(self, text: str) -> None:
        """Show a text and the elapsed time, for work that cannot be counted."""
        if line := self._open():
            line.show_text(escape_controls(text))

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Erase the line while the block prints to standard output."""
        if self._line is not None:
            self._line.stop()
        yield
        if self._line is not None:
            self._line.start()

    def _open(self) -> ProgressLine | None:
        """Return the line, which appears with the first progress; None if there is none."""
        if self._timer is not None:
            self._timer.cancel()
        if self._is_possible and self._line is None:
            try:
                from model_catalog.cli.output.progress_line import ProgressLine  # noqa: PLC0415
            except ImportError:
                self._is_possible = False
                return None
            self._line = ProgressLine()
        return self._line if self._is_possible else None
