"""Opens a catalog: migrates the database, chooses the executor, and closes both at the end."""

from __future__ import annotations

from collections.abc import AsyncIterator

from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

from model_catalog.concurrency.completion import run_to_completion
from model_catalog.concurrency.context_managers import inner_contextmanager, outer_contextmanager
from model_catalog.concurrency.ownership import LoopOwner
from model_catalog.connection.open_database import OpenDatabase, open_database
from model_catalog.connection.sqlite_pragmas import Durability, validate_durability
from model_catalog.connection.target import Target
from model_catalog.domain import validation
from model_catalog.execution.postgres_executor import PostgresExecutor
from model_catalog.execution.session_executor import SessionExecutor
from model_catalog.execution.sqlite_threads.thread_executor import (
    ReadMode,
    ThreadExecutor,
    validate_read_mode,
)
from model_catalog.repository.model_catalog import ModelCatalog
from model_catalog.schema.migrate import migrate_to
from model_catalog.schema.revision import require_current_schema


@outer_contextmanager
async def open_catalog(
    target: Target | None = None,
    *,
    upgrade: bool = True,
    create: bool = True,
    timeout_s: float = 30.0,
    durability: Durability = "full",
    reads: ReadMode = "threads",
    shared: bool = False,
    schema: str | None = None,
    host: str | None = None,
) -> AsyncIterator[ModelCatalog]:
    """
    Open a catalog, and close it when the block ends.

    `target` is a path, a URL, a URL object or a host's AsyncEngine. None is the environment
    variable `MODEL_CATALOG_URL`, or else `.rbee/models/catalog.db` in the working directory. A
    missing SQLite file is created, readable by its owner only, unless `create` is false. Its folder
    is created only for the default path.

    The tables are created or migrated to the newest revision. With `upgrade=False`, tables that are
    missing or older raise SchemaOutOfDateError. Tables of a newer package always raise
    SchemaTooNewError. In a database with another program's tables they are created only with
    `shared=True`, or over the program's own AsyncEngine. `schema` is their schema on PostgreSQL, as
    in `upgrade`. `timeout_s` is the number of seconds that opening waits for locks, and that a call
    may take.

    The catalog works on the models of `host`, as in `gpu-07`, and on those of no other host. None
    is `MODEL_CATALOG_HOST` for the default target, or else a catalog with the host `""`.

    Changes in a SQLite file survive a crash of the process once the call has returned. With
    `durability="full"` they survive a power failure too, because every transaction waits for the
    disk. With "normal" a power failure may lose the last transactions, but never corrupts the
    database. A PostgreSQL server and a host's engine keep their own settings.

    With `reads="inline"` `find_model` and `get_model` read a SQLite file in the event loop's
    thread. This avoids a thread switch, which costs five times the query itself, or fifty times
    when the loop is busy. Use it for a file on a local disk that is mostly cached: a slow disk
    blocks the whole loop, and no timeout ends such a read. A read that would wait for a lock runs
    in a thread.

    Raises InvalidTargetError, CatalogUnavailableError, CatalogReadOnlyError, CatalogCorruptError,
    ForeignDatabaseError, SchemaTooNewError, InvalidModelError for an invalid `host`, and what
    `upgrade` raises. No message contains the password of a URL.
    """
    validate_durability(durability)
    validate_read_mode(reads)
    validation.seconds("timeout_s", timeout_s)
    async with open_database(
        target,
        create=create,
        durability=durability,
        wait_s=timeout_s,
        shared=shared,
        schema=schema,
        host=host,
    ) as database:
        await _prepare_schema(database, upgrade=upgrade)
        async with _running(database, target, timeout_s, reads) as catalog:
            yield catalog


@inner_contextmanager
async def _running(
    database: OpenDatabase, target: Target | None, timeout_s: float, reads: ReadMode
) -> AsyncIterator[ModelCatalog]:
    """Start the executor of an open database, and close it at the end."""
    owner = LoopOwner(database.name)
    executor = _make_executor(database, target, timeout_s, owner, reads)
    try:
        if isinstance(executor, ThreadExecutor):
            await executor.open()
        yield ModelCatalog(executor)
    finally:
        owner.is_closed = True
        # A forked child has none of the threads and connections.
        if owner.is_in_owner_process:
            await run_to_completion(executor.close())


async def _prepare_schema(database: OpenDatabase, *, upgrade: bool) -> None:
    if upgrade:
        await migrate_to(database, "head")
    else:
        await require_current_schema(database)
    if database.sync_engine is not None:
        # The async engine was needed for the migration only.
        await database.dispose()


def _make_executor(
    database: OpenDatabase,
    target: Target | None,
    timeout_s: float,
    owner: LoopOwner,
    reads: ReadMode,
) -> PostgresExecutor | SessionExecutor | ThreadExecutor:
    if database.sync_engine is not None:
        return ThreadExecutor(database.sync_engine, timeout_s, owner, reads)
    if isinstance(target, AsyncEngine):
        return SessionExecutor(async_sessionmaker(database.engine), timeout_s, owner)
    return PostgresExecutor(database.engine, timeout_s, owner)
