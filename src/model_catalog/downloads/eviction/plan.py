"""The values of an eviction: what is planned, what is kept and why, and what was deleted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import TypeAlias

from model_catalog.domain.model_ref import ModelRef
from model_catalog.downloads.eviction.model_record import ModelRecord
from model_catalog.downloads.states import Scope
from model_catalog.repository.model_catalog import ModelCatalog


class KeptReason(StrEnum):
    """Why a model is kept."""

    PINNED = "pinned"
    IN_USE = "in use"
    DOWNLOADING = "being downloaded"
    BEING_DELETED = "being deleted by another process"
    OTHER_STORE = "in the store of another program"
    UNKNOWN_OWNER = "not downloaded by the catalog"
    OTHER_PROVIDER = "of another provider"
    OTHER_DISK = "on another disk"
    USED_RECENTLY = "used recently"
    NOT_NEEDED = "not needed to reach the target"
    NO_FILE_LIST = "its files were never recorded"
    NOT_AS_RECORDED = "its files are not as recorded"
    OUTSIDE_ROOT = "its files are outside of its folder"
    SHARED = "its files are also those of a model that is kept"
    UNREADABLE = "its files cannot be deleted"
    CHANGED_SINCE = "changed since the plan was made"


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """
    A model to delete.

    `freed_bytes` are the bytes on the disk that its deletion frees, after that of the models before
    it in the plan. A file that several models of the plan share counts for the last of them.
    """

    record: ModelRecord = field(repr=False)
    """Its row when the plan was made."""
    ref: ModelRef
    local_path: str
    root: str
    """The folder in which its files may be deleted."""
    freed_bytes: int

    @property
    def used_at(self) -> datetime | None:
        """The time of its last use, or of its download if no use is recorded; None if unknown."""
        return self.record.used_at

    @property
    def is_unfinished(self) -> bool:
        """Whether a process was killed while it deleted the model. The plan deletes the rest."""
        return self.record.is_being_deleted

    @property
    def is_owned(self) -> bool:
        """Whether the catalog has downloaded it. If not, the user has named it."""
        return self.record.managed_root is not None


@dataclass(frozen=True, slots=True)
class KeptModel:
    """A model that is not deleted, and why. `detail` has more of the reason, or is empty."""

    id: int
    ref: ModelRef
    reason: KeptReason
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.ref}: {self.reason}" + (f" ({self.detail})" if self.detail else "")


@dataclass(frozen=True, slots=True)
class EvictedModel:
    """A model that was deleted, and the bytes on the disk that this has freed."""

    ref: ModelRef
    local_path: str
    freed_bytes: int


@dataclass(frozen=True, slots=True)
class EvictionResult:
    """The models that were deleted, and those of the plan that were kept after all."""

    evicted: tuple[EvictedModel, ...]
    kept: tuple[KeptModel, ...]
    freed_bytes: int
    """The bytes on the disk that were freed, also of models whose deletion failed halfway."""


OnEviction: TypeAlias = Callable[[EvictedModel | KeptModel, "EvictionPlan"], object]
"""Called in the event loop after each model of a plan, with its outcome and the plan."""


@dataclass(frozen=True, slots=True)
class EvictionPlan:
    """
    The models to delete in this order, and the models to keep.

    Unfinished deletions come first, then the least recently used model. Bytes are those on the
    disk, as `du` counts them, without folders.
    """

    models: tuple[PlannedModel, ...]
    kept: tuple[KeptModel, ...]
    shortfall_bytes: int = 0
    """The bytes that are missing from the target after the plan; 0 if it is reached."""
    scope: Scope = "host"
    """Whose disk the files are on; see `plan_eviction`."""

    @property
    def freed_bytes(self) -> int:
        """The bytes on the disk that the plan frees."""
        return sum(model.freed_bytes for model in self.models)

    @property
    def kept_counts(self) -> dict[KeptReason, int]:
        """The number of kept models by reason, the most frequent one first."""
        return dict(Counter(model.reason for model in self.kept).most_common())

    async def execute(
        self,
        catalog: ModelCatalog,
        *,
        delete_files: bool = True,
        on_progress: OnEviction | None = None,
    ) -> EvictionResult:
        """
        Delete the models of the plan: their files and their records.

        Every condition is checked again for each model. A model that no longer meets them is kept
        whole, and the result says why. With `delete_files=False` only the records are deleted.

        If the process is killed, the next plan begins with the model whose deletion was not
        finished. Raises CatalogError if the catalog cannot be written, and TransactionError in a
        transaction, because a rollback would not bring the files back.
        """
        # Imported here because that module imports this one.
        from model_catalog.downloads.eviction.execution import execute_plan  # noqa: PLC0415

        return await execute_plan(catalog, self, delete_files=delete_files, on_progress=on_progress)
