"""The life of a catalog: open, bring up to date, use, close."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

from model_catalog.concurrency.completion import run_to_completion
from model_catalog.concurrency.ownership import LoopOwner
from model_catalog.connection.open_database import open_database
from model_catalog.connection.sqlite_pragmas import Durability, validate_durability
from model_catalog.connection.target import Target
from model_catalog.domain import validation
from model_catalog.execution.postgres_executor import PostgresExecutor
from model_catalog.execution.session_executor import SessionExecutor
from model_catalog.execution.sqlite_threads.inline_reader import ReadMode, validate_read_mode
from model_catalog.execution.sqlite_threads.thread_executor import ThreadExecutor
from model_catalog.repository.model_catalog import ModelCatalog
from model_catalog.schema.migrate import migrate_to
from model_catalog.schema.revision import require_current_schema


@asynccontextmanager
async def open_catalog(
    target: Target | None = None,
    *,
    upgrade: bool = True,
    create: bool = True,
    timeout_s: float = 30.0,
    durability: Durability = "full",
    reads: ReadMode = "threads",
) -> AsyncIterator[ModelCatalog]:
    """
    Open a catalog, and close it when the block ends.

    `target` is a path, a URL, a URL object or a host's AsyncEngine; without one it is the
    environment's `MODEL_CATALOG_URL`, or `.rbee/models/catalog.db` below the working directory.
    A SQLite file that is not there is created (readable by its owner alone) unless `create` is
    false; its folder only for the default. The tables are created, or brought up to date; with
    `upgrade=False` a database that is not at the newest revision raises SchemaOutOfDateError.
    `timeout_s` is how long opening it waits for others, and how long a call may take.

    What a call has written to a SQLite file outlives a kill. With `durability="full"` it outlives a
    power cut as well, because every transaction waits for the disk; with "normal" a power cut may
    cost the last transactions, but never the database. A server and a host's engine have settings
    of their own for that, and keep them.

    With `reads="inline"` `find_model` and `get_model` read a SQLite file in the event loop's own
    thread. A step out of it and back takes five times as long as the answer, and where the loop has
    always something to do fifty times: that pays where the file is on a disk of this machine and
    mostly in memory. On a cold or a distant disk the whole loop stands still for as long as the
    disk takes, and no deadline ends that; nor do such calls give way to other tasks. What would
    have to wait for a lock waits in a thread. A server is asked as ever.

    Raises InvalidTargetError, CatalogUnavailableError, CatalogReadOnlyError, CatalogCorruptError,
    ForeignDatabaseError, SchemaTooNewError, and what `upgrade` raises. A password in a URL is in
    none of their messages.
    """
    validate_durability(durability)
    validate_read_mode(reads)
    validation.seconds("timeout_s", timeout_s)
    waiting = open_database(target, create=create, durability=durability, wait_s=timeout_s)
    async with waiting as database:
        if upgrade:
            await migrate_to(database, "head")
        else:
            await require_current_schema(database)
        home = LoopOwner(database.name)
        work: SessionExecutor | ThreadExecutor
        if database.sync_engine is None:
            work = (
                SessionExecutor(async_sessionmaker(database.engine), timeout_s, home)
                if isinstance(target, AsyncEngine)
                else PostgresExecutor(database.engine, timeout_s, home)
            )
        else:
            # What has migrated it is of no more use.
            await database.dispose()
            work = ThreadExecutor(database.sync_engine, timeout_s, home, reads)
        try:
            if isinstance(work, ThreadExecutor):
                await work.open()
            yield ModelCatalog(work)
        finally:
            home.is_closed = True
            # A child of the process has none of the threads and none of the connections.
            if home.is_here:
                await run_to_completion(work.close())
