"""Values of a comparison of a scan with the catalog: recorded models, findings, changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from model_catalog.domain.model_ref import ModelRef
from model_catalog.files.completeness.evidence import Completeness
from model_catalog.mapping.column_types import decode_path, decode_state, decode_timestamp
from model_catalog.stores.scan_result import ScanProblem
from model_catalog.upkeep.checks.file_status import is_mass_loss
from model_catalog.upkeep.inspection import recorded_completeness
from model_catalog.upkeep.queries.check_queries import CheckedModel, CheckResult
from model_catalog.upkeep.queries.store_sync_queries import (
    MODEL_COLUMNS,
    AliasKey,
    ModelKey,
    ModelToStore,
)


@dataclass(frozen=True, slots=True)
class StoreFinding:
    """
    A model of a store that is new, has changed, or is gone.

    `detail` says what has changed; for a new model, why it is incomplete.
    """

    ref: ModelRef
    local_path: str
    size_bytes: int | None
    detail: str = ""

    @property
    def key(self) -> ModelKey:
        """Provider, reference and version."""
        return self.ref.provider, self.ref.reference, self.ref.version or ""


@dataclass(slots=True)
class ScanChanges:
    """The rows to write for a scan, and the findings to report about them."""

    models_to_store: dict[ModelKey, ModelToStore] = field(default_factory=dict)
    check_results: list[CheckResult] = field(default_factory=list)
    alias_targets: dict[AliasKey, ModelKey] = field(default_factory=dict)
    removed_aliases: list[AliasKey] = field(default_factory=list)
    new: list[StoreFinding] = field(default_factory=list)
    changed: list[StoreFinding] = field(default_factory=list)
    gone: list[StoreFinding] = field(default_factory=list)
    unchanged: list[ModelRef] = field(default_factory=list)
    problems: list[ScanProblem] = field(default_factory=list)
    lost: dict[ModelKey, int] = field(default_factory=dict)
    """The ids of the models that were not missing before, and whose files do not exist now."""
    present_count: int = 0
    """The number of models of the store that were not missing before."""

    @property
    def is_mass_loss(self) -> bool:
        """Whether so many files do not exist that the disk may not be mounted."""
        return is_mass_loss(len(self.lost), self.present_count)

    def without_lost(self) -> ScanChanges:
        """Return the changes without those of the models whose files no longer exist."""
        lost_ids = set(self.lost.values())
        return replace(
            self,
            models_to_store={
                key: model for key, model in self.models_to_store.items() if key not in self.lost
            },
            check_results=[each for each in self.check_results if each.model.id not in lost_ids],
            changed=[each for each in self.changed if each.key not in self.lost],
            gone=[each for each in self.gone if each.key not in self.lost],
        )

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to write."""
        return not (self.models_to_store or self.check_results or self.removed_aliases)


@dataclass(slots=True)
class RecordedModel:
    """
    A recorded model with its files by path; `files` is None if they were never listed.

    Times are seconds since 1970, as they are stored.
    """

    id: int
    provider: str
    reference: str
    version: str
    local_path: str
    size_bytes: int | None
    state: str
    state_detail: str | None
    mount_point: str | None
    digest: str | None
    found_digest: str | None
    incomplete_reason: str | None
    unknown_reason: str | None
    listing_reason: str | None
    content_reason: str | None
    verified_at: int | None
    inventoried_at: int | None
    headers_read_at: int | None
    store: str | None
    store_root: str | None
    managed_root: str | None
    claimed_kind: str | None
    files: dict[str, Sequence[Any]] | None = None

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> RecordedModel:
        """Convert a row of MODEL_COLUMNS, which has raw column values."""
        values = dict(zip(MODEL_COLUMNS, row, strict=True))
        for name in ("local_path", "mount_point", "store_root", "managed_root"):
            values[name] = decode_path(values[name])
        values["local_path"] = values["local_path"] or ""
        return cls(**values, files=None if values["inventoried_at"] is None else {})

    @property
    def key(self) -> ModelKey:
        """Provider, reference and version."""
        return self.provider, self.reference, self.version

    def is_managed_at(self, path: str) -> bool:
        """Whether a path is in the folder in which the catalog may delete the model's files."""
        root = self.managed_root
        return root is not None and f"{path}/".startswith(f"{root.rstrip('/')}/")

    def leaves_managed_root(self, path: str) -> bool:
        """Whether the catalog may not delete the model's files any more if it is at this path."""
        return self.managed_root is not None and not self.is_managed_at(path)

    @property
    def is_own(self) -> bool:
        """Whether the user registered the model. A scan leaves it to the user."""
        return self.store is None

    @property
    def is_verified(self) -> bool:
        """Whether the files were read by a verification."""
        return self.verified_at is not None

    @property
    def headers_read_time(self) -> datetime | None:
        """When the headers were read, in UTC; None if they were not."""
        return None if self.headers_read_at is None else decode_timestamp(self.headers_read_at)

    @property
    def completeness(self) -> Completeness:
        """The recorded verdict. Its content was not read if no header was."""
        return recorded_completeness(
            self.listing_reason,
            self.content_reason,
            self.unknown_reason,
            has_content=self.headers_read_at is not None,
        )

    @property
    def checked_model(self) -> CheckedModel:
        """The values that a check needs, without the files."""
        return CheckedModel(
            self.id,
            self.local_path,
            self.size_bytes,
            decode_state(self.state),
            self.state_detail,
            self.mount_point,
            self.found_digest is not None,
        )

    @property
    def finding(self) -> StoreFinding:
        """A finding about this model, without a detail."""
        return StoreFinding(ModelRef(*self.key), self.local_path, self.size_bytes)
