"""Mount points: find the file system that contains a path."""

from __future__ import annotations

import os

from model_catalog.files.safe_open import StrPath


def mount_point(path: StrPath) -> str:
    """
    Return the mount point of the file system that contains a path. Links are followed.

    For a path that does not exist, the result is the mount point of the file system that would
    contain it. The search ends at `/`. Nothing is opened, and no error is raised.
    """
    folder = os.path.realpath(path)
    while not os.path.ismount(folder):
        folder = os.path.dirname(folder)
    return folder


def is_mount_point(path: StrPath) -> bool:
    """Return whether a file system is mounted at a path. An unmounted disk leaves only a folder."""
    return os.path.ismount(path)
