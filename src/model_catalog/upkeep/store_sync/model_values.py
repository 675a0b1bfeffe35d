"""Build the column values to record for a model that a scan found in a store."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from model_catalog.domain import fields, validation
from model_catalog.domain.fields import KEY_FIELDS
from model_catalog.domain.file_record import FileRecord, FileState, expected_digest
from model_catalog.domain.search_text import fold_case
from model_catalog.stores.scan_result import FoundModel
from model_catalog.upkeep.inspection import completeness_values
from model_catalog.upkeep.queries.store_sync_queries import ModelKey
from model_catalog.upkeep.store_sync.file_list_comparison import merge_file_list, state_of_found
from model_catalog.upkeep.store_sync.model_disks import ModelDisks
from model_catalog.upkeep.store_sync.scan_changes import RecordedModel
from model_catalog.upkeep.verification.digest_comparison import found_model_digest


@dataclass(frozen=True, slots=True)
class ScanContext:
    """Values that all models of one scan share: the store, its root and disks, and the time."""

    store: str
    root: str
    disks: ModelDisks
    now: datetime

    def state_values(
        self, state: FileState, detail: str | None, mount_point: str | None
    ) -> dict[str, Any]:
        """Return the columns of a model's state."""
        return {
            "state": state,
            "state_detail": detail,
            "checked_at": self.now,
            "missing_since": self.now if state is FileState.MISSING else None,
            "mount_point": mount_point,
        }

    def all_values(
        self, key: ModelKey, found: FoundModel, recorded: RecordedModel | None
    ) -> tuple[dict[str, Any], list[FileRecord]]:
        """
        Return all columns and files that a scan sets for a model; `recorded` is None for a new one.

        Raises InvalidModelError.
        """
        files, changed = merge_file_list(found, None if recorded is None else recorded.files)
        digest = expected_digest(files)
        is_damaged = any(file.is_damaged for file in files)
        if digest is None and recorded is not None and recorded.size_bytes == found.size_bytes:
            digest = recorded.digest
        claims = {f"claimed_{name}": getattr(found.claims, name) for name in fields.HEADER_FIELDS}
        claims["claimed_kind"] = found.kind
        unchecked = {
            "local_path": found.local_path,
            "size_bytes": found.size_bytes,
            "downloaded_at": found.downloaded_at or self.now,
            "digest": digest,
            **claims,
        }
        values = {
            name: fields.UPDATABLE_FIELDS[name](name, value) for name, value in unchecked.items()
        }
        values |= {
            **dict.fromkeys(fields.INSPECTION_FIELDS),
            **self.state_values(*state_of_found(found, changed), self.disks.mount_point_of(found)),
            "found_digest": found_model_digest(None, files) if is_damaged else None,
            "inventoried_at": self.now,
            **completeness_values(found.completeness),
            "store": self.store,
            "store_root": validation.path("store_root", self.root),
        }
        if recorded is not None and recorded.leaves_managed_root(found.local_path):
            values["managed_root"] = None
        if recorded is not None and recorded.is_own:
            for name in ("store", "store_root", "downloaded_at"):
                del values[name]
        if recorded is None:
            fields.validate_model(
                {**dict(zip(KEY_FIELDS, key, strict=True)), "local_path": found.local_path}
            )
            values["reference_folded"] = fold_case(key[1])
            values["source_url"] = validation.url("source_url", found.source_url)
        return values, files
