"""A limit on PostgreSQL: asyncpg, with statements written by hand."""

from __future__ import annotations

import re
from itertools import count
from typing import Any

import asyncpg

from benchmarks.harness.models_table import FIND, LIST, PAGE, REMOVE, TOTAL, UPSERT, Registration


def numbered(sql: str) -> str:
    """The parameters as it wants them."""
    numbers = count(1)
    return re.sub(r"\?", lambda _: f"${next(numbers)}", sql)


class Asyncpg:
    """Its pool as it comes, one call each."""

    async def open(self, target: str, durability: str) -> None:  # noqa: ARG002 - the server's
        self._pool = await asyncpg.create_pool(target.replace("+asyncpg", ""))

    async def close(self) -> None:
        await self._pool.close()

    async def find(self, reference: str, provider: str) -> Any:
        return await self._pool.fetchrow(numbered(FIND), provider, reference)

    async def register(self, entry: Registration) -> None:
        await self._pool.execute(numbered(UPSERT), *entry)

    async def register_many(self, entries: list[Registration]) -> None:
        async with self._pool.acquire() as raw, raw.transaction():
            await raw.executemany(numbered(UPSERT), entries)

    async def list(self) -> Any:
        return await self._pool.fetch(numbered(LIST))

    async def page(self, architecture: str, limit: int) -> Any:
        return await self._pool.fetch(numbered(PAGE), architecture, limit)

    async def total(self) -> int:
        return int(await self._pool.fetchval(TOTAL))

    async def remove(self, reference: str, provider: str) -> bool:
        done: str = await self._pool.execute(numbered(REMOVE), provider, reference)
        return done != "DELETE 0"
