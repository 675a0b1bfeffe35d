"""Opens a database: resolves its target, creates or checks the file, and owns the engines."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from model_catalog.concurrency.completion import run_to_completion
from model_catalog.concurrency.retry import DEFAULT_OPEN_TIMEOUT_S, retry_while_busy
from model_catalog.concurrency.threads import thread_working, to_thread
from model_catalog.connection.backup_files import page_problems
from model_catalog.connection.database_file import (
    corrupt_error,
    network_file_system,
    require_log_of_owner,
    require_one_name,
    require_regular_file,
    was_shut_down_uncleanly,
)
from model_catalog.connection.database_info import (
    database_name,
    scope_options,
)
from model_catalog.connection.engines import (
    create_engine,
    create_sync_sqlite_engine,
    database_info,
)
from model_catalog.connection.error_mapping import map_errors, to_catalog_error
from model_catalog.connection.interruption.sqlite_forks import require_not_inherited
from model_catalog.connection.sqlite_pragmas import Durability
from model_catalog.connection.target import (
    HOST_VARIABLE,
    DatabaseLocation,
    Target,
    default_host,
    default_schema,
    name_with_schema,
    resolve_target,
    validate_schema,
)
from model_catalog.domain import key_validation
from model_catalog.errors import (
    CatalogCorruptError,
    CatalogError,
    CatalogReadOnlyError,
    CatalogUnavailableError,
    command,
)

# SQLite's smallest page size. A shorter file cannot be a database.
_MIN_DATABASE_BYTES: Final = 512

MAX_SHOWN_PROBLEMS: Final = 3
"""How many problems of a damaged file an error lists."""

log = logging.getLogger("model_catalog.connection")


class OpenDatabase:
    """
    An open database: its engines and its name in messages.

    If it is `shared`, other programs may have tables in it. That is so for a host's engine and for
    every server. Unless `create`, a missing file or schema is an error.

    `path` and `sync_engine` are set only for a SQLite file of our own, and `is_on_network` says
    whether that is on a network file system. `wait_s` is how long opening and migrating wait for
    locks, in seconds.
    """

    def __init__(
        self,
        name: str,
        make_engine: Callable[[], AsyncEngine],
        *,
        shared: bool,
        create: bool,
        path: Path | None = None,
        sync_engine: Engine | None = None,
        is_on_network: bool = False,
        wait_s: float = DEFAULT_OPEN_TIMEOUT_S,
    ) -> None:
        self.name: Final = name
        self.shared: Final = shared
        self.create: Final = create
        self.path: Final = path
        self.sync_engine: Final = sync_engine
        self.is_on_network: Final = is_on_network
        self.wait_s: Final = wait_s
        self._make_engine = make_engine
        self._engine: AsyncEngine | None = None

    @property
    def engine(self) -> AsyncEngine:
        """The async engine, created on first use: a file that needs no migration needs none."""
        if self._engine is None:
            self._engine = self._make_engine()
        return self._engine

    async def dispose(self) -> None:
        """Close the connections of the async engine, if it was created."""
        if self._engine is not None:
            with thread_working():
                await run_to_completion(self._engine.dispose())


def open_database(
    target: Target | None,
    *,
    create: bool,
    durability: Durability = "full",
    wait_s: float = DEFAULT_OPEN_TIMEOUT_S,
    shared: bool = False,
    is_backup: bool = False,
    schema: str | None = None,
    host: str | None = None,
) -> AbstractAsyncContextManager[OpenDatabase]:
    """
    Open the database that a target names. At the end our own engine is disposed, a host's is not.

    `shared` says that other programs may have tables in the database. A host's engine implies it.
    `is_backup` says that no other program writes to the file, so it may have several hard links.
    Any other SQLite file with two names raises InvalidTargetError.
    `schema` is the schema of the catalog's tables on PostgreSQL. None is the one in a host's
    `schema_translate_map`, in `MODEL_CATALOG_SCHEMA` for the default target, or the default schema.
    `host` is the host whose models are worked on; None is the one in `MODEL_CATALOG_HOST` for the
    default target, or no host. Raises InvalidModelError for an invalid name.

    A SQLite file that was not shut down cleanly is read once completely; if that finds damage, it
    raises CatalogCorruptError. A CatalogCorruptError that leaves the block names the newest valid
    backup.
    """
    return _Opening(
        target,
        create,
        durability,
        wait_s,
        shared=shared,
        is_backup=is_backup,
        schema=schema,
        host=host,
    )


# Not a generator: at shutdown, a loop closes all its async generators at once. It may close an
# inner generator before the outer generator that uses it.
class _Opening(AbstractAsyncContextManager[OpenDatabase]):
    def __init__(
        self,
        target: Target | None,
        create: bool,  # noqa: FBT001 - called only by open_database()
        durability: Durability,
        wait_s: float,
        *,
        shared: bool,
        is_backup: bool,
        schema: str | None,
        host: str | None,
    ) -> None:
        self._target = target
        self._is_backup = is_backup
        self._shared = shared
        self._schema = schema
        if host is None:
            self._host = key_validation.optional_host(HOST_VARIABLE, default_host(target))
        else:
            self._host = key_validation.optional_host("host", host)
        self._create = create
        self._durability: Durability = durability
        self._wait_s = wait_s
        self._process_id = os.getpid()
        self._own: OpenDatabase | None = None

    async def __aenter__(self) -> OpenDatabase:
        target = self._target
        if isinstance(target, AsyncEngine):
            info = database_info(target.sync_engine)
            for file in info.files[:1]:
                await to_thread(require_one_name, file, info.name)
            return self._use_engine(target)
        location = resolve_target(target)
        schema = self._schema if self._schema is not None else default_schema(target)
        validate_schema(schema, location.url.get_backend_name(), location.name)
        path = location.path
        is_unclean, is_on_network = await to_thread(
            _prepare_file, location, create=self._create, is_backup=self._is_backup
        )
        sync_engine = (
            None if path is None else create_sync_sqlite_engine(location, path, self._durability)
        )
        if sync_engine is not None:
            sync_engine.update_execution_options(**scope_options(sync_engine, None, self._host))
        database = self._own = OpenDatabase(
            name_with_schema(location.name, schema),
            lambda: _with_scope(create_engine(location, sync_engine), schema, self._host),
            shared=self._shared,
            create=self._create,
            path=path,
            sync_engine=sync_engine,
            is_on_network=is_on_network,
            wait_s=self._wait_s,
        )
        if is_unclean:
            try:
                await _check_pages(database)
            except BaseException as error:
                await self.__aexit__(type(error), error)
                raise
        return database

    def _use_engine(self, engine: AsyncEngine) -> OpenDatabase:
        engine = _with_scope(engine, self._schema, self._host)
        return OpenDatabase(
            database_name(engine.sync_engine),
            lambda: engine,
            shared=True,
            create=self._create,
            wait_s=self._wait_s,
        )

    async def __aexit__(
        self, _kind: object = None, error: BaseException | None = None, _traceback: object = None
    ) -> None:
        if os.getpid() != self._process_id:
            return
        if self._own is not None:
            await self._own.dispose()
        if isinstance(error, CatalogCorruptError):
            # The lookup reads backups, which must not block the event loop.
            await run_to_completion(to_thread(getattr, error, "copy"))


def _with_scope(engine: AsyncEngine, schema: str | None, host: str | None) -> AsyncEngine:
    """Return an engine with the same pool, bound to a schema and a host; None keeps either."""
    options = scope_options(engine.sync_engine, schema, host)
    return engine.execution_options(**options) if options else engine


def _prepare_file(
    location: DatabaseLocation, *, create: bool, is_backup: bool
) -> tuple[bool, bool]:
    """
    Create or check the file.

    Returns whether it was shut down uncleanly, and whether it is on a network file system.
    """
    _ensure_database_file(location, create=create)
    if location.path is None:
        return False, False
    if not is_backup:
        require_one_name(location.path, location.name)
    require_not_inherited(location.path, location.name)
    require_log_of_owner(location.path, location.name)
    # Checked before the first connection, because a reader may recover and shorten the log.
    is_unclean = was_shut_down_uncleanly(location.path)
    return is_unclean, network_file_system(location.path) is not None


async def _check_pages(database: OpenDatabase) -> None:
    async def check_once() -> list[str]:
        with map_errors(database.name):
            async with database.engine.connect() as connection:
                return await connection.run_sync(find_damage, "quick_check")

    log.info(
        "the catalog at %s was not closed cleanly: checking all of its pages",
        database.name,
        extra={"model_catalog_url": database.name},
    )
    problems = await retry_while_busy(check_once, database.wait_s)
    if problems:
        raise corrupt_error(database.name, "; ".join(problems[:MAX_SHOWN_PROBLEMS]))


def find_damage(connection: Connection, check: str) -> list[str]:
    """Return the problems of a SQLite database's pages; see `page_problems`."""
    return page_problems(
        lambda statement: connection.exec_driver_sql(statement).scalars().all(), check
    )


def _ensure_database_file(location: DatabaseLocation, *, create: bool) -> None:
    """
    Check that a SQLite file can be opened, and create it if it is missing and `create` is true.

    Does nothing for PostgreSQL. A new file is readable and writable only by its owner; SQLite gives
    the `-wal` and `-shm` files the same mode. An existing file is neither changed nor opened,
    because closing it would drop the locks of this process. The folder is created only for the
    default location: another path may be on a disk that is not mounted.

    Raises InvalidTargetError, CatalogUnavailableError, CatalogReadOnlyError, CatalogCorruptError.
    """
    path = location.path
    if path is None:
        return
    try:
        if create and location.is_default:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            found = require_regular_file(path, location.name)
        except FileNotFoundError:
            if not create:
                raise
            # For a dangling link, its target is created.
            _create_file(os.path.realpath(path))
            return
        except PermissionError as error:
            raise CatalogUnavailableError(
                location.name, "this process has no permission to search its folder"
            ) from error
    except OSError as error:
        raise _file_error(location.name, path, error) from error
    if 0 < found.st_size < _MIN_DATABASE_BYTES:
        # SQLite would treat such a file as an empty database and overwrite it.
        raise corrupt_error(location.name, f"it is {found.st_size} bytes long")


def _file_error(name: str, path: Path, error: OSError) -> CatalogError:
    if isinstance(error, FileNotFoundError):
        if path.parent.is_dir():
            return CatalogUnavailableError(
                name,
                f"the file does not exist; {command('scan', target=name)} creates it and records "
                f"the models of this machine, and {command('db', 'upgrade', target=name)} creates "
                "it without models",
            )
        folder = os.fspath(path.parent)
        return CatalogUnavailableError(
            name, f"the folder {folder!r} does not exist; create it or mount its disk"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return CatalogReadOnlyError(name, "this process has no permission to create the file")
    return to_catalog_error(error, name)


def _create_file(path: str) -> None:
    with contextlib.suppress(FileExistsError):
        try:
            # mknod() creates a file without opening it.
            os.mknod(path, 0o600 | stat.S_IFREG)
        except PermissionError:
            # On macOS only root may call mknod().
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
