"""The files of a model in a store, beside those that are recorded of it: nothing is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeAlias

from model_catalog.domain.file_record import FileRecord, FileState, merge_file_record
from model_catalog.domain.file_validation import validate_files
from model_catalog.mapping.column_types import decode_path
from model_catalog.repository.operations.store_sync_queries import FILE_COLUMNS
from model_catalog.stores.scan_result import FoundModel, StoreFile

Rows: TypeAlias = Mapping[str, Sequence[Any]]
"""The recorded files of a model by their paths: FILE_COLUMNS of each, as they are stored."""


def stored_state(found: FoundModel, touched: Sequence[str]) -> tuple[FileState, str | None]:
    """What the status of a model's files says of it, as a check would."""
    if found.local_path != found.folder and not any(
        f"{found.folder}/{file.path}" == found.local_path for file in found.files
    ):
        return FileState.MISSING, f"{found.local_path!r} is not there"
    if touched:
        more = f" and {len(touched) - 1} more" if len(touched) > 1 else ""
        detail = f"{touched[0]!r} was written to, replaced or touched"
        return FileState.CHANGED, detail + more
    return FileState.PRESENT, None


_SIZE, _ROLE, _DIGEST, _PRINT = (
    FILE_COLUMNS.index(name) for name in ("size_bytes", "role", "digest", "fingerprint")
)


def compare_files(found: FoundModel, known: Rows | None) -> tuple[list[str], bool]:
    """Which files were touched since they were recorded, and whether all else is as it was."""
    touched: list[str] = []
    if known is None or len(found.files) != len(known):
        return touched, False
    for file in found.files:
        row = known.get(file.path)
        if row is None or row[_SIZE] != file.size_bytes or row[_ROLE] != file.role:
            return touched, False
        digest = row[_DIGEST]
        if file.digest is not None and file.digest != digest:
            return touched, False
        if row[_PRINT] != str(file.fingerprint):
            if digest is None or row[_PRINT] is None:
                return touched, False
            touched.append(file.path)
    return touched, True


def merge_file_list(found: FoundModel, known: Rows | None) -> tuple[list[FileRecord], list[str]]:
    """The files as they are to be recorded, and which were touched. Raises InvalidModelError."""
    new = [_record(file) for file in found.files]
    old = known or {}
    files = validate_files("files", [_kept(file, _recorded(old.get(file.path))) for file in new])
    pairs = zip(files, new, strict=True)
    return files, [file.path for file, now in pairs if file.fingerprint != now.fingerprint]


def _record(file: StoreFile) -> FileRecord:
    return FileRecord(
        file.path, file.size_bytes, file.role, file.digest, fingerprint=str(file.fingerprint)
    )


def _recorded(row: Sequence[Any] | None) -> FileRecord | None:
    if row is None:
        return None
    values: Mapping[str, Any] = dict(zip(FILE_COLUMNS, row, strict=True))
    at = values["hashed_at"]
    return FileRecord(
        decode_path(values["path"]) or "",
        values["size_bytes"],
        values["role"],
        values["digest"],
        values["found_digest"],
        values["fingerprint"],
        None if at is None else datetime.fromtimestamp(at, UTC),
    )


def _kept(new: FileRecord, old: FileRecord | None) -> FileRecord:
    """
    What is recorded of a file that was found again.

    Where its bytes have an expected digest, and may be others by now, the file that had it is not
    forgotten: a check goes on to call it changed until somebody has read it.
    """
    if (
        old is None
        or old.digest is None
        or old.fingerprint in {None, new.fingerprint}
        or old.size_bytes != new.size_bytes
        or new.digest not in {None, old.digest}
    ):
        return merge_file_record(new, old)
    return replace(old, role=new.role)
