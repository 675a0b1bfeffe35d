"""How work on the disk is kept off the event loop: in threads that stop when they are asked to."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

from model_catalog.concurrency.threads import to_thread
from model_catalog.files.safe_open import file_identity

T = TypeVar("T")

Stop: TypeAlias = Callable[[], bool]

_BETWEEN_S: Final = 0.1

_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[int, asyncio.Lock]] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the reading of bytes has come: of all that is to be read, and in which file."""

    path: str
    done_bytes: int
    total_bytes: int


OnProgress: TypeAlias = Callable[[Progress], object]


async def run_in_thread(work: Callable[[Stop], T]) -> T:
    """What `work` returns, from a thread; it is given a function that tells whether to stop."""
    cancelled = threading.Event()
    try:
        return await to_thread(work, cancelled.is_set)
    finally:
        # A thread cannot be cancelled: it is asked to stop.
        cancelled.set()


@asynccontextmanager
async def device_lock(device: int) -> AsyncIterator[None]:
    """One reader of whole files on a disk at a time: two read no faster, and a hard disk slower."""
    turns = _turns.setdefault(asyncio.get_running_loop(), {})
    async with turns.setdefault(device, asyncio.Lock()):
        yield


def device_of(path: str) -> int:
    """The number of the disk on which a path lies, links followed; -1 for what is not there."""
    try:
        return os.stat(path).st_dev
    except (OSError, ValueError):
        return -1


def file_identities(paths: Iterable[Path]) -> set[tuple[int, int]]:
    """What the files that are there are told by, links followed."""
    found = set()
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            found.add(file_identity(path.stat()))
    return found


class Meter:
    """Counts bytes in threads, and tells the event loop of them ten times a second."""

    def __init__(self, on_progress: OnProgress | None, total_bytes: int) -> None:
        self._on_progress = on_progress
        self._loop = asyncio.get_running_loop()
        self._told_at = 0.0
        # Several disks are read at the same time, by a thread each.
        self._lock = threading.Lock()
        self.total_bytes = total_bytes
        self.done_bytes = 0

    def of(self, path: str) -> Callable[[int], None] | None:
        """The counter of one file, which is told how many of its bytes were read."""
        if self._on_progress is None:
            return None
        counted = 0

        def count(read_bytes: int) -> None:
            nonlocal counted
            more, counted = read_bytes - counted, read_bytes
            self.add(more, path)

        return count

    def add(self, size_bytes: int, path: str) -> None:
        """Count bytes of a file that were read, or need not be."""
        with self._lock:
            self.done_bytes += size_bytes
            self._tell(path)

    def expect(self, more_bytes: int, path: str) -> None:
        """Count on so many bytes more than before, or less where the number is negative."""
        with self._lock:
            self.total_bytes += more_bytes
            if more_bytes:
                self._tell(path)

    def _tell(self, path: str) -> None:
        if self._on_progress is None:
            return
        now = time.monotonic()
        if now - self._told_at < _BETWEEN_S and self.done_bytes != self.total_bytes:
            return
        self._told_at = now
        progress = Progress(path, self.done_bytes, max(self.total_bytes, self.done_bytes))
        # A loop that is closed has nobody left who would want to know.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._on_progress, progress)
