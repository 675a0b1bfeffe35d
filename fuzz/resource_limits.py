"""Limits on the processor time and memory of one call, for input that must be cheap to reject."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

MAX_SECONDS: Final = 2.0
MAX_BYTES: Final = 40 * 2**20
"""A process may use 64 MiB; the interpreter uses the other 24."""

_RESET_PEAK: Final = "5"


@contextmanager
def limited_resources() -> Iterator[None]:
    """Raise AssertionError if the block uses more processor time or memory than allowed."""
    # Code that atheris has instrumented takes several times as long.
    max_s = MAX_SECONDS * (5 if "atheris" in sys.modules else 1)
    Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
    bytes_before, start_s = _peak_bytes(), time.thread_time()
    try:
        yield
    finally:
        used_s, used_bytes = time.thread_time() - start_s, _peak_bytes() - bytes_before
        assert used_s < max_s, f"it used {used_s:.1f} s of processor time"
        assert used_bytes < MAX_BYTES, f"it used {used_bytes / 2**20:.0f} MiB"


def _peak_bytes() -> int:
    status = Path("/proc/self/status").read_bytes()
    return int(status.partition(b"VmHWM:")[2].split(maxsplit=1)[0]) * 1024
