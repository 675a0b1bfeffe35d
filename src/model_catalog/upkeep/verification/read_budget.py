"""Limit how many bytes a verification reads, and for how long."""

from __future__ import annotations

import time


class ReadBudget:
    """The bytes and seconds that remain for reading. None means no limit."""

    def __init__(self, max_bytes: int | None, max_seconds: float | None) -> None:
        self._remaining_bytes = max_bytes
        self._deadline = None if max_seconds is None else time.monotonic() + max_seconds
        self._has_started = False
        self.is_exhausted = False

    def try_take(self, size_bytes: int) -> bool:
        """
        Take the bytes of a file from the budget, and return whether the file may be read.

        The first file may always be read.
        """
        if self._has_started and not self._is_within_limits(size_bytes):
            self.is_exhausted = True
            return False
        self._has_started = True
        if self._remaining_bytes is not None:
            self._remaining_bytes -= size_bytes
        return True

    def give_back(self, size_bytes: int) -> None:
        """
        Return the unread bytes of a file that could not be read completely.

        Such a file does not count as the first one. Otherwise every pass would try the same
        unreadable file first, and never read the files after it.
        """
        self._has_started = False
        if self._remaining_bytes is not None:
            self._remaining_bytes += size_bytes

    def _is_within_limits(self, size_bytes: int) -> bool:
        if self._deadline is not None and time.monotonic() >= self._deadline:
            return False
        return self._remaining_bytes is None or size_bytes <= self._remaining_bytes
