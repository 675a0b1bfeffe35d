"""What a call costs of the processor and of memory, for what has to be read at a bounded cost."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

MAX_SECONDS: Final = 2.0
MAX_BYTES: Final = 40 * 2**20
"""Of the 64 MiB a process may take the interpreter has taken the rest."""

_RESET_PEAK: Final = "5"


@contextmanager
def bounded() -> Iterator[None]:
    """Raise AssertionError where the block took more."""
    # What atheris has instrumented takes several times as long.
    allowed_s = MAX_SECONDS * (5 if "atheris" in sys.modules else 1)
    Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
    before, began = _peak_bytes(), time.thread_time()
    try:
        yield
    finally:
        took_s, took_bytes = time.thread_time() - began, _peak_bytes() - before
        assert took_s < allowed_s, f"it took {took_s:.1f} s of the processor"
        assert took_bytes < MAX_BYTES, f"it took {took_bytes / 2**20:.0f} MiB"


def _peak_bytes() -> int:
    status = Path("/proc/self/status").read_bytes()
    return int(status.partition(b"VmHWM:")[2].split(maxsplit=1)[0]) * 1024
