"""A database that is open: what its target names, found fit to be worked with."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sqlalchemy.ext.asyncio import AsyncEngine

from model_catalog.disk import was_left_open
from model_catalog.engine import create_engine, make_ready
from model_catalog.faults import corrupt, translated
from model_catalog.journal import Durability
from model_catalog.target import Place, Target, locate, name_of
from model_catalog.waiting import patiently, to_its_end

WAIT_S: Final = 60.0
"""The seconds that whoever opens a database or changes its schema waits for others."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Opened:
    """
    A database that is open: its engine, its name in messages, and whether a host shares it.

    `path` is that of a SQLite file of our own, and `wait_s` how long its opening waits for others.
    """

    engine: AsyncEngine
    name: str
    shared: bool
    path: Path | None = None
    wait_s: float = WAIT_S


@asynccontextmanager
async def opened(
    target: Target | None,
    *,
    create: bool,
    durability: Durability = "full",
    wait_s: float = WAIT_S,
) -> AsyncIterator[Opened]:
    """
    The database a target names. An engine of our own is disposed of again, a host's is not.

    A SQLite file whose last user was killed is read once from its first page to its last: raises
    CatalogCorruptError.
    """
    if isinstance(target, AsyncEngine):
        yield Opened(target, name_of(target.url), shared=True, wait_s=wait_s)
        return
    place = locate(target)
    left_open = await asyncio.to_thread(_look_at, place, create=create)
    engine = create_engine(place, durability)
    process = os.getpid()
    try:
        # On a server it is usual that several programs share a database, in a file it is not.
        database = Opened(engine, place.name, place.path is None, place.path, wait_s)
        if left_open:
            await _require_whole_pages(database)
        yield database
    finally:
        if os.getpid() == process:
            await to_its_end(engine.dispose())
        else:
            # To say goodbye to the server would end the parent's session with it.
            engine.sync_engine.dispose(close=False)


def _look_at(place: Place, *, create: bool) -> bool:
    make_ready(place, create=create)
    # The first connection that reads makes the log an ordinary one.
    return place.path is not None and was_left_open(place.path)


async def _require_whole_pages(database: Opened) -> None:
    async def once() -> list[str]:
        with translated(database.name):
            async with database.engine.connect() as connection:
                return list((await connection.exec_driver_sql("PRAGMA quick_check(3)")).scalars())

    log.info("the catalog at %s was not closed by its last user: reading it once", database.name)
    found = await patiently(once, database.wait_s)
    if found != ["ok"]:
        raise corrupt(database.name, "; ".join(found))
