"""SQLite's settings: journal mode, `synchronous`, temporary files, versions with a known bug."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from sqlalchemy import Connection

from model_catalog.connection.database_file import network_file_system
from model_catalog.connection.database_info import driver_connection, main_path
from model_catalog.connection.timeouts import LOCK_WAIT_S
from model_catalog.errors import InvalidModelError, InvalidTargetError

Durability: TypeAlias = Literal["full", "normal"]
"""
Which committed transactions a power failure may lose: `full` none, `normal` the latest ones.

With either setting the database stays intact, and a killed process loses nothing.
"""

ExecutePragma: TypeAlias = Callable[[str], Any]
"""Executes one statement outside a transaction and returns the first value of its result."""

# The WAL-reset bug: two connections that write or checkpoint at the same moment may corrupt the
# database: https://www.sqlite.org/releaselog/3_51_3.html
_WAL_RESET_BUG_SINCE: Final = (3, 7, 0)
_WAL_RESET_BUG_FIXED: Final = ((3, 51, 3), (3, 50, 7), (3, 44, 6))

# SQLite sorts and builds indexes in temporary files. Up to this size of the database they are kept
# in memory: they hold no more than the database, and the disk for them may be full or read-only.
_MAX_BYTES_IN_MEMORY: Final = 256 * 2**20
# A folder with less free space is considered full.
_ROOM_BYTES: Final = 2**20

log = logging.getLogger("model_catalog.connection")


def validate_durability(value: str) -> None:
    """Raise InvalidModelError for a value that is not a Durability."""
    if value not in ("full", "normal"):
        raise InvalidModelError("durability", value, "must be one of full, normal")


def connection_pragmas(durability: Durability) -> tuple[str, ...]:
    """Return the PRAGMA statements for a new connection."""
    # cell_size_check compares cell sizes with their page when the page is read. A corrupt page then
    # raises an error; without it the page may be read as rows that were never written.
    return (
        "PRAGMA foreign_keys = ON",
        "PRAGMA cell_size_check = ON",
        f"PRAGMA synchronous = {durability.upper()}",
    )


def set_own_pragmas(connection: Any, durability: Durability) -> None:
    """Configure a new DBAPI connection of ours. Closes it if that fails."""
    with _close_on_error(connection):
        _send_own_begin(connection)
        _execute(connection, *connection_pragmas(durability))


def set_host_pragmas(connection: Any) -> None:
    """Configure a new DBAPI connection of a host's prepared engine. Closes it if that fails."""
    with _close_on_error(connection):
        _send_own_begin(connection)
        with _outside_transaction(connection), _short_busy_timeout(connection) as wait_s:
            deadline = time.monotonic() + wait_s
            while True:
                start = time.monotonic()
                try:
                    _execute(connection, *connection_pragmas("full"))
                    _choose_journal_mode(connection)
                    break
                except Exception as error:
                    now = time.monotonic()
                    # SQLite refuses some locks at once. To ask again at once would take all of a
                    # processor.
                    if not _is_busy(error) or now >= deadline or now - start < LOCK_WAIT_S / 2:
                        raise


@contextlib.contextmanager
def _short_busy_timeout(connection: Any) -> Iterator[float]:
    """
    Let statements wait 0.1 s for a lock in a block; yields the connection's own timeout in seconds.

    Nothing can end such a wait. The thread of aiosqlite would go on after a cancelled connect, and
    report that its event loop is closed.
    """
    cursor = connection.cursor()
    cursor.execute("PRAGMA busy_timeout")
    (wait_ms,) = cursor.fetchone()
    cursor.close()
    _execute(connection, f"PRAGMA busy_timeout = {min(wait_ms, int(LOCK_WAIT_S * 1000))}")
    yield wait_ms / 1000
    _execute(connection, f"PRAGMA busy_timeout = {wait_ms}")


def _is_busy(error: Exception) -> bool:
    return str(getattr(error, "sqlite_errorname", "")).startswith("SQLITE_BUSY")


def _choose_journal_mode(connection: Any) -> None:
    cursor = connection.cursor()

    def execute_pragma(pragma: str) -> Any:
        cursor.execute(pragma)
        return (cursor.fetchone() or (None,))[0]

    path = main_path(connection)
    try:
        if path:
            JournalMode(Path(path), repr(path), "full").apply(execute_pragma)
    except Exception as error:
        # A read-only file keeps its journal mode and can still be read.
        if not str(getattr(error, "sqlite_errorname", "")).startswith("SQLITE_READONLY"):
            raise
    cursor.close()


def require_commit(connection: Any, name: str) -> None:
    """Raise InvalidTargetError for a DBAPI connection with `autocommit=True`."""
    driver = driver_connection(connection)
    # With `autocommit=False` a transaction is always open.
    if sys.version_info < (3, 12) or driver.in_transaction:
        return
    _execute(connection, "BEGIN")
    connection.commit()
    if driver.in_transaction:
        _execute(connection, "ROLLBACK")
        raise InvalidTargetError(
            name,
            "its connections have `autocommit=True`, with which the commit() of sqlite3 does "
            "nothing: use `autocommit=False`, or omit it",
        )


def set_foreign_keys(connection: Connection, value: int) -> int:
    """
    Set `PRAGMA foreign_keys` of a connection between transactions, and return its previous value.

    In a transaction SQLite ignores it. With `autocommit=False` sqlite3 has always begun one, which
    is ended and begun again.
    """
    dbapi_connection: Any = connection.connection
    with _outside_transaction(dbapi_connection):
        cursor = dbapi_connection.cursor()
        cursor.execute("PRAGMA foreign_keys")
        (before,) = cursor.fetchone()
        cursor.execute(f"PRAGMA foreign_keys = {value}")
        cursor.close()
    return int(before)


def _send_own_begin(connection: Any) -> None:
    # With an isolation level, sqlite3 runs DDL outside transactions: a failed migration would stay
    # half applied. Without one, the catalog sends BEGIN itself. With `autocommit=False` sqlite3
    # has begun a transaction already, and always sends BEGIN.
    if not driver_connection(connection).in_transaction:
        connection.isolation_level = None


@contextlib.contextmanager
def _outside_transaction(connection: Any) -> Iterator[None]:
    """End the transaction of a new connection with `autocommit=False`, and begin it again."""
    # In a transaction SQLite ignores or refuses some PRAGMAs.
    has_begun = driver_connection(connection).in_transaction
    if has_begun:
        _execute(connection, "ROLLBACK")
    yield
    if has_begun:
        _execute(connection, "BEGIN")


def _execute(connection: Any, *statements: str) -> None:
    cursor = connection.cursor()
    for statement in statements:
        cursor.execute(statement)
    cursor.close()


@contextlib.contextmanager
def _close_on_error(connection: Any) -> Iterator[None]:
    try:
        yield
    except BaseException:
        # The pool drops a connection whose listener failed, but aiosqlite's thread would remain.
        connection.close()
        raise


def temp_store(size_bytes: int) -> Literal["MEMORY", "FILE"]:
    """Return the value of `PRAGMA temp_store` for a database of a size."""
    return "MEMORY" if size_bytes <= _MAX_BYTES_IN_MEMORY else "FILE"


def temporary_folder() -> str | None:
    """
    Return the folder that SQLite chooses for its temporary files; None if no folder is writable.

    SQLite reads the environment variables when it is loaded: https://www.sqlite.org/tempfiles.html
    """
    named = (os.environ.get("SQLITE_TMPDIR"), os.environ.get("TMPDIR"))
    for folder in (*named, "/var/tmp", "/usr/tmp", "/tmp", "."):  # noqa: S108 - SQLite's own list
        if folder and Path(folder).is_dir() and os.access(folder, os.W_OK | os.X_OK):
            return folder
    return None


def has_room(folder: str | os.PathLike[str]) -> bool:
    """Return whether files can be created in a folder and 1 MiB can be written to them."""
    try:
        status = os.statvfs(folder)
    except OSError:
        return False
    # Some file systems, for example btrfs, have no fixed number of inodes and report none.
    has_inodes = status.f_files == 0 or status.f_favail > 0
    return has_inodes and status.f_bavail * status.f_frsize >= _ROOM_BYTES


class JournalMode:
    """Chooses the journal mode of a file: WAL on a local disk, DELETE on a network file system."""

    def __init__(self, path: Path, name: str, durability: Durability) -> None:
        self._path = path
        self._name = name
        self._durability = durability
        self._network: str | None = None
        self._is_known = False

    def apply(self, execute: ExecutePragma) -> None:
        """Set the journal mode on a connection. Call it outside a transaction, before a write."""
        if not self._is_known:
            self._network = network_file_system(self._path)
            self._is_known = True
        mode = execute(f"PRAGMA journal_mode = {'DELETE' if self._network else 'WAL'}")
        if mode == "wal":
            return
        # A rollback journal ends a transaction by its deletion. With a weaker setting, a power
        # failure may undo the deletion, and below FULL it may corrupt the database.
        execute(f"PRAGMA synchronous = {'EXTRA' if self._durability == 'full' else 'FULL'}")
        _warn(self._name, self._network, mode)


@cache
def _warn(name: str, network: str | None, mode: str) -> None:
    """Log that a database has no write-ahead log, once per process."""
    if network is None:
        log.warning(
            "SQLite could not create a write-ahead log for the catalog at %s and uses journal mode "
            "%s: readers and writers block each other",
            name,
            mode,
            extra={"model_catalog_url": name},
        )
    else:
        log.warning(
            "the catalog at %s is on a network file system (%s), where SQLite's locks may fail, so "
            "it has no write-ahead log: use it from one machine at a time, or use PostgreSQL",
            name,
            network,
            extra={"model_catalog_url": name},
        )


@cache
def log_sqlite_version() -> None:
    """Log the version of SQLite and whether it has the WAL-reset bug, once per process."""
    log.debug(
        "SQLite is %s%s",
        sqlite3.sqlite_version,
        ", in which two processes that write at the same moment may, very rarely, corrupt a "
        "write-ahead log (WAL-reset bug, fixed in 3.51.3): keep backups"
        if has_wal_reset_bug(sqlite3.sqlite_version_info)
        else "",
    )


def has_wal_reset_bug(version: tuple[int, ...]) -> bool:
    """Return whether a version of SQLite has the WAL-reset bug; two older branches have the fix."""
    newest = _WAL_RESET_BUG_FIXED[0]
    is_fixed = version >= newest or any(
        version[:2] == fixed[:2] and version >= fixed for fixed in _WAL_RESET_BUG_FIXED
    )
    return version >= _WAL_RESET_BUG_SINCE and not is_fixed
