"""Compare the files that a scan found in a store with the recorded files. No file is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple, TypeAlias

from model_catalog.domain.file_record import FileRecord, FileState, merge_file_record
from model_catalog.domain.file_validation import validate_files
from model_catalog.files.file_names import WEIGHT_ROLES
from model_catalog.files.safe_open import format_file_id
from model_catalog.mapping.column_types import decode_path, decode_timestamp
from model_catalog.stores.scan_result import FoundModel, StoreFile
from model_catalog.upkeep.checks.file_status import describe_absence, describe_changed_files
from model_catalog.upkeep.queries.store_sync_queries import FILE_COLUMNS

FileRows: TypeAlias = Mapping[str, Sequence[Any]]
"""The recorded files of a model by path: FILE_COLUMNS of each, as raw column values."""

_SIZE: Final = FILE_COLUMNS.index("size_bytes")
_ROLE: Final = FILE_COLUMNS.index("role")
_DIGEST: Final = FILE_COLUMNS.index("digest")
_FINGERPRINT: Final = FILE_COLUMNS.index("fingerprint")
_FILE_ID: Final = FILE_COLUMNS.index("file_id")
_DISK_BYTES: Final = FILE_COLUMNS.index("disk_bytes")


def state_of_found(found: FoundModel, changed: Sequence[str]) -> tuple[FileState, str | None]:
    """Return the state and detail that a check would record; `changed` are the changed files."""
    if found.local_path != found.folder and not any(
        f"{found.folder}/{file.path}" == found.local_path for file in found.files
    ):
        return FileState.MISSING, describe_absence(found.local_path)
    if changed:
        return FileState.CHANGED, describe_changed_files(changed)
    return FileState.PRESENT, None


class FileComparison(NamedTuple):
    """How the files that a scan found differ from the recorded ones."""

    is_same_list: bool
    """False if the list of files is to be recorded again. The other values are then incomplete."""
    changed: Sequence[str] = ()
    """The paths of the files whose fingerprint has changed."""
    has_same_facts: bool = True
    """
    Whether the roles, the identities and the bytes on the disk are those recorded.

    A newer release may give a file another role, by its name, and read the digest that a pointer of
    Git LFS names. The other two can change although a file does not: a device gets another number
    when it is mounted again, and a file system may reserve blocks that it frees later.
    """


def compare_files(found: FoundModel, recorded: FileRows | None) -> FileComparison:
    """Compare the files of a model with the recorded ones; None if these were never listed."""
    other_list = FileComparison(is_same_list=False)
    if recorded is None or len(found.files) != len(recorded):
        return other_list
    changed: list[str] = []
    has_same_facts = True
    for file in found.files:
        row = recorded.get(file.path)
        if row is None or row[_SIZE] != file.size_bytes:
            return other_list
        digest = row[_DIGEST]
        if file.digest is not None and file.digest != digest:
            return other_list
        if row[_FINGERPRINT] != str(file.fingerprint):
            if digest is None or row[_FINGERPRINT] is None:
                return other_list
            changed.append(file.path)
        has_same_facts = (
            has_same_facts
            and row[_ROLE] == file.role
            and row[_DISK_BYTES] == file.disk_bytes
            and row[_FILE_ID] == format_file_id(file.identity)
        )
    return FileComparison(is_same_list=True, changed=changed, has_same_facts=has_same_facts)


def has_same_weights(found: FoundModel, recorded: FileRows | None) -> bool:
    """Return whether the files with tensors are the recorded ones, with the same fingerprints."""
    if recorded is None:
        return False
    weights = {
        path: row[_FINGERPRINT] for path, row in recorded.items() if row[_ROLE] in WEIGHT_ROLES
    }
    found_weights = {
        file.path: str(file.fingerprint) for file in found.files if file.role in WEIGHT_ROLES
    }
    return weights == found_weights


def merge_file_list(
    found: FoundModel, recorded: FileRows | None
) -> tuple[list[FileRecord], list[str]]:
    """
    Return the files to record, and the paths of those that keep an older fingerprint.

    Raises InvalidModelError.
    """
    new_files = [_new_record(file) for file in found.files]
    rows = recorded or {}
    files = validate_files(
        "files", [_merge(file, _recorded_file(rows.get(file.path))) for file in new_files]
    )
    pairs = zip(files, new_files, strict=True)
    return files, [file.path for file, new in pairs if file.fingerprint != new.fingerprint]


def _new_record(file: StoreFile) -> FileRecord:
    return FileRecord(
        file.path,
        file.size_bytes,
        file.role,
        file.digest,
        fingerprint=str(file.fingerprint),
        file_id=format_file_id(file.identity),
        disk_bytes=file.disk_bytes,
    )


def _recorded_file(row: Sequence[Any] | None) -> FileRecord | None:
    if row is None:
        return None
    values: Mapping[str, Any] = dict(zip(FILE_COLUMNS, row, strict=True))
    hashed_at = values["hashed_at"]
    return FileRecord(
        decode_path(values["path"]) or "",
        values["size_bytes"],
        values["role"],
        values["digest"],
        values["found_digest"],
        values["fingerprint"],
        None if hashed_at is None else decode_timestamp(hashed_at),
        values["file_id"],
        values["disk_bytes"],
    )


def _merge(new: FileRecord, old: FileRecord | None) -> FileRecord:
    """
    Return the record of a file that was found again.

    If a file with an expected digest has another fingerprint, its content may have changed. The old
    fingerprint then stays, so that checks report the file as changed until it is read again.
    """
    if (
        old is None
        or old.digest is None
        or old.fingerprint in {None, new.fingerprint}
        or old.size_bytes != new.size_bytes
        or new.digest not in {None, old.digest}
    ):
        return merge_file_record(new, old)
    return replace(old, role=new.role, file_id=new.file_id, disk_bytes=new.disk_bytes)
