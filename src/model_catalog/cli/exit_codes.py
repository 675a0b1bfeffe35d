"""Exit codes of the command line."""

from __future__ import annotations

from typing import Final

DONE: Final = 0
FAILED: Final = 1
"""Not found, declined or not possible."""
MISUSED: Final = 2
"""An argument is not valid. argparse uses the same code."""
NOT_AS_RECORDED: Final = 3
"""A file differs from the catalog."""
INTERRUPTED: Final = 130
"""Stopped by Ctrl-C: 128 and the number of SIGINT, as shells report it."""
TERMINATED: Final = 143
"""Stopped by SIGTERM: 128 and the number of the signal."""
