"""Closes the SQLite connections of a process before it is forked.

SQLite keeps the locks of a file in the memory of the process. A forked child inherits that memory,
and not the locks. A connection that it opens to the same file would take no lock that says that the
file is in use. When the parent closes its last connection, it then deletes the write-ahead log, to
which the child goes on writing: https://www.sqlite.org/howtocorrupt.html#_carrying_an_open_database_connection_across_a_fork_
"""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol
from weakref import WeakSet

from model_catalog.errors import CatalogUnavailableError

_FORK_WAIT_S: Final = 2.0
"""How long a fork waits for batches that run in other threads, in seconds."""

_FORKED: Final = (
    "this process was forked while its parent had the file open, in a transaction or over another "
    "engine, so SQLite does not lock it here"
)
_WAY_OUT: Final = (
    "fork outside transactions, dispose of other engines before the fork, or start the process by "
    "`spawn` or `forkserver`"
)

log = logging.getLogger("model_catalog.connection")

_DESCRIPTORS: Final = Path("/proc/self/fd")


class ClosesForFork(Protocol):
    """An owner of a SQLite connection that it can open again."""

    fork_lock: threading.RLock
    """Held by the thread that uses the connection, while it does."""

    def close_for_fork(self) -> None:
        """Close the connection, unless a transaction is open. Called with `fork_lock` held."""


_owners: Final[WeakSet[ClosesForFork]] = WeakSet()
_locked: Final[list[threading.RLock]] = []
_inherited: Final[set[tuple[int, int]]] = set()


def close_before_forks(owner: ClosesForFork) -> None:
    """
    Close the connection of `owner` before each fork of this process.

    A fork waits two seconds at most for the batches of other threads. A connection that is in use
    after that, or has a transaction open, stays open; see `require_not_inherited`.
    """
    _owners.add(owner)


def require_not_inherited(path: Path, name: str) -> None:
    """Raise CatalogUnavailableError if a parent had a file open when it forked this process."""
    if _is_inherited(path):
        raise CatalogUnavailableError(name, f"{_FORKED}: {_WAY_OUT}")


def warn_if_inherited(path: Path, name: str) -> None:
    """Log a warning if a parent had a file open when it forked this process."""
    if _is_inherited(path):
        log.warning(
            "the catalog at %s may lose writes in process %d: %s. To avoid it: %s",
            name,
            os.getpid(),
            _FORKED,
            _WAY_OUT,
            extra={"model_catalog_url": name},
        )


def _is_inherited(path: Path) -> bool:
    with suppress(OSError):
        status = path.stat()
        return (status.st_dev, status.st_ino) in _inherited
    return False


def _before_fork() -> None:
    deadline = time.monotonic() + _FORK_WAIT_S
    for owner in list(_owners):
        if owner.fork_lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            _locked.append(owner.fork_lock)
            owner.close_for_fork()


def _after_fork() -> None:
    while _locked:
        _locked.pop().release()


def _after_fork_in_child() -> None:
    _after_fork()
    _inherited.clear()
    with suppress(OSError):
        for descriptor in os.listdir(_DESCRIPTORS):  # noqa: PTH208 - it is faster than a Path each
            # The descriptor of the folder itself is closed by now.
            with suppress(OSError):
                status = os.fstat(int(descriptor))
                _inherited.add((status.st_dev, status.st_ino))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork,
        after_in_child=_after_fork_in_child,
    )
