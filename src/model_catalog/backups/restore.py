"""A catalog's copies, made and put back: nothing is replaced before its heir was read."""

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
from model_catalog.concurrency.threads import to_thread
from model_catalog.connection.backup_files import free_backup_path, integrity_error, sqlite_uri
from model_catalog.connection.database_file import corrupt_error, processes_using, sidecar_paths
from model_catalog.connection.error_mapping import map_errors
from model_catalog.connection.online_backup import atomic_file, fsync_path, online_backup
from model_catalog.connection.open_database import open_database
from model_catalog.connection.target import Target, display_name, resolve_target
from model_catalog.errors import (
    CatalogInUseError,
    CatalogReadOnlyError,
    ForeignDatabaseError,
    InvalidTargetError,
)
from model_catalog.repository.model_catalog import ModelCatalog
from model_catalog.schema.revision import current_revision, require_known_revision

T = TypeVar("T")

# Where SQLite keeps its locks in a file: https://www.sqlite.org/src/file/src/os.h, PENDING_BYTE.
_LOCKS_AT: Final = 0x40000000
_LOCKS_LONG: Final = 512


async def backup(
    source: ModelCatalog | Target | None = None, path: str | os.PathLike[str] | None = None
) -> Path:
    """
    Copy a catalog, open or not, while others use it; return where the copy is.

    Of SQLite it is a database, beside the original and named after the time unless `path` says
    otherwise; of PostgreSQL, where `path` has to be given, it is what `export_catalog` writes. It
    is the state of one moment, its owner's alone, on the disk when this returns, and whole or not
    there at all. A file that is there is never replaced. A host's own rows in a SQLite file are in
    the copy too; a transaction that is still open is not.

    Raises InvalidTargetError for a path that is taken, StorageFullError, and what `open_catalog`
    raises.
    """
    if isinstance(source, ModelCatalog):
        return await _of_catalog(source, path)
    async with open_database(source, create=False) as database:
        require_known_revision(await current_revision(database), database.name)
        return await _of_catalog(ModelCatalog(async_sessionmaker(database.engine)), path)


async def _of_catalog(catalog: ModelCatalog, path: str | os.PathLike[str] | None) -> Path:
    files = catalog.database_files
    if files:
        to = free_backup_path(files[0], "backup") if path is None else absolute(path)
        return await online_backup(files[0], repr(os.fspath(files[0])), to)
    if path is None:
        raise InvalidTargetError("''", "it names no file: say where the copy is to lie")
    to = absolute(path)
    async with _in_a_thread(atomic_file(to)) as part:
        stream = await to_thread(part.open, "wb")
        try:
            await catalog.export_catalog(stream)
        finally:
            await run_to_completion(to_thread(stream.close))
    return to


@asynccontextmanager
async def _in_a_thread(steps: AbstractContextManager[T]) -> AsyncIterator[T]:
    """The same with its first and its last step in a thread: they wait for a disk."""
    stack = ExitStack()
    yielded = await run_to_completion(to_thread(stack.enter_context, steps))
    try:
        yield yielded
    except BaseException as error:
        await run_to_completion(to_thread(stack.__exit__, type(error), error, error.__traceback__))
        raise
    await run_to_completion(to_thread(stack.close))


def absolute(path: str | os.PathLike[str]) -> Path:
    """Where a new file is to lie. Raises InvalidTargetError for a directory."""
    to = Path(os.path.abspath(os.path.expanduser(os.fspath(path))))  # noqa: PTH100, PTH111
    if to.is_dir():
        raise InvalidTargetError(repr(os.fspath(to)), "it is a directory: name a file in it")
    return to


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """What a restoration did: how many models there are, and where lies what was there before."""

    model_count: int
    replaced: Path | None


async def restore(copy: str | os.PathLike[str], target: Target | None = None) -> RestoreResult:
    """
    Put a copy of a SQLite catalog in the place of a catalog, which is kept under another name.

    The copy is read to its end first, and stays. What is replaced may be damaged; it is called
    `catalog.db.replaced-20261123T140509Z`, with its log, and is at no moment under neither name. A
    log of it that would be taken for the copy's is removed.

    Raises CatalogInUseError while any process has the target open, this one too;
    CatalogCorruptError, ForeignDatabaseError and SchemaTooNewError for a copy that is no catalog of
    this package; InvalidTargetError for a server's: `import_catalog` reads its copies.
    """
    path, name = file_of_target(target)
    heir = absolute(copy)
    models = await _count(heir)
    return RestoreResult(models, await run_to_completion(to_thread(_put, heir, path, name)))


def file_of_target(target: Target | None) -> tuple[Path, str]:
    """The SQLite file that a target names, links followed, and its name in messages."""
    if isinstance(target, AsyncEngine):
        raise InvalidTargetError(
            display_name(target.url), "an engine has it open: dispose of that, and name the file"
        )
    place = resolve_target(target)
    if place.path is None:
        raise InvalidTargetError(
            place.name, "it is on a server, whose copies are read by `model-catalog import`"
        )
    return Path(os.path.realpath(place.path)), place.name


async def _count(copy: Path) -> int:
    """How many models are in a copy that is read from its first page to its last."""
    async with open_database(copy, create=False) as database:
        revision = await current_revision(database)
        require_known_revision(revision, database.name)
        with map_errors(database.name):
            async with database.engine.connect() as connection:
                pages = (await connection.exec_driver_sql("PRAGMA integrity_check(3)")).scalars()
                found = list(pages)
                if found != ["ok"]:
                    raise corrupt_error(database.name, "; ".join(found))
                tables = await connection.exec_driver_sql(
                    "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'models'"
                )
                if not tables.scalar_one():
                    raise ForeignDatabaseError(database.name, "no table 'models'")
                models = await connection.exec_driver_sql("SELECT count(*) FROM models")
                return int(models.scalar_one())


def _put(copy: Path, real: Path, name: str) -> Path | None:
    with map_errors(name):
        if not real.exists():
            with atomic_file(real) as part:
                _copy_pages(copy, part)
            return None
        if real.samefile(copy):
            raise InvalidTargetError(name, "it is the copy itself")
        refuse_users(real, name)
        _close_log(real)
        with _locked(real, name) as descriptor:
            kept = free_backup_path(real, "replaced")
            heir = real.with_name(f".{kept.name}.heir")
            try:
                os.close(os.open(heir, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
                _copy_pages(copy, heir)
                heir.chmod(stat.S_IMODE(os.fstat(descriptor).st_mode))
                fsync_path(heir)
                _keep(descriptor, real, kept)
                # First the logs: SQLite would take them for the copy's.
                for rest in sidecar_paths(real):
                    rest.unlink(missing_ok=True)
                fsync_path(real.parent)
                heir.replace(real)
                fsync_path(real.parent)
            finally:
                heir.unlink(missing_ok=True)
        return kept


def refuse_users(path: Path, name: str) -> None:
    """Raise CatalogInUseError while a process, this one too, has a file open."""
    # Before the file is opened here: closing it would drop this process's own locks.
    if users := processes_using(path):
        listed = ", ".join(
            "this process" if user == os.getpid() else f"process {user}" for user in users
        )
        raise CatalogInUseError(name, f"{listed} has it open")


def _close_log(path: Path) -> None:
    """Write the log of a database that was not closed into it; of a damaged one nothing changes."""
    with contextlib.suppress(sqlite3.Error):
        # A connection that may write would write the log when it closes, whatever it has read.
        with closing(sqlite3.connect(sqlite_uri(path, "ro"), uri=True, timeout=0)) as raw:
            is_sound = raw.execute("PRAGMA quick_check(1)").fetchone() == ("ok",)
        if is_sound:
            with closing(sqlite3.connect(sqlite_uri(path, "rw"), uri=True, timeout=0)) as raw:
                raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()


@contextmanager
def _locked(path: Path, name: str) -> Iterator[int]:
    """
    All of SQLite's locks on a file, whatever is in it: nobody reads or writes it meanwhile.

    For a file that this process does not have open: at the end its own locks are gone.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except PermissionError as error:
        raise CatalogReadOnlyError(name, "this process may not write it") from error
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, _LOCKS_LONG, _LOCKS_AT)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            raise CatalogInUseError(name, "another process has a lock on it") from error
        yield descriptor
    finally:
        os.close(descriptor)


def _copy_pages(copy: Path, to: Path) -> None:
    # By SQLite, because a part of the copy may be in a log of its own.
    with (
        closing(sqlite3.connect(sqlite_uri(copy, "ro"), uri=True)) as source,
        closing(sqlite3.connect(sqlite_uri(to, "rw"), uri=True)) as target,
    ):
        source.backup(target)
    if fault := integrity_error(to):
        raise corrupt_error(repr(os.fspath(copy)), f"what was read of it is not whole: {fault}")


def _keep(descriptor: int, path: Path, kept: Path) -> None:
    """Give a database and what lies beside it second names that belong together."""
    # The index of a log is made anew from it.
    names = [(path, kept), *zip(sidecar_paths(path)[::2], sidecar_paths(kept)[::2], strict=True)]
    for old, new in names:
        if not old.exists():
            continue
        try:
            os.link(old, new)
        except OSError:
            # A file system without second names. The database is read through the descriptor that
            # is open already: to close another would drop the lock.
            source = descriptor if old == path else os.open(old, os.O_RDONLY | os.O_CLOEXEC)
            try:
                _copy_bytes(source, new)
            finally:
                if source != descriptor:
                    os.close(source)


def _copy_bytes(source: int, to: Path) -> None:
    target = os.open(to, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        at = 0
        while block := os.pread(source, 2**20, at):
            at += os.write(target, block)
        os.fsync(target)
    finally:
        os.close(target)
