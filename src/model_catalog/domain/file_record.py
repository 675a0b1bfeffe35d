"""The record of a file of a model, and the states of a model's files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Final, get_args

from model_catalog.errors import InvalidModelError
from model_catalog.files.model_kind import Role

ROLES: Final = get_args(Role)
"""The roles that a file can have in a model."""


class FileState(StrEnum):
    """The state of a model's files, as a check found it from their status, without reading them."""

    UNCHECKED = "unchecked"
    """The files have not been checked since the model was recorded."""
    PRESENT = "present"
    """All files exist, and their status is the recorded one."""
    MISSING = "missing"
    """At least one file does not exist, and its disk is mounted."""
    CHANGED = "changed"
    """At least one file was written to, replaced or touched. A verification finds out which."""
    OFFLINE = "offline"
    """The disk is not mounted or the folder cannot be reached, so the state is not known."""
    UNREADABLE = "unreadable"
    """The system does not permit reading the status."""

    @property
    def is_as_recorded(self) -> bool:
        """Whether no check has contradicted the record."""
        return self in {FileState.UNCHECKED, FileState.PRESENT}


LEFT_STORE: Final = "the store no longer lists this model, but its files still exist"
"""The `state_detail` of a model whose store has removed only the entry, not the files."""

BEING_DELETED: Final = "its files are being deleted"
"""The `state_detail` of a model from the moment when its files may be deleted, until its row is."""

LEFT_STORE_0_1_0: Final = "it is in its store no more, though its files are there"
"""The text that release 0.1.0 recorded in its place."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """
    A file of a model: its path relative to the model, with `/`, its size, role and digests.

    `digest` is the expected digest. `found_digest` is the digest of other bytes that were read
    instead. `fingerprint` identifies the file that had that digest. `hashed_at` is the time at
    which its bytes were last read, in UTC.

    `file_id` is `st_dev:st_ino` of the file: it is equal for two names of one file. `disk_bytes`
    are the bytes that it takes on the disk. Both are facts of this machine at the time of the
    listing. They are not compared, and an export leaves them out.
    """

    path: str
    size_bytes: int
    role: str = "weights"
    digest: str | None = None
    found_digest: str | None = None
    fingerprint: str | None = None
    hashed_at: datetime | None = None
    file_id: str | None = field(default=None, compare=False)
    disk_bytes: int | None = field(default=None, compare=False)

    @property
    def is_damaged(self) -> bool:
        """Whether the bytes were read and were not the expected ones."""
        return self.found_digest is not None

    @property
    def may_be_pointer(self) -> bool:
        """Whether the digest may be that of other content, which a pointer of Git LFS names."""
        # Its patterns take 0.5 ms, and few processes need them.
        from model_catalog.files.formats.unread_formats import POINTER_BYTES  # noqa: PLC0415

        has_size = self.size_bytes in POINTER_BYTES
        return has_size and self.digest is not None and self.hashed_at is None


def sorted_by_path(files: Iterable[FileRecord]) -> list[FileRecord]:
    """Sort files by the bytes of their paths, as `LC_ALL=C sort` does."""
    return sorted(files, key=lambda file: file.path.encode("utf-8", "surrogateescape"))


def merge_file_record(new: FileRecord, old: FileRecord | None) -> FileRecord:
    """
    Return the record of a file that is listed again without being read again.

    The expected digest is kept unless the new record has another digest or another size. The digest
    that a pointer of Git LFS named is kept when its file has replaced it. The results of the last
    reading are kept while the fingerprint stays the same.
    """
    if old is None:
        return new
    if new.size_bytes != old.size_bytes:
        return replace(new, digest=new.digest or old.digest) if old.may_be_pointer else new
    if new.digest is not None and new.digest != old.digest:
        return new
    kept = replace(new, digest=old.digest)
    if new.hashed_at is not None or new.fingerprint != old.fingerprint:
        return kept
    return replace(kept, found_digest=old.found_digest, hashed_at=old.hashed_at)


def expected_digest(files: Sequence[FileRecord]) -> str | None:
    """
    Return the expected digest of the model; None if the digest of a file is not known.

    Also None if one of several files has a name that `sha256sum` escapes, because its versions
    escape differently. Each file still has its own digest.
    """
    return _combined({file.path: file.digest for file in files})


def actual_digest(files: Sequence[FileRecord]) -> str | None:
    """Return the digest of the model from the digests that were read, else the expected ones."""
    return _combined({file.path: file.found_digest or file.digest for file in files})


def _combined(digests: Mapping[str, str | None]) -> str | None:
    # The modules that read files take 3 ms to import. Most processes read none.
    from model_catalog.files.digest import combine_digests  # noqa: PLC0415

    known = {path: digest for path, digest in digests.items() if digest is not None}
    if not known or len(known) < len(digests):
        return None
    try:
        return combine_digests(known)
    except InvalidModelError:
        return None
