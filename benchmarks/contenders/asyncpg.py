"""A PostgreSQL driver: asyncpg, with handwritten SQL."""

from __future__ import annotations

import re
from itertools import count
from typing import Any

import asyncpg

from benchmarks.harness.models_table import FIND, LIST, PAGE, REMOVE, TOTAL, UPSERT, Registration


def with_numbered_parameters(sql: str) -> str:
    """The statement with asyncpg's parameters: $1, $2, and so on."""
    numbers = count(1)
    return re.sub(r"\?", lambda _: f"${next(numbers)}", sql)


class Asyncpg:
    """One call of the default pool for each operation."""

    async def open(self, target: str, durability: str) -> None:  # noqa: ARG002 - set by the server
        self._pool = await asyncpg.create_pool(target.replace("+asyncpg", ""))

    async def close(self) -> None:
        await self._pool.close()

    async def find(self, reference: str, provider: str) -> Any:
        return await self._pool.fetchrow(with_numbered_parameters(FIND), provider, reference)

    async def register(self, entry: Registration) -> None:
        await self._pool.execute(with_numbered_parameters(UPSERT), *entry)

    async def register_many(self, entries: list[Registration]) -> None:
        async with self._pool.acquire() as raw, raw.transaction():
            await raw.executemany(with_numbered_parameters(UPSERT), entries)

    async def list(self) -> Any:
        return await self._pool.fetch(with_numbered_parameters(LIST))

    async def page(self, architecture: str, limit: int) -> Any:
        return await self._pool.fetch(with_numbered_parameters(PAGE), architecture, limit)

    async def total(self) -> int:
        return int(await self._pool.fetchval(TOTAL))

    async def remove(self, reference: str, provider: str) -> bool:
        done: str = await self._pool.execute(with_numbered_parameters(REMOVE), provider, reference)
        return done != "DELETE 0"
