"""Backs up and restores catalogs: online copy, and atomic replacement of a SQLite file."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sqlite3
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import (
    AbstractContextManager,
    ExitStack,
    asynccontextmanager,
    closing,
    contextmanager,
)
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

from model_catalog.concurrency.completion import run_to_completion
from model_catalog.concurrency.retry import retry_while_busy
from model_catalog.concurrency.threads import to_thread
from model_catalog.connection.backup_files import free_backup_path, integrity_error, sqlite_uri
from model_catalog.connection.database_file import (
    corrupt_error,
    processes_using,
    require_regular_file,
    sidecar_paths,
)
from model_catalog.connection.error_mapping import map_errors
from model_catalog.connection.online_backup import NewPath, atomic_file, fsync_path, online_backup
from model_catalog.connection.open_database import (
    MAX_SHOWN_PROBLEMS,
    OpenDatabase,
    find_damage,
    open_database,
)
from model_catalog.connection.target import Target, absolute_target, display_name, resolve_target
from model_catalog.errors import (
    CatalogInUseError,
    CatalogReadOnlyError,
    ForeignDatabaseError,
    InvalidTargetError,
    command,
)
from model_catalog.repository.model_catalog import ModelCatalog, find_database_files
from model_catalog.schema.revision import current_revision, require_known_revision

T = TypeVar("T")

# The range of bytes that SQLite locks in a file: https://www.sqlite.org/src/file/src/os.h
_PENDING_BYTE: Final = 0x40000000
_LOCK_RANGE_BYTES: Final = 512


async def backup(
    source: ModelCatalog | Target | None = None,
    path: str | os.PathLike[str] | None = None,
    *,
    schema: str | None = None,
) -> Path:
    """
    Back up a catalog while others may use it, and return the path of the backup.

    The backup of a SQLite catalog is a database. Without `path` it is created beside the original,
    named after the time. The backup of a PostgreSQL catalog is an export, and needs a `path`.
    The backup is a snapshot, readable only by its owner, and flushed to the disk. If it fails, no
    file remains. An existing file is never replaced. In a host's SQLite file, the host's own
    committed rows are included. `schema` is the schema of a target on PostgreSQL, as in `upgrade`.

    Raises InvalidTargetError if `path` exists, StorageFullError, and the errors of `open_catalog`.
    """
    if isinstance(source, ModelCatalog):
        return await _back_up_catalog(source, path)
    async with open_database(source, create=False, schema=schema) as database:
        require_known_revision((await current_revision(database)).revision, database.name)
        return await _back_up_catalog(ModelCatalog(async_sessionmaker(database.engine)), path)


async def _back_up_catalog(catalog: ModelCatalog, path: str | os.PathLike[str] | None) -> Path:
    files = await find_database_files(catalog)
    if files:
        file = files[0]
        to: NewPath = lambda: free_backup_path(file, "backup")  # noqa: E731 - one of two values
        if path is not None:
            to = new_file_path(path)
        return await online_backup(file, repr(os.fspath(file)), to)
    if path is None:
        raise InvalidTargetError("''", "the path is empty; give the path of the backup")
    to = new_file_path(path)
    async with _enter_in_thread(atomic_file(to)) as partial:
        stream = await to_thread(partial.open, "wb")
        try:
            await catalog.export_catalog(stream)
        finally:
            await run_to_completion(to_thread(stream.close))
    return to


@asynccontextmanager
async def _enter_in_thread(context: AbstractContextManager[T]) -> AsyncIterator[T]:
    """Enter and leave a context manager in a worker thread, because it waits for the disk."""
    stack = ExitStack()
    entered = await run_to_completion(to_thread(stack.enter_context, context))
    try:
        yield entered
    except BaseException as error:
        await run_to_completion(to_thread(stack.__exit__, type(error), error, error.__traceback__))
        raise
    await run_to_completion(to_thread(stack.close))


def new_file_path(path: str | os.PathLike[str]) -> Path:
    """Return the absolute path of a file. Raises InvalidTargetError for a directory."""
    absolute = Path(absolute_target(os.fspath(path)))
    if absolute.is_dir():
        raise InvalidTargetError(repr(os.fspath(absolute)), "it is a directory: name a file in it")
    return absolute


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """The number of restored models, and the path of the replaced database (None if none)."""

    model_count: int
    replaced: Path | None


async def restore(copy: str | os.PathLike[str], target: Target | None = None) -> RestoreResult:
    """
    Replace a SQLite catalog with a backup. The backup is checked completely first, and is kept.

    The old database may be corrupt. It is kept, with its write-ahead log, as
    `catalog.db.replaced-20261123T140509Z`. At every moment it exists under one of the two names.
    The old log and journal are removed from beside the restored file, because SQLite would apply
    them to it. The restored file has the owner, the group and the mode of the old one.

    Raises CatalogInUseError while any process, including this one, has the target open;
    CatalogCorruptError, ForeignDatabaseError or SchemaTooNewError if the backup is not a catalog
    that this package can open; CatalogReadOnlyError if this process may not give the restored file
    to its owner; InvalidTargetError for a path that is not a regular file, and for a database on a
    server, which `import_catalog` restores.
    """
    way_out = f"restore an export with {command('import', os.fsdecode(copy))}"
    path, name = file_of_target(target, way_out)
    backup_file = new_file_path(copy)
    model_count = await _check_and_count(backup_file)
    replaced = await run_to_completion(to_thread(_replace_database_file, backup_file, path, name))
    return RestoreResult(model_count, replaced)


def file_of_target(target: Target | None, way_out: str) -> tuple[Path, str]:
    """
    Return the SQLite file of a target, with links resolved, and its name in messages.

    Raises InvalidTargetError with `way_out` for a database on a server.
    """
    if isinstance(target, AsyncEngine):
        raise InvalidTargetError(
            display_name(target.url), "an engine has it open; dispose the engine and name the file"
        )
    location = resolve_target(target)
    if location.path is None:
        raise InvalidTargetError(location.name, f"it is on a server; {way_out}")
    return Path(os.path.realpath(location.path)), location.name


async def _check_and_count(backup_file: Path) -> int:
    """Check all pages of a backup, and return the number of its models."""
    await to_thread(_require_unshared, backup_file)
    async with open_database(backup_file, create=False, is_backup=True) as database:
        revision = (await current_revision(database)).revision
        require_known_revision(revision, database.name)
        return await retry_while_busy(lambda: _check_once(database), database.wait_s)


async def _check_once(database: OpenDatabase) -> int:
    with map_errors(database.name):
        async with database.engine.connect() as connection:
            if problems := await connection.run_sync(find_damage, "integrity_check"):
                raise corrupt_error(database.name, "; ".join(problems[:MAX_SHOWN_PROBLEMS]))
            tables = await connection.exec_driver_sql(
                "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'models'"
            )
            if not tables.scalar_one():
                raise ForeignDatabaseError(database.name, "no table 'models'")
            models = await connection.exec_driver_sql("SELECT count(*) FROM models NOT INDEXED")
            return int(models.scalar_one())


def _require_unshared(backup_file: Path) -> None:
    """Raise CatalogInUseError if a backup with several hard links is open under any of them."""
    with map_errors(repr(os.fspath(backup_file))):
        if backup_file.is_file() and backup_file.stat().st_nlink > 1:
            # A change in the log of the other name is not visible under this name.
            require_unused(backup_file, repr(os.fspath(backup_file)))


def _replace_database_file(backup_file: Path, path: Path, name: str) -> Path | None:
    """Replace a database file with a copy of a backup. Return the new path of the old file."""
    with map_errors(name):
        try:
            found = require_regular_file(path, name)
        except FileNotFoundError:
            with atomic_file(path) as partial:
                _copy_pages(backup_file, partial)
            return None
        if path.samefile(backup_file):
            raise InvalidTargetError(name, "the backup and the catalog are the same file")
        require_unused(path, name)
        _checkpoint_if_valid(path)
        with _exclusive_lock(path, name) as descriptor:
            replaced = free_backup_path(path, "replaced")
            replacement = path.with_name(f".{replaced.name}.new")
            try:
                _create_like(found, replacement, name)
                _copy_pages(backup_file, replacement)
                # After the pages: the mode may not allow this process to write.
                replacement.chmod(stat.S_IMODE(found.st_mode))
                fsync_path(replacement)
                with _second_names(descriptor, path, replaced):
                    # Before the database, because SQLite would apply them to the restored file.
                    for sidecar in sidecar_paths(path):
                        sidecar.unlink(missing_ok=True)
                    fsync_path(path.parent)
                    replacement.replace(path)
                fsync_path(path.parent)
            finally:
                replacement.unlink(missing_ok=True)
        return replaced


def require_unused(path: Path, name: str) -> None:
    """Raise CatalogInUseError if any process, including this one, has a file open."""
    # Checked before this process opens the file: closing it would drop the process's own locks.
    if users := processes_using(path):
        listed = ", ".join(
            "this process" if user == os.getpid() else f"process {user}" for user in users
        )
        raise CatalogInUseError(name, f"{listed} has it open")


def _checkpoint_if_valid(path: Path) -> None:
    """Write a leftover log into its database, unless the database is corrupt."""
    with contextlib.suppress(sqlite3.Error):
        # Opened read-only, because a connection that can write would checkpoint when it closes.
        with closing(sqlite3.connect(sqlite_uri(path, "ro"), uri=True, timeout=0)) as raw:
            is_valid = raw.execute("PRAGMA quick_check(1)").fetchone() == ("ok",)
        if is_valid:
            with closing(sqlite3.connect(sqlite_uri(path, "rw"), uri=True, timeout=0)) as raw:
                raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()


@contextmanager
def _exclusive_lock(path: Path, name: str) -> Iterator[int]:
    """
    Hold all of SQLite's locks on a file, also on a corrupt one, and yield its descriptor.

    This process must not have the file open: closing the descriptor drops all of its locks.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except PermissionError as error:
        raise CatalogReadOnlyError(
            name, "this process has no permission to write the file"
        ) from error
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, _LOCK_RANGE_BYTES, _PENDING_BYTE)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            raise CatalogInUseError(name, "another process has a lock on it") from error
        yield descriptor
    finally:
        os.close(descriptor)


def _copy_pages(backup_file: Path, destination: Path) -> None:
    # With SQLite's backup API, because some of the backup's pages may be in its own log.
    with (
        closing(sqlite3.connect(sqlite_uri(backup_file, "ro"), uri=True)) as source,
        closing(sqlite3.connect(sqlite_uri(destination, "rw"), uri=True)) as target,
    ):
        source.backup(target)
    if problem := integrity_error(destination):
        raise corrupt_error(
            repr(os.fspath(backup_file)), f"the copied pages fail the integrity check: {problem}"
        )


def _create_like(old: os.stat_result, new: Path, name: str) -> None:
    """Create an empty file with the owner and the group of another file."""
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
    descriptor = os.open(new, flags, 0o600)
    try:
        created = os.fstat(descriptor)
        if (created.st_uid, created.st_gid) != (old.st_uid, old.st_gid):
            os.fchown(descriptor, old.st_uid, old.st_gid)
    except PermissionError as error:
        raise CatalogReadOnlyError(
            name,
            f"this process may not give the restored file to the owner of the old one, user "
            f"{old.st_uid} and group {old.st_gid}. Restore it as that user or as root",
        ) from error
    finally:
        os.close(descriptor)


@contextmanager
def _second_names(descriptor: int, path: Path, replaced: Path) -> Iterator[None]:
    """
    Give a database, its log and its journal a second name, so that they can be opened later.

    If the block fails, the files have only their old names again.
    """
    # The -shm file is not needed: SQLite rebuilds this index from the log.
    names = [
        (path, replaced),
        *zip(sidecar_paths(path)[::2], sidecar_paths(replaced)[::2], strict=True),
    ]
    try:
        for old, new in names:
            if old.exists():
                _link_or_copy(descriptor if old == path else None, old, new)
        yield
    except BaseException:
        for old, new in names:
            if old.exists():
                new.unlink(missing_ok=True)
            else:
                with contextlib.suppress(FileNotFoundError):
                    new.replace(old)
        raise


def _link_or_copy(descriptor: int | None, old: Path, new: Path) -> None:
    try:
        os.link(old, new)
    except OSError:
        # The file system has no hard links. The database is read through the open descriptor,
        # because closing another one would drop the lock.
        source = os.open(old, os.O_RDONLY | os.O_CLOEXEC) if descriptor is None else descriptor
        try:
            _copy_bytes(source, new)
        finally:
            if descriptor is None:
                os.close(source)


def _copy_bytes(source: int, destination: Path) -> None:
    target = os.open(destination, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        offset = 0
        while block := os.pread(source, 2**20, offset):
            offset += os.write(target, block)
        os.fsync(target)
    finally:
        os.close(target)
