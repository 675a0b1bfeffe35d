"""Creates and configures engines: SQLite event listeners and BEGIN mode."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy import Connection, CursorResult, Engine, NullPool, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from model_catalog.concurrency.forks import start_task
from model_catalog.concurrency.threads import no_thread_error
from model_catalog.connection.backup_files import sqlite_uri
from model_catalog.connection.database_file import FileIdentityGuard, require_one_name
from model_catalog.connection.database_info import (
    DatabaseInfo,
    database_files,
    database_name,
    driver_connection,
    host_of,
    main_path,
)
from model_catalog.connection.interruption.forked_connections import prepare_for_fork
from model_catalog.connection.postgresql.engine import create_postgresql_engine
from model_catalog.connection.sqlite_pragmas import (
    Durability,
    JournalMode,
    log_sqlite_version,
    require_commit,
    set_host_pragmas,
    set_own_pragmas,
    temp_store,
)
from model_catalog.connection.target import DatabaseLocation, mask_secrets
from model_catalog.connection.timeouts import (
    HAS_WRITE_LOCK,
    LOCK_WAIT_S,
    WRITE,
    on_host_begin,
    on_reset,
)
from model_catalog.errors import InvalidTargetError

_infos: WeakKeyDictionary[Engine, DatabaseInfo] = WeakKeyDictionary()
_rollbacks: set[asyncio.Task[None]] = set()


def prepare_engine(engine: AsyncEngine) -> None:
    """
    Configure a host's SQLite engine with the transaction settings and PRAGMAs the catalog uses.

    Call it before the engine connects for the first time. It sends BEGIN itself, so that DDL is
    transactional; begins the catalog's writes with BEGIN IMMEDIATE; enables foreign keys and a
    write-ahead log; and rolls back when a task is cancelled, so that no lock remains. The catalog
    also works without it, but then the host's own transactions may not be safe. Calling it again,
    or for an engine of another database, has no effect.

    The engine may have a listener that sends BEGIN, or `autocommit=False` among its `connect_args`.
    Then its transactions begin as before, except for the catalog's writes.
    """
    sync_engine = engine.sync_engine
    if engine.dialect.name != "sqlite" or event.contains(sync_engine, "connect", _on_host_connect):
        return

    def move_listener_to_end(_connection: Any, _record: Any) -> None:
        # As the last listener it finds the transaction that a listener of the host has begun.
        event.remove(sync_engine, "begin", on_host_begin)
        event.listen(sync_engine, "begin", on_host_begin)

    event.listen(sync_engine, "connect", _on_host_connect)
    event.listen(sync_engine, "begin", on_host_begin)
    event.listen(sync_engine, "connect", move_listener_to_end, once=True)
    event.listen(sync_engine, "invalidate", _on_invalidate)


def database_info(engine: Engine) -> DatabaseInfo:
    """
    Return the facts about an engine's database. Does not connect. Raises InvalidTargetError.

    For a host's SQLite engine it looks once whether the file that the URL names has a second name.
    A host's SQLite engine may have a function that connects, and then its URL need not name the
    file. So its next connection is asked for the path.
    """
    if engine.dialect.name not in ("sqlite", "postgresql"):
        raise InvalidTargetError(
            mask_secrets(engine.url), "its database is neither SQLite nor PostgreSQL"
        )
    cascades = _enforces_foreign_keys(engine)
    info = _infos.get(engine)
    if info is not None:
        # The engine may have been prepared meanwhile.
        info.cascades = cascades
        return info
    is_of_host = engine.dialect.name == "sqlite" and engine not in _own_files
    info = DatabaseInfo(
        name=database_name(engine),
        dialect=engine.dialect.name,
        cascades=cascades,
        files=database_files(engine),
        knows_files=not is_of_host,
        host=host_of(engine),
    )
    if is_of_host:
        for file in info.files[:1]:
            require_one_name(file, info.name)
        _examine_connection(engine, info)
        prepare_for_fork(engine)
    _infos[engine] = info
    return info


def _examine_connection(engine: Engine, info: DatabaseInfo) -> None:
    @event.listens_for(engine, "checkout")
    def checkout(connection: Any, _record: Any, _proxy: Any) -> None:
        if info.knows_files:
            return
        require_commit(connection, info.name)
        # An error of this statement will be one of the next statement as well.
        with contextlib.suppress(Exception):
            info.set_path(main_path(connection))


def _enforces_foreign_keys(engine: Engine) -> bool:
    # SQLite ignores foreign keys unless each connection enables them.
    return (
        engine.dialect.name != "sqlite"
        or engine in _own_files
        or event.contains(engine, "connect", _on_host_connect)
    )


def _on_host_connect(connection: Any, _record: Any) -> None:
    set_host_pragmas(connection)


def send_begin(connection: Connection) -> None:
    """Begin a transaction of SQLite, with BEGIN IMMEDIATE if the option WRITE is set."""
    writes = bool(connection.get_execution_options().get(WRITE))
    statement = "BEGIN IMMEDIATE" if writes else "BEGIN"
    driver = connection.connection.driver_connection
    if isinstance(driver, sqlite3.Connection):
        # exec_driver_sql takes 13 us more: a lone registration then takes 1.11 times as long.
        driver.execute(statement)
    else:
        connection.exec_driver_sql(statement)
        connection.info[HAS_WRITE_LOCK] = writes


def _on_invalidate(connection: Any, _record: Any, _error: BaseException | None) -> None:
    # A task was cancelled during a statement. close() alone keeps the transaction, and with it the
    # write lock, until the pending cursor is collected. So a rollback is queued on the connection's
    # thread, before the close that SQLAlchemy queues next. Nothing is awaited here, so a second
    # cancellation cannot skip the rollback.
    async def roll_back() -> None:
        with contextlib.suppress(Exception):
            await driver_connection(connection).rollback()

    with contextlib.suppress(RuntimeError):  # no loop is running, so no statement is running either
        asyncio.get_running_loop()  # before the coroutine is made, which would never be awaited
        task = start_task(roll_back())
        _rollbacks.add(task)
        task.add_done_callback(_rollbacks.discard)


def create_sync_sqlite_engine(
    location: DatabaseLocation, path: Path, durability: Durability
) -> Engine:
    """
    Create a synchronous engine for a SQLite file of our own, for use in worker threads.

    It does not open or create the file. It has no pool: each connection is new, and is closed when
    it is released. Transactions raise CatalogReplacedError if another file has replaced the file
    that the engine opened first.
    """
    log_sqlite_version()
    dialect = _sqlite_dialect()
    file = _DatabaseFile(path, location.name, durability)

    def connect() -> Any:
        file.guard.remember()
        return dialect.connect(file.uri, uri=True, timeout=LOCK_WAIT_S, check_same_thread=False)

    url = location.url.set(drivername="sqlite+pysqlite")
    engine = sa.Engine(NullPool(connect, dialect=dialect), dialect, url, hide_parameters=True)
    _prepare_own(engine, file)
    return engine


@cache
def _sqlite_dialect() -> sa.Dialect:
    """
    Return the dialect of all files of our own. It keeps no state of a file.

    `create_engine` makes a dialect for each engine, whose first connection then asks SQLite for its
    version and defaults. That takes 0.7 ms, a fifth of the time of opening a file.
    """
    engine = sa.create_engine("sqlite+pysqlite://", poolclass=NullPool)
    with engine.connect():
        return engine.dialect


def create_engine(location: DatabaseLocation, sync_engine: Engine | None) -> AsyncEngine:
    """
    Create an async engine, for PostgreSQL or for the same SQLite file as `sync_engine`.

    Two engines of one file share its identity guard and its journal mode. Does not connect.
    """
    if sync_engine is None:
        return create_postgresql_engine(location)
    engine = create_async_engine(location.url, hide_parameters=True, pool_size=5, max_overflow=0)
    _open_by_uri(engine.sync_engine, _own_files[sync_engine])
    _prepare_own(engine.sync_engine, _own_files[sync_engine])
    event.listen(engine.sync_engine, "invalidate", _on_invalidate)
    return engine


class _DatabaseFile:
    """The settings that all engines of one SQLite file share."""

    def __init__(self, path: Path, name: str, durability: Durability) -> None:
        # With a URI SQLite can be told not to create the file.
        self.uri = sqlite_uri(path, "rw")
        self.durability: Durability = durability
        self.guard = FileIdentityGuard(path, name)
        self.journal_mode = JournalMode(path, name, durability)


_own_files: WeakKeyDictionary[Engine, _DatabaseFile] = WeakKeyDictionary()


def file_guard_of(engine: Engine) -> FileIdentityGuard:
    """Return the guard that checks whether the file of our own engine was replaced."""
    return _own_files[engine].guard


def _open_by_uri(engine: Engine, file: _DatabaseFile) -> None:
    @event.listens_for(engine, "do_connect")
    def open_uri(dialect: Any, _record: Any, args: list[Any], options: dict[str, Any]) -> object:
        file.guard.remember()
        args[0] = file.uri
        options.update(uri=True, timeout=LOCK_WAIT_S)
        try:
            return dialect.connect(*args, **options)
        except RuntimeError as error:
            # aiosqlite starts a thread for each connection.
            raise no_thread_error(error) from error


def _prepare_own(engine: Engine, file: _DatabaseFile) -> None:
    prepare_for_fork(engine)

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _record: Any) -> None:
        set_own_pragmas(connection, file.durability)

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        file.guard.check_unchanged()
        # SQLite refuses this setting inside a transaction.
        temp = temp_store(file.guard.size_bytes)
        if connection.info.get("temp_store") != temp:
            connection.exec_driver_sql(f"PRAGMA temp_store = {temp}")
            connection.info["temp_store"] = temp
        # The journal mode is stored in the file, so it is set only before the first write. A file
        # that is empty or only read, or belongs to another program, must not be changed.
        if connection.get_execution_options().get(WRITE) and not connection.info.get("journal"):
            file.journal_mode.apply(lambda pragma: _first_value(connection.exec_driver_sql(pragma)))
            connection.info["journal"] = True
        send_begin(connection)

    @event.listens_for(engine, "commit")
    def commit(connection: Connection) -> None:
        # Checked before COMMIT, so that nothing is written to the log of another file.
        if connection.get_execution_options().get(WRITE):
            file.guard.check_unchanged()

    event.listen(engine, "reset", on_reset)
    _own_files[engine] = file


def _first_value(result: CursorResult[Any]) -> Any:
    return result.scalar() if result.returns_rows else None
