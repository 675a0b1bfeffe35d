"""When Python looks for garbage: not while a long list is built."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_lock: Final = threading.Lock()
_builders = 0
_was_enabled = False


@contextmanager
def gc_paused() -> Iterator[None]:
    """
    A block in which the process looks for no garbage, in any thread.

    Every look goes through all that is there, over and over while the list grows: of a list of
    100,000 models that is half the time. It is looked for again once the last such block has ended.
    """
    global _builders, _was_enabled  # noqa: PLW0603 - it is the process's own, as gc is
    with _lock:
        if _builders == 0:
            _was_enabled = gc.isenabled()
            gc.disable()
        _builders += 1
    try:
        yield
    finally:
        with _lock:
            _builders -= 1
            if _builders == 0 and _was_enabled:
                gc.enable()
