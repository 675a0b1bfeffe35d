"""On which disk a path lies, by where that is mounted."""

from __future__ import annotations

import os

from model_catalog.files.safe_open import StrPath


def mount_point(path: StrPath) -> str:
    """
    Where the file system is mounted on which a path lies, links followed; `/` at the end of all.

    Of what is not there, the one it would lie on. Nothing is opened and no error is raised.
    """
    place = os.path.realpath(path)
    while not os.path.ismount(place):
        place = os.path.dirname(place)
    return place


def is_mount_point(path: StrPath) -> bool:
    """Whether something is mounted there: an empty folder is what is left of a disk that is not."""
    return os.path.ismount(path)
