"""What was read of a file, held against what is recorded of it, and which are still to be read."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from model_catalog.domain.file_record import FileRecord
from model_catalog.files.digest import HashedFile
from model_catalog.files.fingerprint import Fingerprint, is_settled
from model_catalog.files.safe_open import stat_path
from model_catalog.upkeep.inspection import InspectedFiles, read_time

NOT_COMPARED: Final = (
    "its digest is that of no list that sha256sum prints, for it escapes a name among its files: "
    "each of them was compared with its own"
)

_NEVER: Final = datetime.min.replace(tzinfo=UTC)


def files_to_read(
    files: list[FileRecord], verified_at: datetime | None, root: str
) -> list[FileRecord]:
    """Those still to be read, the longest unread first: a pass may have ended among them."""
    left = [file for file in files if not _was_read_since(file, verified_at, root)]
    return sorted(left or files, key=lambda file: (file.hashed_at or _NEVER, file.path))


def _was_read_since(file: FileRecord, verified_at: datetime | None, root: str) -> bool:
    """Whether a pass that did not come to its end has read these very bytes."""
    if file.hashed_at is None or (verified_at is not None and file.hashed_at <= verified_at):
        return False
    try:
        now = Fingerprint.from_stat(stat_path(os.path.join(root, file.path)))
    except OSError:
        return False
    # Of other bytes than the expected ones no fingerprint is kept: their age has to tell.
    is_known = file.is_damaged or str(now) == file.fingerprint
    return is_known and is_settled(now, int(file.hashed_at.timestamp()) * 1_000_000_000)


def compare_reading(file: FileRecord, reading: HashedFile) -> FileRecord:
    """A file with what was read of it beside what is expected, which is the first that was read."""
    other = file.digest not in (None, reading.digest)
    return replace(
        file,
        digest=file.digest or reading.digest,
        found_digest=reading.digest if other else None,
        # That of other bytes would let the file pass for the one that was recorded.
        fingerprint=file.fingerprint if other else str(reading.fingerprint),
        hashed_at=read_time(reading),
    )


def actual_model_digest(found: str | None, files: list[FileRecord]) -> str | None:
    """What is said of a damaged model; of files that no list is printed of the first damaged."""
    return found or next((file.found_digest for file in files if file.is_damaged), None)


def file_records(inspected: InspectedFiles, digest: str | None) -> list[FileRecord]:
    """The files of a model of which none were known; a single one has the model's digest."""
    if len(inspected.files) == 1:
        return [replace(inspected.files[0], digest=digest)]
    return inspected.files


def join_names(paths: list[str]) -> str:
    """What is told of the files that are damaged, of which the first is named."""
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"{paths[0]!r}{more} has other bytes than were recorded"
