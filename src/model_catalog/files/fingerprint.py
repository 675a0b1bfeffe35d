"""What tells, without reading a file, that it is still the one that was read."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Final

from model_catalog.errors import InvalidModelError
from model_catalog.files.safe_open import ProtectedFiles, StrPath, require_regular_file

TIMESTAMP_RESOLUTION_NS: Final = 2_000_000_000
"""How coarse the time stamps of a file system may be: those of FAT are 2 s apart."""

_FINGERPRINT_TEXT: Final = re.compile(r":".join([r"(-?[0-9]{1,20})"] * 4))


@dataclass(frozen=True)
class Fingerprint:
    """
    What changes when a file does. Its text is the four numbers with colons between them.

    The device is no part of it: the number of a removable disk, or of a ZFS data set, is another
    after the next mount. The time of change (ctime) is, for nobody can set it back.
    """

    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def from_stat(cls, found: os.stat_result) -> Fingerprint:
        """The fingerprint in what the system says of a file."""
        return cls(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)

    @classmethod
    def parse(cls, text: str) -> Fingerprint:
        """Read back what `str()` wrote; InvalidModelError for any other text."""
        match = _FINGERPRINT_TEXT.fullmatch(text)
        found = None if match is None else cls(*map(int, match.groups()))
        if found is None or str(found) != text:
            raise InvalidModelError(
                "fingerprint", text, "is none: give size:mtime:ctime:inode, as str() writes it"
            )
        return found

    def __str__(self) -> str:
        return f"{self.size_bytes}:{self.mtime_ns}:{self.ctime_ns}:{self.inode}"


def fingerprint_text(found: os.stat_result) -> str:
    """The text of the fingerprint in what the system says of a file, made without the rest."""
    return f"{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}:{found.st_ino}"


def file_fingerprint(path: StrPath, *, protected: ProtectedFiles = ()) -> Fingerprint:
    """
    The fingerprint of a file, links followed; nothing is opened.

    Raises NotAFileError, ProtectedFileError, and OSError as the system gave it.
    """
    return Fingerprint.from_stat(require_regular_file(path, protected))


def is_settled(found: Fingerprint, hashed_at_ns: int) -> bool:
    """
    Whether a file that still has this fingerprint still has the bytes that were hashed.

    `hashed_at_ns` is when the hashing began. A file written less than 2 s before may have been
    written again with the same stamps: only hashing it again tells.
    """
    return hashed_at_ns - max(found.mtime_ns, found.ctime_ns) > TIMESTAMP_RESOLUTION_NS
