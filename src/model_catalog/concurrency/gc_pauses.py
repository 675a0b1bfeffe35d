"""Pauses Python's collector of reference cycles while many objects are made that all stay."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Final

_gc_lock: Final = Lock()
_gc_pauses = 0
_gc_was_enabled = False


@contextmanager
def gc_paused() -> Iterator[None]:
    """
    Disable `gc`, Python's collector of reference cycles, for the block and all threads.

    Blocks may overlap: the collector is enabled again when the last one has ended.
    """
    # While a long list grows, the collector traverses all of it again and again. For a list of
    # 100,000 models that is half of the time.
    global _gc_pauses, _gc_was_enabled  # noqa: PLW0603 - gc is global to the process
    with _gc_lock:
        if _gc_pauses == 0:
            _gc_was_enabled = gc.isenabled()
            gc.disable()
        _gc_pauses += 1
    try:
        yield
    finally:
        with _gc_lock:
            _gc_pauses -= 1
            if _gc_pauses == 0 and _gc_was_enabled:
                gc.enable()
