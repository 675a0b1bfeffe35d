"""A database that is open: what its target names, found fit to be worked with."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Final

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from model_catalog.concurrency.completion import (
    DEFAULT_OPEN_TIMEOUT_S,
    retry_while_busy,
    run_to_completion,
)
from model_catalog.concurrency.threads import thread_working, to_thread
from model_catalog.connection.database_file import was_shut_down_uncleanly
from model_catalog.connection.engines import (
    abandon_pool_after_fork,
    create_engine,
    create_sync_sqlite_engine,
    ensure_database_file,
)
from model_catalog.connection.error_mapping import corrupt_error, map_errors
from model_catalog.connection.sqlite_pragmas import Durability
from model_catalog.connection.target import DatabaseLocation, Target, display_name, resolve_target

log = logging.getLogger(__name__)


class OpenDatabase:
    """
    A database that is open: its engines, its name in messages, and whether a host shares it.

    `path` is that of a SQLite file of our own, which has an engine for `threads` as well, and
    `wait_s` how long its opening waits for others.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], AsyncEngine],
        *,
        shared: bool,
        path: Path | None = None,
        threads: Engine | None = None,
        wait_s: float = DEFAULT_OPEN_TIMEOUT_S,
    ) -> None:
        self.name: Final = name
        self.shared: Final = shared
        self.path: Final = path
        self.threads: Final = threads
        self.wait_s: Final = wait_s
        self._make = make
        self._engine: AsyncEngine | None = None

    @property
    def engine(self) -> AsyncEngine:
        """Made when it is first asked for: whoever opens a file that is up to date needs none."""
        if self._engine is None:
            self._engine = self._make()
        return self._engine

    async def dispose(self) -> None:
        """Close the connections of its engine, if it has one."""
        if self._engine is not None:
            with thread_working():
                await run_to_completion(self._engine.dispose())

    def leave(self) -> None:
        """Leave the connections to the parent of this process."""
        if self._engine is not None:
            abandon_pool_after_fork(self._engine.sync_engine)


def open_database(
    target: Target | None,
    *,
    create: bool,
    durability: Durability = "full",
    wait_s: float = DEFAULT_OPEN_TIMEOUT_S,
) -> AbstractAsyncContextManager[OpenDatabase]:
    """
    The database a target names. An engine of our own is disposed of again, a host's is not.

    A SQLite file whose last user was killed is read once from its first page to its last: raises
    CatalogCorruptError.
    """
    return _Opening(target, create, durability, wait_s)


# No generator: a loop that ends closes those that are left all at once, the inner one perhaps
# before the one that waits for it.
class _Opening(AbstractAsyncContextManager[OpenDatabase]):
    def __init__(
        self,
        target: Target | None,
        create: bool,  # noqa: FBT001 - nobody else makes one
        durability: Durability,
        wait_s: float,
    ) -> None:
        self._target = target
        self._create = create
        self._durability: Durability = durability
        self._wait_s = wait_s
        self._process = os.getpid()
        self._own: OpenDatabase | None = None

    async def __aenter__(self) -> OpenDatabase:
        target = self._target
        if isinstance(target, AsyncEngine):
            name = display_name(target.url)
            return OpenDatabase(name, lambda: target, shared=True, wait_s=self._wait_s)
        place = resolve_target(target)
        path = place.path
        left_open = await to_thread(_look_at, place, create=self._create)
        threads = None if path is None else create_sync_sqlite_engine(place, path, self._durability)
        database = self._own = OpenDatabase(
            place.name,
            lambda: create_engine(place, threads),
            # On a server it is usual that several programs share a database, in a file it is not.
            shared=path is None,
            path=path,
            threads=threads,
            wait_s=self._wait_s,
        )
        if left_open:
            try:
                await _require_whole_pages(database)
            except BaseException:
                await self.__aexit__()
                raise
        return database

    async def __aexit__(self, *_: object) -> None:
        if self._own is None:
            return
        if os.getpid() == self._process:
            await self._own.dispose()
        else:
            self._own.leave()


def _look_at(place: DatabaseLocation, *, create: bool) -> bool:
    ensure_database_file(place, create=create)
    # The first connection that reads makes the log an ordinary one.
    return place.path is not None and was_shut_down_uncleanly(place.path)


async def _require_whole_pages(database: OpenDatabase) -> None:
    async def once() -> list[str]:
        with map_errors(database.name):
            async with database.engine.connect() as connection:
                return list((await connection.exec_driver_sql("PRAGMA quick_check(3)")).scalars())

    log.info("the catalog at %s was not closed by its last user: reading it once", database.name)
    found = await retry_while_busy(once, database.wait_s)
    if found != ["ok"]:
        raise corrupt_error(database.name, "; ".join(found))
