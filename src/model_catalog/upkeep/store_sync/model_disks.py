"""Find the disk of a model that a scan found: links may lead to another disk than the store's."""

from __future__ import annotations

from contextlib import suppress

from model_catalog.files.mounts import mount_point
from model_catalog.files.safe_open import stat_path
from model_catalog.stores.scan_result import FoundModel


class ModelDisks:
    """Caches the mount points of the disks that have files of one store."""

    def __init__(self, root: str) -> None:
        self._root_mount = mount_point(root)
        self._mounts: dict[int, str] = {}
        # An OSError: the root does not exist, so the scan has found nothing.
        with suppress(OSError):
            self._mounts[stat_path(root).st_dev] = self._root_mount

    def mount_point_of(self, found: FoundModel) -> str:
        """
        Return the mount point of the disk without which a model has no files.

        With files on two disks, that is the disk that links lead to, because the root of a store is
        also checked. The root file system is always mounted.
        """
        for file in found.files:
            device = file.identity[0]
            if device not in self._mounts:
                self._mounts[device] = mount_point(f"{found.folder}/{file.path}")
            if (mount := self._mounts[device]) not in {self._root_mount, "/"}:
                return mount
        return self._root_mount
