"""A consistent copy of a SQLite database, made while others read and write it."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import mkstemp
from typing import Final

from model_catalog.concurrency.completion import DEFAULT_OPEN_TIMEOUT_S, Backoff, run_to_completion
from model_catalog.concurrency.threads import to_thread
from model_catalog.connection.backup_files import (
    KEPT,
    automatic_backups,
    free_backup_path,
    integrity_error,
    unfinished_backups,
    uri_of,
)
from model_catalog.connection.error_mapping import corrupt_error, map_errors
from model_catalog.errors import CatalogBusyError, InvalidTargetError

_LOCK_WAIT_S: Final = 0.1
# How much of a copy SQLite makes before it looks whether anybody still wants it.
_STEPS: Final = 1000
# Some file systems of sticks and of other systems have no second name for a file.
_NO_LINKS: Final = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)


async def online_backup(source: Path, name: str, to: Path) -> Path:
    """
    Copy the state of one moment to a file that is not there yet; return where it is.

    The copy is its owner's alone, on the disk when this returns, whole or not there at all, and was
    read once. Others write meanwhile. Raises InvalidTargetError where something has its name,
    CatalogCorruptError of a database that cannot be read to its end, and StorageFullError.
    """
    patience = Backoff(DEFAULT_OPEN_TIMEOUT_S)
    while True:
        work = _BackupTask(source, name)
        try:
            return await run_to_completion(to_thread(work.copy_to, to), on_cancel=work.stop)
        except CatalogBusyError as error:
            await patience.after(error)


async def backup_before_migration(source: Path, name: str, revision: str) -> Path:
    """
    Copy a database that is about to be migrated, and let the oldest of such copies go.

    For whoever holds the write lock and has written nothing yet: the copy is what the migration
    begins with, and nobody else is making one.
    """
    for rest in await to_thread(unfinished_backups, source):
        rest.unlink(missing_ok=True)
    copy = await online_backup(source, name, free_backup_path(source, "backup", revision))
    for old in (await to_thread(automatic_backups, source))[:-KEPT]:
        old.unlink(missing_ok=True)
    return copy


class _BackupTask:
    """One try of a copy; its thread can be told to stop."""

    def __init__(self, source: Path, name: str) -> None:
        self._source = source
        self._name = name
        self._stopped = False

    def stop(self) -> None:
        self._stopped = True

    def copy_to(self, to: Path) -> Path:
        with atomic_file(to) as part:
            # A connection of its own: VACUUM is no part of a transaction.
            with map_errors(self._name), closing(self._connected()) as raw:
                raw.set_progress_handler(lambda: self._stopped, _STEPS)
                # As bytes, because a path need not be text.
                raw.execute("VACUUM INTO CAST(? AS TEXT)", (os.fsencode(part),))
            if fault := integrity_error(part):
                raise corrupt_error(self._name, f"its copy is not whole: {fault}")
        return to

    def _connected(self) -> sqlite3.Connection:
        return sqlite3.connect(
            uri_of(self._source, "rw"),
            uri=True,
            timeout=_LOCK_WAIT_S,
            isolation_level=None,
        )


@contextmanager
def atomic_file(to: Path) -> Iterator[Path]:
    """
    An empty file to fill, of its owner alone, that gets its name when the block ends well.

    By then it is on the disk. Raises InvalidTargetError where something has that name already.
    """
    with map_errors(repr(os.fspath(to))):
        if os.path.lexists(to):
            raise _taken(to)
        descriptor, name = mkstemp(prefix=f".{to.name}.", suffix=".part", dir=to.parent)
        os.close(descriptor)
        part = Path(name)
        try:
            yield part
            fsync_path(part)
            _give_name(part, to)
            fsync_path(to.parent)
        finally:
            for rest in (part, part.with_name(f"{part.name}-journal")):
                rest.unlink(missing_ok=True)


def fsync_path(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _give_name(part: Path, to: Path) -> None:
    try:
        # Unlike a renaming it takes nobody's place.
        os.link(part, to)
    except FileExistsError:
        raise _taken(to) from None
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with contextlib.suppress(FileExistsError):
            os.close(os.open(to, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            part.replace(to)
            return
        raise _taken(to) from None


def _taken(to: Path) -> InvalidTargetError:
    return InvalidTargetError(
        repr(os.fspath(to)), "something has that name, and a copy replaces nothing"
    )
