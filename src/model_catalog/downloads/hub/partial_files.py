"""Delete the partial files that a killed download has left in a cache of huggingface_hub."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Collection
from typing import Final

_PARTIAL: Final = re.compile(r"(?P<blob>[0-9a-f]{40}|[0-9a-f]{64})\.[0-9a-f]{8}\.incomplete")


def delete_partial_files(cache: str, repository: str, blobs: Collection[str]) -> None:
    """
    Delete the partial files of some blobs, unless a program downloads them now.

    huggingface_hub 2.4 gives the partial file of each attempt a random name: it neither continues
    nor deletes that of a killed process. While it downloads a blob it holds a lock on a file, which
    the system releases when the process ends. What cannot be locked or deleted stays.
    """
    locks = os.path.join(cache, ".locks", os.path.basename(repository))
    with contextlib.suppress(OSError):
        for name in os.listdir(os.path.join(repository, "blobs")):
            match = _PARTIAL.fullmatch(name)
            if match is None or match["blob"] not in blobs:
                continue
            with contextlib.suppress(OSError):
                _delete_unless_locked(
                    os.path.join(repository, "blobs", name),
                    os.path.join(locks, f"{match['blob']}.lock"),
                )


def _delete_unless_locked(path: str, lock: str) -> None:
    """Delete a file under the lock of its blob. Raises OSError if another process has the lock."""
    descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    finally:
        os.close(descriptor)
