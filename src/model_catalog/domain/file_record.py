"""What is recorded of a model's files: the words for it, and the values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Final

from model_catalog.errors import InvalidModelError
from model_catalog.files.digest import combine_digests

ROLES: Final = (
    "weights",
    "config",
    "tokenizer",
    "projector",
    "adapter",
    "template",
    "license",
    "other",
)
"""What a file may be for."""


class FileState(StrEnum):
    """What a look at the disk finds of a model's files, from their status alone."""

    UNCHECKED = "unchecked"
    """Nobody has looked since it was recorded."""
    PRESENT = "present"
    """All are there, and are the ones that were recorded as far as their status tells."""
    MISSING = "missing"
    """One at least is not there, and the disk is."""
    CHANGED = "changed"
    """One at least was written to, replaced or touched: a verification tells which it was."""
    OFFLINE = "offline"
    """Their disk is not mounted, or their folder not reachable: nothing is known of them."""
    UNREADABLE = "unreadable"
    """The system refuses to tell."""

    @property
    def is_as_recorded(self) -> bool:
        """Whether nothing speaks against what is recorded."""
        return self in {FileState.UNCHECKED, FileState.PRESENT}


LEFT_STORE: Final = "it is in its store no more, though its files are there"
"""Why a model is missing of which only the entry in a store's own book has gone."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """
    A file of a model: its path inside the model, with `/`, and what is known of its bytes.

    `digest` is the expected one, `found_digest` what was read instead; `fingerprint` tells the file
    that had it from another, and `hashed_at` is when its bytes were last read, in UTC.
    """

    path: str
    size_bytes: int
    role: str = "weights"
    digest: str | None = None
    found_digest: str | None = None
    fingerprint: str | None = None
    hashed_at: datetime | None = None

    @property
    def is_damaged(self) -> bool:
        """Whether its bytes were read and were not the expected ones."""
        return self.found_digest is not None


def sorted_by_path(files: Iterable[FileRecord]) -> list[FileRecord]:
    """By the bytes of their paths, as `LC_ALL=C sort` has them."""
    return sorted(files, key=lambda file: file.path.encode("utf-8", "surrogateescape"))


def merge_file_record(new: FileRecord, old: FileRecord | None) -> FileRecord:
    """
    What is recorded of a file that is listed again without having been read again.

    An expected digest outlives the new list unless another one comes with it, or the size is
    another; what was found when it was read is known as long as it is the same file.
    """
    if old is None or new.size_bytes != old.size_bytes:
        return new
    if new.digest is not None and new.digest != old.digest:
        return new
    kept = replace(new, digest=old.digest)
    if new.hashed_at is not None or new.fingerprint != old.fingerprint:
        return kept
    return replace(kept, found_digest=old.found_digest, hashed_at=old.hashed_at)


def expected_digest(files: Sequence[FileRecord]) -> str | None:
    """
    The digest that all files together should have; None where one of theirs is not known.

    None also where a name among several is one that `sha256sum` would write otherwise: no text of
    theirs is the text, and each file has its own digest all the same.
    """
    return _combined({file.path: file.digest for file in files})


def actual_digest(files: Sequence[FileRecord]) -> str | None:
    """The digest that all files together have, as far as they were read; else as expected."""
    return _combined({file.path: file.found_digest or file.digest for file in files})


def _combined(digests: Mapping[str, str | None]) -> str | None:
    known = {path: digest for path, digest in digests.items() if digest is not None}
    if not known or len(known) < len(digests):
        return None
    try:
        return combine_digests(known)
    except InvalidModelError:
        return None
