"""Facts about a SQLite database file, without opening it: its disk, locks, users and identity."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from model_catalog.connection.backup_files import newest_valid_backup
from model_catalog.connection.target import database_file_of
from model_catalog.errors import (
    CatalogCorruptError,
    CatalogReadOnlyError,
    CatalogReplacedError,
    InvalidTargetError,
)

MOUNT_TABLE: Final = Path("/proc/self/mountinfo")
"""Linux's list of mounts: https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html"""
LOCK_TABLE: Final = Path("/proc/locks")
"""Linux's list of file locks."""
PROC: Final = Path("/proc")

# The readers of a write-ahead log share memory, which two machines cannot do:
# https://www.sqlite.org/wal.html#overview
_NETWORK_FILE_SYSTEMS: Final = frozenset(
    (
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "fuse.ceph",
        "fuse.glusterfs",
        "fuse.s3fs",
        "fuse.smbnetfs",
        "fuse.sshfs",
        "gfs2",
        "glusterfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "ocfs2",
        "prl_fs",
        "smb3",
        "smbfs",
        "vboxsf",
        "virtiofs",
        "vmhgfs",
    )
)


def sidecar_paths(path: Path) -> tuple[Path, Path, Path]:
    """Return the paths of a database's write-ahead log, its index and its rollback journal."""
    # SQLite follows a symbolic link before it names these files.
    real = os.path.realpath(path)
    return Path(f"{real}-wal"), Path(f"{real}-shm"), Path(f"{real}-journal")


def network_file_system(path: Path) -> str | None:
    """
    Return the type of the network file system that contains a file, for example `nfs4`.

    Returns None for a local disk, and on systems without `/proc/self/mountinfo`.
    """
    real = os.path.realpath(path)
    longest, found = "", ""
    for mount_point, kind in _mounts():
        inside = real == mount_point or real.startswith(mount_point.rstrip("/") + "/")
        # When a mount point is listed twice, the last mount hides the earlier ones.
        if inside and len(mount_point) >= len(longest):
            longest, found = mount_point, kind
    return found if found in _NETWORK_FILE_SYSTEMS else None


def _mounts() -> Iterator[tuple[str, str]]:
    """Yield the mount point and the file system type of each mount that this process sees."""
    try:
        mounts = MOUNT_TABLE.read_text(errors="surrogateescape")
    except OSError:
        return
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        mount_point = before.split(" ", 5)[4]
        if "\\" in mount_point:
            # Spaces, tabs, line breaks and backslashes are written as three octal digits.
            mount_point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), mount_point)
        yield mount_point, after.split(" ", 1)[0]


def require_one_name(path: Path, name: str) -> None:
    """
    Raise InvalidTargetError if a database file has a second name: a hard link or a bind mount.

    SQLite names the write-ahead log after the file. Two names have two logs, and two connections
    that do not see each other's log corrupt the file. Call it before the file is opened: the
    second name is refused, because it exists when its user opens the file. Of a bind mount only
    the mount point can be recognized, on systems with `/proc/self/mountinfo`.
    """
    real = os.path.realpath(path)
    try:
        link_count = Path(real).stat().st_nlink
    except OSError:
        return
    if any(mount_point == real for mount_point, _ in _mounts()):
        raise InvalidTargetError(
            name,
            "the file itself is a mount point, so its write-ahead log would not be beside the "
            "original file; mount the folder that contains the file",
        )
    if link_count > 1:
        others, unfinished_count = _other_names(real)
        if link_count - unfinished_count > 1:
            raise _several_names_error(name, link_count - unfinished_count, others)


def _other_names(real: str) -> tuple[list[str], int]:
    """Return the other names that a file has in its folder, and the number of `.part` names."""
    folder, file_name = os.path.split(real)
    unfinished = re.compile(re.escape(f".{file_name}.") + r"\w+\.part")
    names: list[str] = []
    unfinished_count = 0
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        inode = Path(real).stat().st_ino
        for entry in entries:
            if entry.inode() == inode and unfinished.fullmatch(entry.name):
                # A process was killed before it removed the temporary name of a finished copy.
                unfinished_count += 1
            elif entry.inode() == inode and entry.name != file_name:
                names.append(entry.name)
    return sorted(names), unfinished_count


def _several_names_error(name: str, link_count: int, others: list[str]) -> InvalidTargetError:
    listed = f", one of them {others[0]!r}" if others else ""
    advice = "use one name and remove the other names"
    if any(".replaced-" in other for other in others):
        advice = f"run the interrupted restore again, or {advice}"
    return InvalidTargetError(
        name,
        f"its file has {link_count} names (hard links){listed}, and each would have a write-ahead "
        f"log of its own; {advice}",
    )


def require_regular_file(path: Path, name: str) -> os.stat_result:
    """
    Return the status of a database file, which is not opened.

    Raises InvalidTargetError for a directory, FIFO, socket or device, and OSError.
    """
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise InvalidTargetError(name, "it is a directory: name a file in it")
    if not stat.S_ISREG(status.st_mode):
        raise InvalidTargetError(name, "it is not a regular file")
    return status


def require_log_of_owner(path: Path, name: str) -> None:
    """
    Raise CatalogReadOnlyError if reading a file would create a log that its owner cannot write.

    SQLite creates the write-ahead log and its index also for a reader. A reader who may not write
    the database cannot remove them at the end, and they belong to the reader.
    """
    log_index = sidecar_paths(path)[1]
    try:
        status = path.stat()
        owner = status.st_uid
        would_block_owner = (
            owner not in (0, os.geteuid())
            and status.st_mode & stat.S_IWUSR
            and not os.access(path, os.W_OK)
            and os.access(log_index.parent, os.W_OK)
            and not log_index.exists()
            and _has_write_ahead_log(path, status)
        )
    except OSError:
        return
    if would_block_owner:
        raise CatalogReadOnlyError(
            name,
            f"reading it now would create a write-ahead log that its owner, user {owner}, could "
            "not write. Read it as that user, or while a process of that user has it open",
        )


def _has_write_ahead_log(path: Path, status: os.stat_result) -> bool:
    """Return whether the header of a database says that its journal mode is WAL."""
    # Closing the file would release the locks of this process, if it has the file open.
    if _has_open(Path("/dev/fd"), _identity(status)):
        return False
    with path.open("rb") as file:
        # https://www.sqlite.org/fileformat2.html#file_format_version_numbers
        return file.read(20)[18:] == b"\2\2"


def unwritable_sidecar(path: Path) -> str | None:
    """
    Return which sidecar file this process may not write, and whose it is.

    Returns None if there is no such file, or if this process may not write the database either.
    """
    if not os.access(path, os.W_OK):
        return None
    for sidecar in sidecar_paths(path):
        with contextlib.suppress(OSError):
            if not os.access(sidecar, os.W_OK):
                owner = sidecar.stat().st_uid
                return f"{os.fspath(sidecar)!r}, which belongs to user {owner}"
    return None


def was_shut_down_uncleanly(path: Path) -> bool:
    """
    Return whether the last process to use a database was killed before it closed the database.

    True if the log or the journal is not empty and no process has a lock on the file. Processes on
    another machine or in another container are not visible, so their database counts as unclean:
    the caller then checks the file once more than necessary.
    """
    log, _, journal = sidecar_paths(path)
    return (_size_bytes(log) > 0 or _size_bytes(journal) > 0) and not _is_locked(path)


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _is_locked(path: Path) -> bool:
    try:
        status = path.stat()
        locks = LOCK_TABLE.read_text()
    except OSError:
        return False
    device = status.st_dev
    inode = f"{os.major(device):02x}:{os.minor(device):02x}:{status.st_ino}"
    return any(inode in line.split() for line in locks.splitlines())


def processes_using(path: Path) -> list[int]:
    """
    Return the ids of the processes that have a file open, ascending, including this process.

    Processes of other users may be invisible. Without `/proc` only this process is looked at.
    """
    try:
        identity = _identity(path.stat())
    except FileNotFoundError:
        return []
    found = {int(entry.name) for entry in _process_folders() if _has_open(entry / "fd", identity)}
    if _has_open(Path("/dev/fd"), identity):
        found.add(os.getpid())
    return sorted(found)


def _process_folders() -> list[Path]:
    try:
        return [entry for entry in PROC.iterdir() if entry.name.isdigit()]
    except OSError:
        return []


def _has_open(descriptors: Path, identity: tuple[int, int]) -> bool:
    # Another user's process cannot be inspected, and a file may be closed while we look.
    with contextlib.suppress(OSError):
        for entry in descriptors.iterdir():
            with contextlib.suppress(OSError):
                if _identity(entry.stat()) == identity:
                    return True
    return False


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


class FileIdentityGuard:
    """
    Checks that a path still leads to the file that was opened (same device and inode).

    SQLite keeps writing to a file that was removed or replaced, and reports success.
    """

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self._text = os.fspath(path)
        self._name = name
        self._opened: tuple[int, int] | None = None
        self.size_bytes = 0
        """The size of the file when it was last checked, without its write-ahead log."""

    def remember(self) -> None:
        """Record the file's identity before its first opening; check it before later ones."""
        if self._opened is not None:
            self.check_unchanged()
            return
        # If the file does not exist, opening it will fail as well.
        with contextlib.suppress(OSError):
            self._opened = _identity(self._path.stat())

    def check_unchanged(self) -> None:
        """Raise CatalogReplacedError if the path leads to no file or to another file."""
        try:
            # Path.stat() would take twice as long.
            status = os.stat(self._text)  # noqa: PTH116
        except OSError as error:
            # An unresponsive disk does not mean that the file was removed.
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                return
            raise CatalogReplacedError(self._name, "its file was removed or moved away") from error
        self.size_bytes = status.st_size
        if self._opened is not None and _identity(status) != self._opened:
            raise CatalogReplacedError(self._name, "another file has replaced its file")


def corrupt_error(target: str, reason: str, *, is_readable: bool = True) -> CatalogCorruptError:
    """
    Return the error for a damaged database, with a way to find its newest valid backup.

    In a worker thread the backups are read at once. In an event loop they are read when the
    caller asks for `error.copy`, because reading them may take seconds. `is_readable` is false if
    a repair has found nothing to save.
    """
    path = database_file_of(target)
    find_backup = None if path is None else partial(_newest_backup_name, path)
    error = CatalogCorruptError(target, reason, find_backup, is_readable=is_readable)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        _ = error.copy
    return error


def _newest_backup_name(path: Path) -> str | None:
    backup = newest_valid_backup(path)
    return None if backup is None else os.fspath(backup)
