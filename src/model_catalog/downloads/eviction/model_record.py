"""The recorded facts of a model on which its deletion depends."""

from __future__ import annotations

import os
from datetime import datetime
from typing import NamedTuple

from model_catalog.domain.file_record import BEING_DELETED, FileState
from model_catalog.domain.model_ref import ModelRef


class ModelRecord(NamedTuple):
    """The recorded facts of a model on which its deletion depends: columns of its row."""

    id: int
    provider: str
    reference: str
    version: str
    local_path: str
    size_bytes: int | None
    state: FileState
    state_detail: str | None
    missing_since: datetime | None
    mount_point: str | None
    inventoried_at: datetime | None
    downloaded_at: datetime | None
    last_used_at: datetime | None
    pinned_at: datetime | None
    store: str | None
    managed_root: str | None

    @property
    def ref(self) -> ModelRef:
        """The name of the model."""
        return ModelRef(self.provider, self.reference, self.version)

    @property
    def used_at(self) -> datetime | None:
        """The time of the last use, or of the download if no use is recorded."""
        return self.last_used_at or self.downloaded_at

    @property
    def paths(self) -> list[str]:
        """The path, and the folders above it up to the one in which the catalog may delete."""
        paths = [self.local_path]
        root = self.managed_root or os.path.dirname(self.local_path)
        while paths[-1] not in (root, os.path.dirname(paths[-1])):
            paths.append(os.path.dirname(paths[-1]))
        return paths

    @property
    def is_being_deleted(self) -> bool:
        """Whether a deletion of the model has begun and not ended."""
        return self.state is FileState.MISSING and self.state_detail == BEING_DELETED
