"""What the system tells of a SQLite database's file, which is not opened for it."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from pathlib import Path
from typing import Final

from model_catalog.errors import CatalogReplacedError

MOUNTS: Final = Path("/proc/self/mountinfo")
"""Linux's list of what is mounted where: https://man7.org/linux/man-pages/man5/proc.5.html"""
LOCKS: Final = Path("/proc/locks")
"""Linux's list of who holds which lock."""
PROCESSES: Final = Path("/proc")

# Between two machines the memory that a write-ahead log's readers share is not shared:
# https://www.sqlite.org/wal.html#overview
_NETWORK: Final = frozenset(
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
    """The write-ahead log, its index and the rollback journal, which may lie beside a database."""
    # Of a link SQLite takes what it leads to.
    real = os.path.realpath(path)
    return Path(f"{real}-wal"), Path(f"{real}-shm"), Path(f"{real}-journal")


def network_file_system(path: Path) -> str | None:
    """The kind of network file system that a file lies on; None on a disk, or where none knows."""
    try:
        table = MOUNTS.read_text(errors="surrogateescape")
    except OSError:
        return None
    real = os.path.realpath(path)
    longest, found = "", ""
    for line in table.splitlines():
        before, _, after = line.partition(" - ")
        # Blanks, tabs, line breaks and backslashes are written as three octal digits.
        where = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), before.split(" ")[4])
        inside = real == where or real.startswith(where.rstrip("/") + "/")
        # Of several on one place the last is the one that is seen.
        if inside and len(where) >= len(longest):
            longest, found = where, after.split(" ")[0]
    return found if found in _NETWORK else None


def was_shut_down_uncleanly(path: Path) -> bool:
    """
    Whether the last to use a database was stopped before it could close it.

    A log that is not empty says so, unless somebody holds a lock on the file and so uses it still.
    Whoever cannot be seen, on another machine or in another container, counts as stopped: the
    file is then looked at once more than need be.
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
        table = LOCKS.read_text()
    except OSError:
        return False
    device = status.st_dev
    name = f"{os.major(device):02x}:{os.minor(device):02x}:{status.st_ino}"
    return any(name in line.split() for line in table.splitlines())


def processes_using(path: Path) -> list[int]:
    """
    The processes that have a file open, as far as this one may see them; this one among them.

    Without /proc it sees itself alone.
    """
    try:
        identity = _identity(path.stat())
    except FileNotFoundError:
        return []
    found = {int(entry.name) for entry in _processes() if _has_open(entry / "fd", identity)}
    if _has_open(Path("/dev/fd"), identity):
        found.add(os.getpid())
    return sorted(found)


def _processes() -> list[Path]:
    try:
        return [entry for entry in PROCESSES.iterdir() if entry.name.isdigit()]
    except OSError:
        return []


def _has_open(folder: Path, identity: tuple[int, int]) -> bool:
    # Somebody else's may not be looked into, and what is open may be closed meanwhile.
    with contextlib.suppress(OSError):
        for entry in folder.iterdir():
            with contextlib.suppress(OSError):
                if _identity(entry.stat()) == identity:
                    return True
    return False


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


class FileIdentityGuard:
    """
    That a path still leads to the file that was opened by it.

    SQLite writes on into a file that was removed, or that another took the place of, and says that
    all is well.
    """

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self._text = os.fspath(path)
        self._name = name
        self._opened: tuple[int, int] | None = None

    def begin(self) -> None:
        """Remember the file before it is opened for the first time; before another, compare."""
        if self._opened is not None:
            self.require_same()
            return
        # What is not there yet cannot be opened either.
        with contextlib.suppress(OSError):
            self._opened = _identity(self._path.stat())

    def require_same(self) -> None:
        """Raise CatalogReplacedError where the path leads to no file, or to another one."""
        try:
            # To a Path the question takes as long again as to the system.
            found = _identity(os.stat(self._text))  # noqa: PTH116
        except OSError as error:
            # A disk that gives no answer is no news of the file.
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                return
            raise CatalogReplacedError(self._name, "its file was removed, or moved away") from error
        if self._opened is not None and found != self._opened:
            raise CatalogReplacedError(self._name, "another file has taken the place of its own")
