"""How much of the disk a verification may read, and for how long."""

from __future__ import annotations

import time


class ReadBudget:
    """Bytes and seconds that are left; None where there is no end to them."""

    def __init__(self, max_bytes: int | None, max_seconds: float | None) -> None:
        self._left_bytes = max_bytes
        self._until = None if max_seconds is None else time.monotonic() + max_seconds
        self._began = False
        self.is_over = False

    def take(self, size_bytes: int) -> bool:
        """Whether so many bytes may still be read; the first file may in any case."""
        if self._began and not self._allows(size_bytes):
            self.is_over = True
            return False
        self._began = True
        if self._left_bytes is not None:
            self._left_bytes -= size_bytes
        return True

    def give_back(self, size_bytes: int) -> None:
        """
        Bytes that were taken for a file that could not be read to its end, and were not read.

        Such a file is no first one: else the same would be tried first by each pass, and nothing
        behind it would ever be read.
        """
        self._began = False
        if self._left_bytes is not None:
            self._left_bytes += size_bytes

    def _allows(self, size_bytes: int) -> bool:
        if self._until is not None and time.monotonic() >= self._until:
            return False
        return self._left_bytes is None or size_bytes <= self._left_bytes
