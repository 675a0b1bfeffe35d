"""File fingerprints: detect from stat() alone that a file has changed since it was hashed."""

from __future__ import annotations

import os
import re
from typing import Final, NamedTuple

from model_catalog.errors import InvalidModelError
from model_catalog.files.safe_open import ProtectedFiles, StrPath, require_regular_file

TIMESTAMP_RESOLUTION_NS: Final = 2_000_000_000
"""The coarsest resolution of time stamps on a file system: FAT stores them in steps of 2 s."""

_FINGERPRINT_TEXT: Final = re.compile(r":".join([r"(-?[0-9]{1,20})"] * 4))


# A tuple, because a scan creates one for each file: a frozen dataclass takes three times as long.
class Fingerprint(NamedTuple):
    """
    The size, time stamps and inode of a file, which change when the file changes.

    `str()` writes the four numbers separated by colons. The device number is not included: on a
    removable disk or a ZFS data set it can differ after the next mount. The change time (ctime) is
    included because a program cannot set it back.
    """

    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def from_stat(cls, status: os.stat_result) -> Fingerprint:
        """Return the fingerprint in a stat() result."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)

    @classmethod
    def parse(cls, text: str) -> Fingerprint:
        """Parse the output of `str()`. Raises InvalidModelError for any other text."""
        match = _FINGERPRINT_TEXT.fullmatch(text)
        parsed = None if match is None else cls(*map(int, match.groups()))
        if parsed is None or str(parsed) != text:
            raise InvalidModelError(
                "fingerprint", text, "is invalid: use size:mtime:ctime:inode, as str() writes it"
            )
        return parsed

    def __str__(self) -> str:
        return f"{self.size_bytes}:{self.mtime_ns}:{self.ctime_ns}:{self.inode}"


def fingerprint_text(status: os.stat_result) -> str:
    """Return `str(Fingerprint.from_stat(status))` without creating a Fingerprint."""
    return f"{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}:{status.st_ino}"


def file_fingerprint(path: StrPath, *, protected: ProtectedFiles = ()) -> Fingerprint:
    """
    Return the fingerprint of a file. Links are followed, and nothing is opened.

    Raises NotAFileError, ProtectedFileError, and OSError as the system reports it.
    """
    return Fingerprint.from_stat(require_regular_file(path, protected))


def is_settled(fingerprint: Fingerprint, hashed_at_ns: int) -> bool:
    """
    Return whether a file that still has this fingerprint still has the bytes that were hashed.

    `hashed_at_ns` is the time when the hashing began. If the file was written less than 2 s before
    that, another write may have left the same time stamps. Only a new hash can tell then.
    """
    changed_at_ns = max(fingerprint.mtime_ns, fingerprint.ctime_ns)
    return hashed_at_ns - changed_at_ns > TIMESTAMP_RESOLUTION_NS
