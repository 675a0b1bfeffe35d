"""Run disk work in threads that can be stopped, with progress reports and a lock per disk."""

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
from typing import TypeAlias, TypeVar
from weakref import WeakKeyDictionary

from model_catalog.concurrency.ownership import running_loop
from model_catalog.concurrency.threads import REPORT_INTERVAL_S, to_thread
from model_catalog.files.safe_open import file_identity

T = TypeVar("T")

Stop: TypeAlias = Callable[[], bool]
"""Returns True once the caller was cancelled; the work in the thread should then end."""


_device_locks: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[int, asyncio.Lock]] = (
    WeakKeyDictionary()
)


@dataclass(frozen=True, slots=True)
class Progress:
    """How many bytes were read, how many there are in total, and which file is being read."""

    path: str
    done_bytes: int
    total_bytes: int


OnProgress: TypeAlias = Callable[[Progress], object]


async def run_in_thread(work: Callable[[Stop], T]) -> T:
    """
    Run `work` in a thread and return its result.

    `work` gets a function that returns True when the waiting task was cancelled.
    """
    cancelled = threading.Event()
    try:
        return await to_thread(work, cancelled.is_set)
    finally:
        # A thread cannot be cancelled; the event asks it to stop.
        cancelled.set()


@asynccontextmanager
async def device_lock(device: int) -> AsyncIterator[None]:
    """
    Lock a disk, so that one task of this event loop at a time reads whole files from it.

    Two parallel readers are not faster than one, and slower on a hard disk.
    """
    locks = _device_locks.setdefault(running_loop(), {})
    async with locks.setdefault(device, asyncio.Lock()):
        yield


def device_of(path: str) -> int:
    """Return the device number of a path (`st_dev`), following links; -1 if it does not exist."""
    try:
        return os.stat(path).st_dev
    except (OSError, ValueError):
        return -1


def file_identities(paths: Iterable[Path]) -> set[tuple[int, int]]:
    """Return the device and inode numbers of the files that exist, following links."""
    found = set()
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            found.add(file_identity(path.stat()))
    return found


class ProgressMeter:
    """
    Counts bytes in worker threads, and reports the count to the event loop ten times a second.

    Several threads may use one meter, because several disks are read at the same time.
    """

    def __init__(self, on_progress: OnProgress | None, total_bytes: int) -> None:
        self._on_progress = on_progress
        self._loop = running_loop()
        self._reported_at = 0.0
        self._lock = threading.Lock()
        self.total_bytes = total_bytes
        self.done_bytes = 0

    def counter(self, path: str) -> Callable[[int], None] | None:
        """
        Return a function that takes the number of bytes of one file that were read so far.

        None if the caller did not pass `on_progress`.
        """
        if self._on_progress is None:
            return None
        counted_bytes = 0

        def count(read_bytes: int) -> None:
            nonlocal counted_bytes
            more_bytes, counted_bytes = read_bytes - counted_bytes, read_bytes
            self.add(more_bytes, path)

        return count

    def add(self, size_bytes: int, path: str) -> None:
        """Count bytes of a file as done: they were read, or do not have to be read."""
        with self._lock:
            self.done_bytes += size_bytes
            self._report(path)

    def adjust_total(self, more_bytes: int, path: str) -> None:
        """Add a number of bytes to the total; a negative number reduces it."""
        with self._lock:
            self.total_bytes += more_bytes
            if more_bytes:
                self._report(path)

    def _report(self, path: str) -> None:
        if self._on_progress is None:
            return
        now = time.monotonic()
        if now - self._reported_at < REPORT_INTERVAL_S and self.done_bytes != self.total_bytes:
            return
        self._reported_at = now
        progress = Progress(path, self.done_bytes, max(self.total_bytes, self.done_bytes))
        # RuntimeError: the event loop is closed, so no task is waiting for the report.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._on_progress, progress)
