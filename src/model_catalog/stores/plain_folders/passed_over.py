"""Count the files of a plain folder that are not those of a model."""

from __future__ import annotations

import os

from model_catalog.files.safe_open import disk_bytes, file_identity, non_regular_kind
from model_catalog.stores.scan_result import PassedOver, StoreFile


class PassedOverCounter:
    """Counts files, and the bytes that they have and take on the disk."""

    def __init__(self) -> None:
        self._file_count = self._size_bytes = self._disk_bytes = 0
        self._linked: set[tuple[int, int]] = set()

    def add(self, entry: os.DirEntry[str]) -> None:
        """Count a file. Links, other kinds, and what cannot be read, are ignored."""
        try:
            status = entry.stat(follow_symlinks=False)
        except OSError:
            return
        identity = file_identity(status)
        if non_regular_kind(status) is not None or identity in self._linked:
            return
        if status.st_nlink > 1:
            self._linked.add(identity)
        self._count(status.st_size, disk_bytes(status))

    def add_file(self, file: StoreFile) -> None:
        """Count a file in the folder of a model that is split, and that no part has."""
        if file.identity not in self._linked:
            self._linked.add(file.identity)
            self._count(file.size_bytes, file.disk_bytes or 0)

    def _count(self, size_bytes: int, used_bytes: int) -> None:
        self._file_count += 1
        self._size_bytes += size_bytes
        self._disk_bytes += used_bytes

    @property
    def total(self) -> PassedOver:
        """All files that were counted."""
        return PassedOver(self._file_count, self._size_bytes, self._disk_bytes)
