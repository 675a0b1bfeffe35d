"""Compare the digests that were read with the recorded ones, and choose the files to read next."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from model_catalog.domain.file_record import FileRecord
from model_catalog.files.digest import HashedFile
from model_catalog.files.fingerprint import Fingerprint, is_settled
from model_catalog.files.safe_open import stat_path
from model_catalog.upkeep.inspection import InspectedFiles, hash_time

NOT_COMPARED: Final = (
    "the model's digest was not compared: a file name contains a character that sha256sum escapes, "
    "so no list of sha256sum has that digest; each file was compared with its own digest"
)

_NEVER: Final = datetime.min.replace(tzinfo=UTC)


def files_to_read(
    files: list[FileRecord], verified_at: datetime | None, root: str
) -> list[FileRecord]:
    """
    Return the files that are still to be read, the one read longest ago first.

    An earlier pass may have ended before it had read all of them.
    """
    unread = [file for file in files if not _was_read_since(file, verified_at, root)]
    return sorted(unread or files, key=lambda file: (file.hashed_at or _NEVER, file.path))


def _was_read_since(file: FileRecord, verified_at: datetime | None, root: str) -> bool:
    """Whether an unfinished pass has read this file with its present content."""
    if file.hashed_at is None or (verified_at is not None and file.hashed_at <= verified_at):
        return False
    try:
        now = Fingerprint.from_stat(stat_path(os.path.join(root, file.path)))
    except OSError:
        return False
    # The fingerprint of a damaged file is not recorded. Its age alone decides.
    is_same = file.is_damaged or str(now) == file.fingerprint
    return is_same and is_settled(now, int(file.hashed_at.timestamp()) * 1_000_000_000)


def compare_digest(file: FileRecord, hashed: HashedFile) -> FileRecord:
    """
    Return a file record with the digest that was read.

    A first digest becomes the expected one, unless the bytes do not have the Git blob id that the
    store names. A different digest is recorded as the found one. The size is that which was read,
    if the digest is right: a pointer of Git LFS may have named the digest before.
    """
    is_first = file.digest is None
    differs = hashed.has_blob_id is False if is_first else file.digest != hashed.digest
    return replace(
        file,
        size_bytes=file.size_bytes if differs else hashed.fingerprint.size_bytes,
        digest=hashed.digest if is_first and not differs else file.digest,
        found_digest=hashed.digest if differs else None,
        # With the fingerprint of the other content, the file would pass for the recorded one.
        fingerprint=file.fingerprint if differs else str(hashed.fingerprint),
        hashed_at=hash_time(hashed),
    )


def with_pointers(files: Sequence[FileRecord], inspected: InspectedFiles) -> list[FileRecord]:
    """Return the files of a model. Pointers of Git LFS have the digests that they name."""
    pointers = inspected.described.pointers
    return [
        replace(file, digest=file.digest or pointers[file.path], found_digest=None)
        if file.path in pointers
        else file
        for file in files
    ]


def found_model_digest(digest: str | None, files: list[FileRecord]) -> str | None:
    """
    Return the digest to record as the found one of a damaged model.

    A model whose file names cannot be combined into one digest has that of its first damaged file.
    """
    return digest or next((file.found_digest for file in files if file.is_damaged), None)


def first_file_records(inspected: InspectedFiles, digest: str | None) -> list[FileRecord]:
    """Return the files of a model without recorded files. A single file has the model's digest."""
    if len(inspected.files) == 1:
        return [replace(inspected.files[0], digest=digest)]
    return inspected.files


def describe_mismatch(files: Sequence[FileRecord]) -> str:
    """
    Return a message about files that are not as recorded. Names the first.

    A damaged file without an expected digest does not match the name of its blob.
    """
    path = files[0].path
    if all(file.digest is None for file in files):
        if len(files) == 1:
            return f"{path!r} does not match the name of its blob"
        return f"{path!r} and {len(files) - 1} more do not match the names of their blobs"
    if len(files) == 1:
        return f"{path!r} does not match its recorded digest"
    return f"{path!r} and {len(files) - 1} more do not match their recorded digests"
