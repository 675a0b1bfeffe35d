"""The two SQLite drivers, with handwritten SQL and rows as tuples."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiosqlite

from benchmarks.harness.models_table import (
    BUSY_TIMEOUT_S,
    COUNT_BEHIND,
    FIND,
    LIST,
    NEWEST,
    PAGE,
    REMOVE,
    STATS,
    TOTAL,
    TOTAL_BEHIND,
    UPSERT,
    USE,
    Registration,
    pragmas,
)


class Sqlite3:
    """One connection in the event loop's thread. Every call blocks the event loop."""

    async def open(self, target: str, durability: str) -> None:
        self._raw = sqlite3.connect(target, timeout=BUSY_TIMEOUT_S)
        for name, value in pragmas(durability).items():
            self._raw.execute(f"PRAGMA {name} = {value}")

    async def close(self) -> None:
        self._raw.close()

    async def find(self, reference: str, provider: str) -> Any:
        return self._raw.execute(FIND, (provider, reference)).fetchone()

    async def register(self, entry: Registration) -> None:
        with self._raw:
            self._raw.execute(UPSERT, entry)

    async def register_many(self, entries: list[Registration]) -> None:
        with self._raw:
            self._raw.executemany(UPSERT, entries)

    async def list(self) -> Any:
        return self._raw.execute(LIST).fetchall()

    async def page(self, architecture: str, limit: int) -> Any:
        return self._raw.execute(PAGE, (architecture, limit)).fetchall()

    async def newest(self, limit: int) -> Any:
        return self._raw.execute(NEWEST, (limit,)).fetchall()

    async def total(self) -> int:
        return int(self._raw.execute(TOTAL).fetchone()[0])

    async def remove(self, reference: str, provider: str) -> bool:
        with self._raw:
            return self._raw.execute(REMOVE, (provider, reference)).rowcount > 0

    async def use(self, entry: Registration) -> None:
        with self._raw:
            self._raw.execute(USE, (entry.downloaded_at, entry.provider, entry.reference))


class Aiosqlite:
    """
    One connection for all tasks, as its documentation shows.

    Tasks are not isolated: a commit also commits what other tasks have written so far.
    """

    async def open(self, target: str, durability: str) -> None:
        self._raw = await _connect(target, durability)

    async def close(self) -> None:
        await self._raw.close()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[aiosqlite.Connection]:
        yield self._raw

    async def find(self, reference: str, provider: str) -> Any:
        async with (
            self.connection() as raw,
            raw.execute(FIND, (provider, reference)) as cursor,
        ):
            return await cursor.fetchone()

    async def register(self, entry: Registration) -> None:
        async with self.connection() as raw:
            await raw.execute(UPSERT, entry)
            await raw.commit()

    async def register_many(self, entries: list[Registration]) -> None:
        async with self.connection() as raw:
            await raw.executemany(UPSERT, entries)
            await raw.commit()

    async def list(self) -> Any:
        async with self.connection() as raw, raw.execute(LIST) as cursor:
            return await cursor.fetchall()

    async def stream(self) -> AsyncIterator[Any]:
        async with self.connection() as raw, raw.execute(LIST) as cursor:
            async for row in cursor:
                yield row

    async def page(self, architecture: str, limit: int) -> Any:
        async with (
            self.connection() as raw,
            raw.execute(PAGE, (architecture, limit)) as cursor,
        ):
            return await cursor.fetchall()

    async def newest(self, limit: int) -> Any:
        async with self.connection() as raw, raw.execute(NEWEST, (limit,)) as cursor:
            return await cursor.fetchall()

    async def stats(self) -> Any:
        async with self.connection() as raw, raw.execute(STATS) as cursor:
            return await cursor.fetchall()

    async def total(self) -> int:
        async with self.connection() as raw, raw.execute(TOTAL) as cursor:
            (total,) = await cursor.fetchone() or (0,)
            return int(total)

    async def count_behind(self, architecture: str) -> int:
        async with self.connection() as raw, raw.execute(COUNT_BEHIND, (architecture,)) as cursor:
            (count,) = await cursor.fetchone() or (0,)
            return int(count)

    async def total_behind(self, architecture: str) -> int:
        async with self.connection() as raw, raw.execute(TOTAL_BEHIND, (architecture,)) as cursor:
            (total,) = await cursor.fetchone() or (0,)
            return int(total)

    async def remove(self, reference: str, provider: str) -> bool:
        async with self.connection() as raw:
            cursor = await raw.execute(REMOVE, (provider, reference))
            await raw.commit()
            return cursor.rowcount > 0

    async def use(self, entry: Registration) -> None:
        async with self.connection() as raw:
            await raw.execute(USE, (entry.downloaded_at, entry.provider, entry.reference))
            await raw.commit()


class AiosqlitePerCall(Aiosqlite):
    """A connection with its own thread for every call, the simplest way to isolate tasks."""

    async def open(self, target: str, durability: str) -> None:
        self._target, self._durability = target, durability

    async def close(self) -> None:
        pass

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[aiosqlite.Connection]:
        raw = await _connect(self._target, self._durability)
        try:
            yield raw
        finally:
            await raw.close()


async def _connect(target: str, durability: str) -> aiosqlite.Connection:
    raw = await aiosqlite.connect(target, timeout=BUSY_TIMEOUT_S)
    try:
        for name, value in pragmas(durability).items():
            await raw.execute(f"PRAGMA {name} = {value}")
    except BaseException:
        # The thread of an open connection is not a daemon thread, so the process could not end.
        await raw.close()
        raise
    return raw
