"""
Open model files safely: opening never blocks, and it never opens the catalog's own database.

The database is refused because SQLite's locks belong to the process: closing any descriptor of
the file drops them.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeAlias

from model_catalog.errors import BadHeaderError, HeaderLimitError, NotAFileError, ProtectedFileError

StrPath: TypeAlias = str | os.PathLike[str]
"""A path, as a text or as a path object."""

ProtectedFiles: TypeAlias = Collection[tuple[int, int]]
"""The (st_dev, st_ino) pairs of files that must not be opened."""

# Without O_NONBLOCK, opening a FIFO waits until another process writes to it. Without O_NOCTTY,
# opening a terminal can make it the controlling terminal of this process.
_OPEN_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY

_NON_REGULAR_KINDS: Final = {
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@dataclass(frozen=True)
class OpenFile:
    """A regular file that is open for reading. `status` is its fstat() result after opening."""

    path: str
    raw: io.FileIO
    status: os.stat_result

    @property
    def size_bytes(self) -> int:
        """The size of the file when it was opened."""
        return self.status.st_size

    def read_at(self, offset: int, size_bytes: int) -> bytes:
        """Read up to `size_bytes` bytes from an offset. Fewer are returned at the end of file."""
        parts = []
        while size_bytes and (part := os.pread(self.raw.fileno(), size_bytes, offset)):
            parts.append(part)
            offset += len(part)
            size_bytes -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def header_error(self, reason: str) -> BadHeaderError:
        """Return the error to raise for a bad header of this file."""
        return BadHeaderError(self.path, reason)

    def limit_error(self, reason: str) -> HeaderLimitError:
        """Return the error to raise if a header was not read because it exceeds a limit."""
        return HeaderLimitError(self.path, f"not read (limit): {reason}")


def stat_path(path: StrPath, *, follow_links: bool = True) -> os.stat_result:
    """
    Return the stat() result of a path, and nothing is opened. Links are followed by default.

    Raises OSError as the system reports it. A path that cannot be passed to the system, such as
    one with a NUL character, raises OSError with EINVAL.
    """
    try:
        return os.stat(path, follow_symlinks=follow_links)
    except ValueError as error:
        raise OSError(errno.EINVAL, str(error), os.fspath(path)) from error


def file_identity(status: os.stat_result) -> tuple[int, int]:
    """Return (st_dev, st_ino), which identifies a file on this machine until it is deleted."""
    return status.st_dev, status.st_ino


def disk_bytes(status: os.stat_result) -> int:
    """
    Return the bytes that a file takes on the disk, as `du` counts them.

    A sparse or compressed file takes less than its size. On a system without block counts the
    result is the size.
    """
    blocks: int | None = getattr(status, "st_blocks", None)
    # POSIX: st_blocks is in units of 512 bytes on Linux, macOS and the BSDs.
    return status.st_size if blocks is None else blocks * 512


def format_file_id(identity: tuple[int, int]) -> str:
    """Return (st_dev, st_ino) as the text that is stored: two numbers separated by a colon."""
    return f"{identity[0]}:{identity[1]}"


def non_regular_kind(status: os.stat_result) -> str | None:
    """Describe a file that is not a regular file, for example "a FIFO". None for a regular file."""
    if stat.S_ISREG(status.st_mode):
        return None
    return _NON_REGULAR_KINDS.get(stat.S_IFMT(status.st_mode), "not a regular file")


def errno_name(error: OSError) -> str:
    """Return the symbolic name of an error number, for example `EACCES`."""
    return errno.errorcode.get(error.errno or 0, str(error))


def require_regular_file(
    path: StrPath, protected: ProtectedFiles = (), *, follow_links: bool = True
) -> os.stat_result:
    """
    Return the stat() result of a regular file that may be opened. Links are followed by default.

    Raises NotAFileError, ProtectedFileError, and OSError as the system reports it.
    """
    status = stat_path(path, follow_links=follow_links)
    if file_identity(status) in protected:
        raise ProtectedFileError(os.fspath(path))
    if (kind := non_regular_kind(status)) is not None:
        raise NotAFileError(os.fspath(path), kind)
    return status


@contextmanager
def open_regular_file(
    path: StrPath, protected: ProtectedFiles = (), *, follow_links: bool = True
) -> Iterator[OpenFile]:
    """
    Open a regular file for reading. Without `follow_links`, the last part may not be a link.

    Raises NotAFileError and ProtectedFileError before anything is opened, and OSError as the
    system reports it.
    """
    require_regular_file(path, protected, follow_links=follow_links)
    descriptor = os.open(path, _OPEN_FLAGS | (0 if follow_links else os.O_NOFOLLOW))
    status = os.fstat(descriptor)
    if file_identity(status) in protected:
        # The path was replaced by the database after the check above. Closing the descriptor
        # would drop every lock that this process has on the database. It stays open.
        raise ProtectedFileError(os.fspath(path))
    with open(descriptor, "rb", buffering=0) as raw:
        if (kind := non_regular_kind(status)) is not None:
            raise NotAFileError(os.fspath(path), kind)
        yield OpenFile(os.fspath(path), raw, status)
