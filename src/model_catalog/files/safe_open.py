"""How a model's file is opened: so that nothing hangs, and never the catalog's own database."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeAlias

from model_catalog.errors import BadHeaderError, NotAFileError, ProtectedFileError

StrPath: TypeAlias = str | os.PathLike[str]
ProtectedFiles: TypeAlias = Collection[tuple[int, int]]
"""The (st_dev, st_ino) of files that are not to be opened."""

# Without O_NONBLOCK the opening of a FIFO waits for somebody to write into it; without O_NOCTTY
# that of a terminal may make it this process's own.
_OPEN_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY

_NON_REGULAR_KINDS: Final = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@dataclass(frozen=True)
class OpenFile:
    """A regular file that is open for reading, and what its descriptor said of it at first."""

    path: str
    raw: io.FileIO
    status: os.stat_result

    @property
    def size_bytes(self) -> int:
        return self.status.st_size

    def read_at(self, offset: int, size_bytes: int) -> bytes:
        """Those bytes, as many as there are: fewer at the end of the file."""
        parts = []
        while size_bytes and (part := os.pread(self.raw.fileno(), size_bytes, offset)):
            parts.append(part)
            offset += len(part)
            size_bytes -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def header_error(self, reason: str) -> BadHeaderError:
        """The error for a header of this file."""
        return BadHeaderError(self.path, reason)


def stat_path(path: StrPath) -> os.stat_result:
    """
    What the system says of a path, links followed; nothing is opened.

    Raises OSError as the system gave it, and for a path that it cannot be given: EINVAL.
    """
    try:
        return os.stat(path)
    except ValueError as error:
        raise OSError(errno.EINVAL, str(error), os.fspath(path)) from error


def file_identity(found: os.stat_result) -> tuple[int, int]:
    """What a file is told by among those of this machine, at this moment."""
    return found.st_dev, found.st_ino


def non_regular_kind(found: os.stat_result) -> str | None:
    """In words what it is, where it is no regular file."""
    if stat.S_ISREG(found.st_mode):
        return None
    return _NON_REGULAR_KINDS.get(stat.S_IFMT(found.st_mode), "no regular file")


def errno_name(error: OSError) -> str:
    """What the system calls an error, as in `EACCES`."""
    return errno.errorcode.get(error.errno or 0, str(error))


def require_regular_file(path: StrPath, protected: ProtectedFiles = ()) -> os.stat_result:
    """
    What the system says of a regular file that may be opened.

    Raises NotAFileError, ProtectedFileError, and OSError as the system gave it.
    """
    found = stat_path(path)
    if file_identity(found) in protected:
        raise ProtectedFileError(os.fspath(path))
    if (what := non_regular_kind(found)) is not None:
        raise NotAFileError(os.fspath(path), what)
    return found


@contextmanager
def open_regular_file(path: StrPath, protected: ProtectedFiles = ()) -> Iterator[OpenFile]:
    """
    A regular file, open for reading.

    Raises NotAFileError and ProtectedFileError before anything is opened, and OSError as the
    system gave it.
    """
    require_regular_file(path, protected)
    descriptor = os.open(path, _OPEN_FLAGS)
    found = os.fstat(descriptor)
    if file_identity(found) in protected:
        # Somebody has put the database in the place of what was looked at. The harm is in the
        # closing, which drops every lock this process has on the file: it is left open.
        raise ProtectedFileError(os.fspath(path))
    with open(descriptor, "rb", buffering=0) as raw:
        if (what := non_regular_kind(found)) is not None:
            raise NotAFileError(os.fspath(path), what)
        yield OpenFile(os.fspath(path), raw, found)
