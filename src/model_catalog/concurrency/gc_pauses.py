"""Pauses Python's collector of reference cycles while many objects are made that all stay."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Final

# A collection of as many takes about 10 ms. With each short list garbage would be promoted too, and
# would stay until the next full collection.
_MANY_OBJECTS: Final = 20_000

_gc_lock: Final = Lock()
_gc_pauses = 0
_gc_was_enabled = False
_NEVER: Final = 2**30
_full_pauses = 0
_thresholds = (0, 0, 0)


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
                _promote_new_objects()
                gc.enable()


def _promote_new_objects() -> None:
    """
    Move many new objects to the oldest generation, as if they had survived some collections.

    The next object would start a collection, in which all threads wait: 0.2 s for 100,000 models.
    """
    # A program that has frozen objects itself keeps them frozen.
    if gc.get_count()[0] > _MANY_OBJECTS and not gc.get_freeze_count():
        gc.freeze()
        gc.unfreeze()


@contextmanager
def full_collections_paused() -> Iterator[None]:
    """
    Let `gc` collect only young objects for the block and all threads.

    A full collection of a program that has imported SQLAlchemy takes 50 ms, in which all threads
    wait. A call that makes and drops many objects would cause one again and again.
    """
    global _full_pauses, _thresholds  # noqa: PLW0603 - gc is global to the process
    with _gc_lock:
        if _full_pauses == 0:
            _thresholds = gc.get_threshold()
            gc.set_threshold(*_thresholds[:2], _NEVER)
        _full_pauses += 1
    try:
        yield
    finally:
        with _gc_lock:
            _full_pauses -= 1
            # Unless the program has set thresholds meanwhile.
            if _full_pauses == 0 and gc.get_threshold() == (*_thresholds[:2], _NEVER):
                gc.set_threshold(*_thresholds)
