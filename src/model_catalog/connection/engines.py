"""How a database is opened: the room that knows SQLite's habits and PostgreSQL's."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from weakref import WeakKeyDictionary, WeakSet

import sqlalchemy as sa
from sqlalchemy import Connection, CursorResult, Engine, NullPool, event
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import Pool

from model_catalog.connection.backup_files import uri_of
from model_catalog.connection.database_file import FileIdentityGuard, sidecar_paths
from model_catalog.connection.error_mapping import corrupt_error, to_catalog_error
from model_catalog.connection.sqlite_pragmas import (
    Durability,
    JournalMode,
    connection_pragmas,
    log_sqlite_version,
)
from model_catalog.connection.target import DatabaseLocation
from model_catalog.connection.timeouts import LOCK_WAIT_S, on_reset, use_short_busy_timeout
from model_catalog.errors import (
    CatalogError,
    CatalogReadOnlyError,
    CatalogUnavailableError,
    InvalidTargetError,
)

WRITE: Final = "model_catalog_write"
"""The execution option of a transaction that is going to write."""

_CONNECT_TIMEOUT_S: Final = 10
# The smallest page SQLite knows: a file shorter than that holds no database.
_SMALLEST_DATABASE_BYTES: Final = 512

_of_the_parent: Final[list[Pool]] = []
_rollbacks: set[asyncio.Task[None]] = set()
_of_our_own: WeakSet[Engine] = WeakSet()


def prepare_engine(engine: AsyncEngine) -> None:
    """
    Give a host's own SQLite engine the catalog's habits; call it before the first connection.

    Real transactions (`BEGIN` is sent, DDL is part of it, and the catalog's writes begin
    IMMEDIATE), foreign keys, a write-ahead log, and no lock left behind by a cancelled task. The
    catalog works on an engine without them; what the host does beside it may not. Does nothing
    twice, and nothing to an engine of another database.
    """
    if engine.dialect.name == "sqlite" and not event.contains(
        engine.sync_engine, "connect", _on_connect_of_a_host
    ):
        event.listen(engine.sync_engine, "connect", _on_connect_of_a_host)
        event.listen(engine.sync_engine, "begin", _on_begin_of_a_host)
        event.listen(engine.sync_engine, "invalidate", _on_invalidate)


def database_files(engine: Engine) -> tuple[Path, ...]:
    """A SQLite database's file and those that SQLite makes beside it; none for another database."""
    name = engine.url.database
    if engine.dialect.name != "sqlite" or not name or name == ":memory:":
        return ()
    path = Path(name).absolute()
    return (path, *sidecar_paths(path))


def enforces_foreign_keys(engine: Engine) -> bool:
    """Whether its connections keep foreign keys: SQLite's do when they are told to."""
    return (
        engine.dialect.name != "sqlite"
        or engine in _of_our_own
        or event.contains(engine, "connect", _on_connect_of_a_host)
    )


def _on_connect(connection: Any, _record: Any, durability: Durability = "full") -> None:
    with _closed_on_error(connection):
        # sqlite3 runs DDL outside transactions, so a migration that failed halfway would stay half
        # applied. With no isolation level, BEGIN is ours to send.
        connection.isolation_level = None
        cursor = connection.cursor()
        for habit in connection_pragmas(durability):
            cursor.execute(habit)
        cursor.close()


def _on_connect_of_a_host(connection: Any, record: Any) -> None:
    _on_connect(connection, record)
    with _closed_on_error(connection):
        cursor = connection.cursor()

        def ask(statement: str) -> Any:
            cursor.execute(statement)
            return (cursor.fetchone() or (None,))[0]

        # What is first attached names the file, if it is one.
        cursor.execute("PRAGMA database_list")
        path = cursor.fetchone()[2]
        try:
            if path:
                JournalMode(Path(path), repr(path), "full").prepare(ask)
        except Exception as error:
            # A file that may only be read stays as it is, and is read.
            if not str(getattr(error, "sqlite_errorname", "")).startswith("SQLITE_READONLY"):
                raise
        cursor.close()


@contextlib.contextmanager
def _closed_on_error(connection: Any) -> Iterator[None]:
    try:
        yield
    except BaseException:
        # The pool forgets a connection whose listener failed, and its thread would stay.
        connection.close()
        raise


def _on_begin_of_a_host(connection: Connection) -> None:
    if connection.get_execution_options().get(WRITE):
        use_short_busy_timeout(connection)
    connection.exec_driver_sql(_begin(connection))


def _begin(connection: Connection) -> str:
    writes = connection.get_execution_options().get(WRITE)
    return "BEGIN IMMEDIATE" if writes else "BEGIN"


def _on_begin_of_our_own(connection: Connection) -> None:
    driver = connection.connection.driver_connection
    if isinstance(driver, sqlite3.Connection):
        # SQLAlchemy's way takes as long as to store a row.
        driver.execute(_begin(connection))
    else:
        connection.exec_driver_sql(_begin(connection))


def _on_invalidate(connection: Any, _record: Any, _error: BaseException | None) -> None:
    # A task was cancelled inside a statement. close() leaves the transaction, and with it the write
    # lock, alive until the pending cursor is collected; so a rollback is queued on the connection's
    # own thread, before the close that SQLAlchemy queues next. Nothing is awaited here: a second
    # cancellation cannot skip it.
    async def roll_back() -> None:
        with contextlib.suppress(Exception):
            await connection.driver_connection.rollback()

    with contextlib.suppress(RuntimeError):  # no loop runs any more, and so no statement does
        task = asyncio.get_running_loop().create_task(roll_back())
        _rollbacks.add(task)
        task.add_done_callback(_rollbacks.discard)


def create_sync_sqlite_engine(
    place: DatabaseLocation, path: Path, durability: Durability
) -> Engine:
    """
    An engine for a SQLite file of our own, for threads that wait for it themselves.

    Nothing is opened yet, and a file is never made. Every connection is one that it makes, and
    closes when it is given back. Its transactions raise CatalogReplacedError where the file is no
    longer the one it opened.
    """
    log_sqlite_version()
    url = place.url.set(drivername="sqlite+pysqlite")
    threads = sa.create_engine(url, hide_parameters=True, poolclass=NullPool)
    _prepare_own(threads, _File(path, place.name, durability))
    return threads


def create_engine(place: DatabaseLocation, threads: Engine | None) -> AsyncEngine:
    """One for a server; or for the file of an engine for threads, with all that this one knows."""
    if threads is None:
        return _create_postgresql_engine(place)
    engine = create_async_engine(place.url, hide_parameters=True, pool_size=5, max_overflow=0)
    _prepare_own(engine.sync_engine, _files[threads])
    event.listen(engine.sync_engine, "invalidate", _on_invalidate)
    return engine


class _File:
    """A SQLite file as the engines that open it know it."""

    def __init__(self, path: Path, name: str, durability: Durability) -> None:
        # A URI, because only there SQLite can be told not to make a file.
        self.uri = uri_of(path, "rw")
        self.durability: Durability = durability
        self.watch = FileIdentityGuard(path, name)
        self.journal = JournalMode(path, name, durability)


_files: WeakKeyDictionary[Engine, _File] = WeakKeyDictionary()


def file_guard_of(engine: Engine) -> FileIdentityGuard:
    """What looks, at the beginning of a transaction, whether the file of our engine is the same."""
    return _files[engine].watch


def _prepare_own(engine: Engine, file: _File) -> None:
    @event.listens_for(engine, "do_connect")
    def open_uri(_dialect: Any, _record: Any, args: list[Any], options: dict[str, Any]) -> None:
        file.watch.begin()
        args[0] = file.uri
        options.update(uri=True, timeout=LOCK_WAIT_S)

    @event.listens_for(engine, "connect")
    def tell_habits(connection: Any, record: Any) -> None:
        _on_connect(connection, record, file.durability)

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        file.watch.require_same()
        # The journal's mode is written in the file, and until it is read whose file it is stays
        # open: another program's, an empty one, or one that is only looked at, is not written to.
        if connection.get_execution_options().get(WRITE) and not connection.info.get("journal"):
            file.journal.prepare(lambda statement: _answer(connection.exec_driver_sql(statement)))
            connection.info["journal"] = True
        _on_begin_of_our_own(connection)

    @event.listens_for(engine, "commit")
    def commit(connection: Connection) -> None:
        # Before it, so that nothing is written into a log that belongs to another file.
        if connection.get_execution_options().get(WRITE):
            file.watch.require_same()

    event.listen(engine, "reset", on_reset)
    _of_our_own.add(engine)
    _files[engine] = file


def _answer(result: CursorResult[Any]) -> Any:
    return result.scalar() if result.returns_rows else None


def _create_postgresql_engine(place: DatabaseLocation) -> AsyncEngine:
    timeout = "timeout" if place.url.drivername.endswith("asyncpg") else "connect_timeout"
    try:
        engine = create_async_engine(
            place.url,
            connect_args={} if timeout in place.url.query else {timeout: _CONNECT_TIMEOUT_S},
            hide_parameters=True,
        )
    except (ArgumentError, TypeError, ValueError) as error:
        raise InvalidTargetError(
            place.name, f"the driver refuses its parameters: {error}"
        ) from error

    # To asyncpg the parameters of a URL are arguments of a function: of one that it does not know,
    # or that is a text and should be a number, it says what Python says.
    @event.listens_for(engine.sync_engine, "do_connect")
    def connect(dialect: Any, _record: Any, args: list[Any], options: dict[str, Any]) -> object:
        try:
            if "timeout" in options:
                options["timeout"] = float(options["timeout"])
            return dialect.connect(*args, **options)
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidTargetError(
                place.name, f"the driver refuses its parameters: {error}"
            ) from error

    return engine


def ensure_database_file(place: DatabaseLocation, *, create: bool) -> None:
    """
    See that a SQLite file can be opened, and make the one that is to be created; looks at the disk.

    The folder is made only for the default location: a path that somebody wrote may lie on a disk
    that is not mounted. A new file is the owner's alone, and so are the `-wal` and `-shm` files
    that SQLite makes in its likeness. An existing one is not touched and not opened: closing it
    would drop the locks that this process holds on it.
    """
    path = place.path
    if path is None:
        return
    try:
        if create and place.is_default:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            found = path.stat()
        except FileNotFoundError:
            if not create:
                raise
            # Of a link that leads nowhere yet, what it leads to.
            _make_file(os.path.realpath(path))
            return
        except PermissionError as error:
            raise CatalogUnavailableError(
                place.name, "this process may not look into its folder"
            ) from error
    except OSError as error:
        raise _unreachable(place.name, path, error) from error
    if stat.S_ISDIR(found.st_mode):
        raise InvalidTargetError(place.name, "it is a directory: name a file in it")
    if not stat.S_ISREG(found.st_mode):
        raise InvalidTargetError(place.name, "it is not a regular file")
    if 0 < found.st_size < _SMALLEST_DATABASE_BYTES:
        # SQLite takes such a file for an empty database, and writes over it.
        raise corrupt_error(place.name, f"it is {found.st_size} bytes long")


def _unreachable(name: str, path: Path, error: OSError) -> CatalogError:
    if isinstance(error, FileNotFoundError):
        if path.parent.is_dir():
            return CatalogUnavailableError(
                name, "there is no such file: `model-catalog db upgrade` makes one"
            )
        folder = os.fspath(path.parent)
        return CatalogUnavailableError(
            name, f"there is no folder {folder!r}: make it first, or mount its disk"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return CatalogReadOnlyError(name, "this process may not make files there")
    return to_catalog_error(error, name)


def _make_file(path: str) -> None:
    with contextlib.suppress(FileExistsError):
        try:
            # mknod makes a file without opening it.
            os.mknod(path, 0o600 | stat.S_IFREG)
        except PermissionError:
            # macOS lets only root call mknod.
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))


def abandon_pool_after_fork(engine: Engine) -> None:
    """
    Begin anew in a child of the process, and let its parent's connections be.

    To close one would end the parent's session on the server, and for a driver that lives in the
    event loop even to forget one: the child would take the parent's socket out of the parent's own
    epoll, which they share.
    """
    _of_the_parent.append(engine.pool)
    engine.dispose(close=False)
