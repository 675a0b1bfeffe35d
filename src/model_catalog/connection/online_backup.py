"""Online backup of a SQLite database with VACUUM INTO, and atomic creation of files."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from tempfile import mkstemp
from typing import Final, TypeAlias

from model_catalog.concurrency.completion import run_to_completion
from model_catalog.concurrency.retry import DEFAULT_OPEN_TIMEOUT_S, Backoff
from model_catalog.concurrency.threads import to_thread
from model_catalog.connection.backup_files import (
    MAX_AUTOMATIC_BACKUPS,
    automatic_backups,
    free_backup_path,
    integrity_error,
    is_unresolved,
    sqlite_uri,
    unfinished_backups,
)
from model_catalog.connection.database_file import corrupt_error
from model_catalog.connection.error_mapping import map_errors
from model_catalog.connection.timeouts import LOCK_WAIT_S
from model_catalog.errors import CatalogBusyError, InvalidTargetError

NewPath: TypeAlias = Path | Callable[[], Path]
"""The path of a file that does not exist yet, or a function that returns one."""

# SQLite calls the progress handler after this many instructions of its virtual machine.
_PROGRESS_STEPS: Final = 1000
# With 4 KiB a page, 4 MiB are copied between two looks at the cancellation.
_BACKUP_PAGES: Final = 1000
# The errors of link() on file systems without hard links, for example FAT.
_NO_HARD_LINKS: Final = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)


async def online_backup(source: Path, name: str, destination: NewPath) -> Path:
    """
    Copy a snapshot of a SQLite database to a new file, and return the file's path.

    If `destination` is a function, it is called in a thread for the path, and again if another
    backup takes that path first.

    Other processes may write meanwhile. The backup is readable only by its owner, passes an
    integrity check, and has been flushed to the disk. If the copy fails, no file remains.

    Raises InvalidTargetError if the file exists, CatalogCorruptError if the database cannot be read
    completely, CatalogBusyError and StorageFullError.
    """
    backoff = Backoff(DEFAULT_OPEN_TIMEOUT_S)
    while True:
        task = _BackupTask(source, name)
        try:
            return await run_to_completion(
                to_thread(task.copy_to, destination), on_cancel=task.cancel
            )
        except CatalogBusyError as error:
            await backoff.wait_or_raise(error)


async def backup_before_migration(source: Path, name: str, revision: str) -> Path:
    """
    Back up a database before its migration to `revision`, and delete the oldest such backups.

    The caller must hold the write lock and must not have written yet. So the backup is the state
    from which the migration starts, and no other process makes one at the same time.
    """
    for unfinished in await to_thread(unfinished_backups, source):
        unfinished.unlink(missing_ok=True)
    choose = partial(free_backup_path, source, "backup", revision)
    backup = await online_backup(source, name, choose)
    for old in (await to_thread(automatic_backups, source))[:-MAX_AUTOMATIC_BACKUPS]:
        if old != backup:
            old.unlink(missing_ok=True)
    return backup


class _BackupTask:
    """One attempt to copy a database in a worker thread. It can be cancelled from another."""

    def __init__(self, source: Path, name: str) -> None:
        self._source = source
        self._name = name
        self._is_cancelled = False

    def cancel(self) -> None:
        self._is_cancelled = True

    def copy_to(self, destination: NewPath) -> Path:
        with _partial_file(destination) as copy:
            # A new connection, because VACUUM cannot run in a transaction.
            with map_errors(self._name), closing(self._connect()) as raw:
                raw.set_progress_handler(lambda: self._is_cancelled, _PROGRESS_STEPS)
                try:
                    # Bound as bytes, because a path need not be valid UTF-8.
                    raw.execute("VACUUM INTO CAST(? AS TEXT)", (os.fsencode(copy),))
                except sqlite3.OperationalError as error:
                    if not is_unresolved(error):
                        raise
                    # VACUUM creates each index, which may need a collation of another program.
                    self._copy_pages(raw, copy)
            if problem := integrity_error(copy):
                raise corrupt_error(self._name, f"its backup fails the integrity check: {problem}")
            return _publish(copy, destination)

    def _copy_pages(self, raw: sqlite3.Connection, destination: Path) -> None:
        """Copy a snapshot page by page, which does not evaluate the schema."""

        def stop_when_cancelled(*_: int) -> None:
            if self._is_cancelled:
                raise CatalogBusyError(self._name, "its backup was cancelled")

        os.truncate(destination, 0)
        # Without a transaction, the copy would begin again after each change by another process.
        raw.execute("BEGIN")
        raw.execute("SELECT count(*) FROM sqlite_master").fetchone()
        with closing(sqlite3.connect(sqlite_uri(destination, "rw"), uri=True)) as copy:
            raw.backup(copy, pages=_BACKUP_PAGES, progress=stop_when_cancelled, sleep=0)
            # The copy has the journal mode of the database. A backup is one file.
            copy.execute("PRAGMA journal_mode = DELETE")
        raw.execute("ROLLBACK")

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(
            sqlite_uri(self._source, "rw"),
            uri=True,
            timeout=LOCK_WAIT_S,
            isolation_level=None,
        )


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """
    Create a file that appears under its name only when the block ends without an error.

    Yields the path of an empty temporary file in the same folder, which only its owner can read.
    At the end it is flushed to the disk and renamed. Raises InvalidTargetError if `path` exists.
    """
    with _partial_file(path) as file:
        yield file
        _publish(file, path)


@contextmanager
def _partial_file(destination: NewPath) -> Iterator[Path]:
    """Create a temporary file for a new file in the same folder, and remove it at the end."""
    path = destination() if callable(destination) else destination
    with map_errors(repr(os.fspath(path))):
        if os.path.lexists(path) and not callable(destination):
            raise _already_exists(path)
        descriptor, name = mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(descriptor)
        file = Path(name)
        try:
            yield file
        finally:
            for leftover in (file, file.with_name(f"{file.name}-journal")):
                leftover.unlink(missing_ok=True)


def fsync_path(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _publish(file: Path, destination: NewPath) -> Path:
    """Flush a finished file, and give it a name that no other file has; return its path."""
    fsync_path(file)
    while True:
        path = destination() if callable(destination) else destination
        try:
            _give_name(file, path)
        except FileExistsError:
            if not callable(destination):
                raise _already_exists(path) from None
        else:
            fsync_path(path.parent)
            return path


def _give_name(file: Path, path: Path) -> None:
    """Give a file another name. Raises FileExistsError if a file has that name."""
    try:
        # Unlike rename(), link() does not replace an existing file.
        os.link(file, path)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        file.replace(path)


def _already_exists(path: Path) -> InvalidTargetError:
    return InvalidTargetError(
        repr(os.fspath(path)), "the path already exists, and a backup never replaces a file"
    )
